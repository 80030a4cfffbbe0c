"""The Encoder protocol for loaded models, its implementation with torch, the loader, and a model's
size and latency.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.machine import set_library_defaults
from dcclip_cli.core.progress import Progress, Silent
from dcclip_cli.inference.onnx_encoder import OnnxEncoder
from dcclip_cli.model import Precision
from dcclip_cli.model.known_words import KnownWords
from dcclip_cli.model.precision import (
    AS_ASKED,
    Choice,
    check_logits,
    choose_precision,
    finite,
    torch_device,
)
from dcclip_cli.model.preprocess import flatten
from dcclip_cli.model.reference import ModelSource

if TYPE_CHECKING:
    from torch import Tensor

    from dcclip_cli.model.towers import Towers

PLAIN_PROMPTS: Mapping[str, Sequence[str]] = {"en": ("{}",), "zh": ("{}",)}


class Encoder(Protocol):
    """A loaded model. B images, N texts, D the shared width; every embedding has length 1.

    Both `encode_` methods raise NotFiniteError if an embedding is not finite or has another
    length. The logit scale and bias are finite.
    """

    name: str
    fingerprint: str  # changes whenever any output could change
    trained_dims: Sequence[
        int
    ]  # numbers of first dimensions that were trained to be embeddings as well
    preprocessing: Mapping[str, Any]  # what `preprocess` does, for the record
    prompts: Mapping[str, Sequence[str]]  # language -> templates that `predict` puts labels into
    logit_scale: float  # factor of the cosines before the softmax
    logit_bias: float | None  # added to the logits by sigmoid models
    known: KnownWords | None  # how it says that it never learnt a text
    precision: str  # fp32 or bf16, or the precision of an export
    parameters: int
    size_bytes: int  # of the weights

    @property
    def image_fingerprint(self) -> str:
        """As `fingerprint`, but of embeddings of images alone: models may share an image tower."""

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """The image tower's input (3, H, W), float32, another for NaFlex; (D,) if the graph
        preprocesses.
        """

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Embeddings (B, D), float32, of preprocessed images (B, 3, H, W)."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings (N, D), float32."""

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids (N, L), int64, padded."""


class TorchEncoder:
    """Towers as an Encoder, in evaluation mode on `device`; embeddings in bf16 or fp16 are cached
    apart from fp32.
    """

    prompts: Mapping[str, Sequence[str]] = PLAIN_PROMPTS

    def __init__(self, towers: Towers, device: str = "cpu", choice: Choice = AS_ASKED) -> None:
        import torch

        # Convolutions take a third less time with channels last.
        self.towers: Towers = towers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._device = device
        self.choice = choice
        self.precision = choice.precision
        self._suffix = "" if choice.precision == "fp32" else f"-{choice.precision}"
        self.name = towers.name
        self.fingerprint = towers.fingerprint + self._suffix
        self.trained_dims: Sequence[int] = towers.trained_dims
        self.preprocessing: Mapping[str, Any] = towers.preprocessing_record
        self.logit_scale = towers.logit_scale
        self.logit_bias = towers.logit_bias
        self.known = towers.known
        check_logits(self.logit_scale, self.logit_bias, self.name)
        self.parameters = towers.parameters_count()
        self.size_bytes = sum(
            weight.numel() * weight.element_size() for weight in towers.parameters()
        )

    @cached_property
    def image_fingerprint(self) -> str:
        return self.towers.image_fingerprint() + self._suffix

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return self.towers.preprocess(flatten(image))

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        import torch

        batch = torch.from_numpy(pixels).to(self._device, memory_format=torch.channels_last)
        return self._encode("images", lambda: self.towers.image_features(batch).embedding)

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        return self.towers.tokenize(list(texts)).ids.numpy()

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        tokens = self.towers.tokenize(list(texts)).to(self._device)
        return self._encode("texts", lambda: self.towers.text_features(tokens).embedding)

    def _encode(self, inputs: str, compute: Callable[[], Tensor]) -> np.ndarray:
        import torch

        with torch.inference_mode(), self.towers.autocast(self.precision):
            vectors = compute().float().cpu().numpy()
        with np.errstate(all="ignore"):  # `finite` reports it
            return finite(
                vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), self.name, inputs
            )


class ShortEncoder:
    """An encoder whose embeddings are cut to their first `dims` numbers, and have length 1 again."""

    def __init__(self, encoder: Encoder, dims: int) -> None:
        self.full = encoder
        self.dims = dims
        self.name = f"{encoder.name}-{dims}d"
        self.fingerprint = f"{encoder.fingerprint}-{dims}d"
        self.trained_dims: Sequence[int] = [
            length for length in encoder.trained_dims if length <= dims
        ]
        self.known = encoder.known and encoder.known.within(dims)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.full, name)

    @property
    def image_fingerprint(self) -> str:
        return f"{self.full.image_fingerprint}-{self.dims}d"

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        return self.shortened(self.full.encode_pixels(pixels), "images")

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return self.shortened(self.full.encode_texts(texts), "texts")

    def shortened(self, vectors: np.ndarray, inputs: str) -> np.ndarray:
        """The first `dims` numbers of embeddings (N, D), divided by their length."""
        if (width := vectors.shape[1]) < self.dims:
            reason = Message(
                "{}: the embeddings have {} dimensions, fewer than {}",
                self.full.name,
                width,
                self.dims,
            )
            raise DcclipError(reason, "use --dims {} or less, or remove --dims", width)
        short = vectors[:, : self.dims]
        with np.errstate(all="ignore"):  # `finite` reports it
            return finite(short / np.linalg.norm(short, axis=1, keepdims=True), self.name, inputs)


def shortened(encoder: Encoder, dims: int | None, progress: Progress) -> Encoder:
    """The encoder with embeddings of `dims` numbers; itself for None. Says if it was not trained
    for that many.
    """
    if dims is None:
        return encoder
    if dims not in encoder.trained_dims:
        trained = ", ".join(map(str, encoder.trained_dims)) or Message(
            "none; see the training option dims"
        )
        progress.say(
            Message(
                "warning: {} was not trained for {} dimensions (trained: {})",
                encoder.name,
                dims,
                trained,
            )
        )
    short: Encoder = ShortEncoder(encoder, dims)
    return short


def load_encoder(
    reference: ModelSource,
    device: str = "auto",
    precision: Precision = "fp32",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Encoder:
    """The model meant by a reference; a bundle is loaded without torch. Raises DcclipError if it
    cannot be loaded.

    `precision` is for torch: a bundle computes in the precision of its export. `threads` are CPU
    threads per tower: by default one for a bundle; for torch they are set for the whole process,
    by default as torch chooses.
    """
    set_library_defaults()
    if folder := reference.download():
        reference = replace(reference, location=str(folder), on_hub=False)
        if (folder / "image.onnx").is_file():
            reference = replace(reference, kind="bundle")
    if reference.kind == "bundle":
        if precision == "bf16":
            raise DcclipError(
                "{} always runs in the precision it was exported with",
                "remove --precision",
                reference.target,
            )
        return OnnxEncoder(reference.path, device, threads or 1)
    import torch

    device = torch_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    if reference.teacher is not None:
        towers: Towers = reference.teacher.model_copy(update={"precision": "fp32"}).load(
            device, progress
        )
    else:
        towers = reference.load(progress or Silent()).requires_grad_(False).eval().to(device)
        if reference.kind != "folder":
            towers.fingerprint += "-fp32"  # as that of a teacher
    towers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as TorchEncoder runs them
    return TorchEncoder(towers, device, choose_precision(precision, device, None, towers.fp16))


@dataclass(frozen=True)
class Footprint:
    """Size, and medians in ms for one image, without preprocessing outside of its graph, and one
    short text.
    """

    parameters: int
    size_bytes: int
    image_ms: float
    text_ms: float


def footprint(model: Encoder, budget_s: float = 1.0, threads: int = 1) -> Footprint:
    """A model's size and latency on its `threads`. Not for comparing machines.

    On one thread, the latency is CPU time, which other programs change little. Windows counts that
    in 16 ms.
    """
    clock = time.thread_time if threads == 1 and sys.platform != "win32" else time.perf_counter
    image = Image.new("RGB", (256, 256), "white")
    pixels = model.preprocess(image)[np.newaxis]
    in_graph = pixels.ndim == 2  # an embedding
    torch = sys.modules.get("torch")  # if it is not loaded, the model does not use it
    torch_threads = torch.get_num_threads() if torch else 0
    if torch:
        torch.set_num_threads(threads)
    try:
        encode = (
            (lambda: model.preprocess(image)) if in_graph else (lambda: model.encode_pixels(pixels))
        )
        image_ms = _median_ms(encode, budget_s / 2, clock)
        text_ms = _median_ms(
            lambda: model.encode_texts(["一只在雪地里的狗 a dog in the snow"]), budget_s / 2, clock
        )
    finally:
        if torch:
            torch.set_num_threads(torch_threads)
    return Footprint(model.parameters, model.size_bytes, image_ms, text_ms)


def _median_ms(call: Callable[[], object], budget_s: float, clock: Callable[[], float]) -> float:
    call()
    times: list[float] = []
    end = time.perf_counter() + budget_s
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 200):
        begin = clock()
        call()
        times.append(clock() - begin)
    return float(1000 * np.median(times))
