"""One way to run any dual encoder, whether onnxruntime or torch does the work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from dcclip_cli.errors import DcclipError
from dcclip_cli.model.precision import Precision
from dcclip_cli.model.reference import ModelReference

PLAIN_PROMPTS: Mapping[str, Sequence[str]] = {"en": ("{}",), "zh": ("{}",)}


class DualEncoder(Protocol):
    """A loaded model. B images, N texts, D the shared width; every embedding has length 1.

    Both `encode_` methods raise NotFiniteError where an embedding is not finite.
    """

    name: str
    fingerprint: str  # changes whenever any output could
    preprocessing: Mapping[str, Any]  # what `preprocess` does, for the record
    prompts: Mapping[str, Sequence[str]]  # language -> templates that `predict` puts labels into
    logit_scale: float  # what cosines are multiplied with before the softmax
    logit_bias: float | None  # added to logits by sigmoid models
    precision: str  # what it computes in: fp32, bf16, or that of an export
    parameters: int
    size_bytes: int  # of the weights

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """The image tower's input (3, H, W), float32."""

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Embeddings (B, D), float32, of preprocessed images (B, 3, H, W)."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings (N, D), float32."""


def load_model(
    reference: ModelReference, device: str = "auto", precision: Precision = "fp32", threads: int | None = None
) -> DualEncoder:
    """The model meant by a reference; a bundle is loaded without torch. Raises DcclipError where it can't be.

    `precision` is for torch: a bundle computes as it was exported. `threads` of the processor for one tower: by default
    one for a bundle, and torch's own choice else.
    """
    if reference.kind == "bundle":
        if precision == "bf16":
            raise DcclipError(f"{reference.target} computes in the precision of its export", "leave --precision out")
        from dcclip_cli.predict.bundle import Bundle

        return Bundle(reference.path, device, threads or 1)
    from dcclip_cli.predict.torch_runtime import load_torch

    return load_torch(reference, device, precision, threads)
