"""The versions of the libraries that a result depends on."""

from __future__ import annotations

import importlib.metadata

LIBRARIES = (
    "dcclip", "torch", "open_clip_torch", "timm", "transformers", "tokenizers", "onnxruntime", "numpy", "pillow",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Library name -> version, of those that are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
