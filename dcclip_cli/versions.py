"""The versions of the libraries that a result depends on."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

LIBRARIES = (
    "dcclip", "torch", "open_clip_torch", "timm", "transformers", "tokenizers", "onnxruntime", "numpy", "pillow",
)  # fmt: skip


def versions(more: Iterable[str] = ()) -> dict[str, str]:
    """Library name -> version, of those that are installed; `more` names libraries that only some results depend on."""
    found = {}
    for name in (*LIBRARIES, *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
