"""ONNX bundles run by onnxruntime, without torch, and what all exports with a dcclip.json have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcclip_cli.errors import DcclipError
from dcclip_cli.files import read_json
from dcclip_cli.machine import has_vnni
from dcclip_cli.model.precision import NotFiniteError, check_logits, finite
from dcclip_cli.model.preprocess import Preprocessing

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from PIL import Image

FORMAT = 1
Run = Callable[[np.ndarray], np.ndarray]  # pixels (B, 3, H, W) or padded token ids (N, L) -> embeddings (B, D)
DESCRIPTION, IMAGE, TEXT, TOKENIZER = "dcclip.json", "image.onnx", "text.onnx", "tokenizer.json"
PIXELS, IMAGE_EMBEDS, TOKENS, TEXT_EMBEDS = "pixel_values", "image_embeds", "input_ids", "text_embeds"
_LENGTH_ERROR = 0.05  # of an embedding; int8 and fp16 graphs end with a division by the length, too
_COPY = "export the model again, or copy the whole bundle"
# The keys that a bundle's dcclip.json must have.
_KEYS: Mapping[str, type | tuple[type, ...]] = {
    "name": str,
    "fingerprint": str,
    "parameters": int,
    "preprocessing": dict,
    "logit_scale": (int, float),
    "logit_bias": (int, float, type(None)),
    "prompts": dict,
    "context_length": int,
    "padding_id": int,
    "tokenizer_sha256": str,
}


class ExportedEncoder:
    """An export with a dcclip.json and a tokenizer as an Encoder; `image` and `text` run its two towers."""

    def __init__(self, folder: Path, about: Mapping[str, Any], files: Sequence[str], image: Run, text: Run) -> None:
        self.name: str = about["name"]
        self.fingerprint: str = about["fingerprint"]
        self.parameters: int = about["parameters"]
        self.precision: str = about.get("precision", "fp32")
        self.preprocessing: Mapping[str, Any] = about["preprocessing"]
        self.prompts: Mapping[str, Sequence[str]] = about["prompts"]
        self.logit_scale, self.logit_bias = float(about["logit_scale"]), about["logit_bias"]
        check_logits(self.logit_scale, self.logit_bias, self.name)
        # The weights of a large graph are in a file next to it.
        parts = (folder / f"{name}{suffix}" for name in files for suffix in ("", ".data"))
        self.size_bytes = sum(part.stat().st_size for part in parts if part.is_file())
        self._run_image, self._run_text = image, text
        try:
            self._preprocess = Preprocessing.from_config(about["preprocessing"])
        except (ValueError, TypeError) as error:
            raise DcclipError(f"{folder / DESCRIPTION}: preprocessing: {error}", _COPY) from None
        self._tokenizer = _open_tokenizer(folder, about)

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return self._preprocess(image)

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        return self._checked(self._run_image(pixels), "images")

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return self._checked(self._run_text(self.tokenize(texts)), "texts")

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        encoded = self._tokenizer.encode_batch([" ".join(text.split()) for text in texts])
        return np.asarray([item.ids for item in encoded], np.int64)

    def _checked(self, embeddings: np.ndarray, inputs: str) -> np.ndarray:
        lengths = np.linalg.norm(finite(embeddings, self.name, inputs), axis=-1)
        if not (np.abs(lengths - 1) <= _LENGTH_ERROR).all():
            what = (
                f"{self.name} returned embeddings of {inputs} of the length {lengths[np.abs(lengths - 1).argmax()]:.3g}"
            )
            raise NotFiniteError(f"{what} instead of 1", _COPY)
        return embeddings


class OnnxEncoder(ExportedEncoder):
    """An ONNX bundle run by onnxruntime. `threads` is per tower: more than one slows small models on shared cores."""

    def __init__(self, folder: Path, device: str = "auto", threads: int = 1) -> None:
        about = read_description(folder)
        provider, exact = _provider(device), _may_overflow(about)
        image = _open_session(folder / IMAGE, PIXELS, IMAGE_EMBEDS, provider, threads, exact)
        text = _open_session(folder / TEXT, TOKENS, TEXT_EMBEDS, provider, threads, exact)
        super().__init__(
            folder,
            about,
            (IMAGE, TEXT),
            lambda pixels: np.asarray(image.run([IMAGE_EMBEDS], {PIXELS: pixels})[0]),
            lambda ids: np.asarray(text.run([TEXT_EMBEDS], {TOKENS: ids})[0]),
        )
        side = image.get_inputs()[0].shape[-1]
        if isinstance(side, int) and side != self._preprocess.size:
            raise DcclipError(
                f"{folder / IMAGE} takes images of {side} x {side}, {DESCRIPTION} says {self._preprocess.size}", _COPY
            )
        widths = [one.get_outputs()[0].shape[-1] for one in (image, text)]
        if widths[0] != widths[1]:
            raise DcclipError(
                f"{folder}: {IMAGE} gives {widths[0]} numbers and {TEXT} {widths[1]}: they are from two models", _COPY
            )


def one_at_a_time(run: Run) -> Run:
    """`run` called with each item of a batch, for runtimes and graphs with a fixed batch size of one."""
    return lambda items: np.concatenate([run(item[np.newaxis]) for item in items])


def read_description(folder: Path, kind: str = "bundle", files: Sequence[str] = (IMAGE, TEXT)) -> dict[str, Any]:
    """The dcclip.json of a bundle, checked, or of another `kind` of export, which has `files`.

    Raises DcclipError if a file is missing or describes something else.
    """
    missing = [name for name in (DESCRIPTION, *files, TOKENIZER) if not (folder / name).is_file()]
    if missing:
        found = ", ".join(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else "no such folder"
        raise DcclipError(f"{folder} has no {', '.join(missing)} (found: {found})", _COPY)
    about = read_json(folder / DESCRIPTION, _COPY)
    if (about.get("kind"), about.get("format")) != (kind, FORMAT):
        raise DcclipError(
            f"{folder / DESCRIPTION} describes a {about.get('kind')} of format {about.get('format')}, "
            f"not a {kind} of format {FORMAT}",
            "export the model again with this version of dcclip",
        )
    for key, wanted in _KEYS.items():
        if key not in about or not isinstance(about[key], wanted) or isinstance(about[key], bool):
            raise DcclipError(f"{folder / DESCRIPTION}: {key} is missing or has the wrong type", _COPY)
    for language, templates in about["prompts"].items():
        fits = isinstance(templates, list) and templates and all("{}" in str(template) for template in templates)
        if not fits:
            raise DcclipError(f"{folder / DESCRIPTION}: prompts for {language} must be texts with {{}}", _COPY)
    return about


def _open_tokenizer(folder: Path, about: Mapping[str, Any]) -> Any:
    from dcclip_cli.model.tokenizer import load_tokenizer

    if hashlib.sha256((folder / TOKENIZER).read_bytes()).hexdigest() != about["tokenizer_sha256"]:
        raise DcclipError(f"{folder / TOKENIZER} is not the tokenizer of this bundle", _COPY)
    tokenizer = load_tokenizer(folder)
    if about["context_length"] < 1 or about["padding_id"] < 0:
        raise DcclipError(f"{folder / DESCRIPTION}: context_length and padding_id must not be negative", _COPY)
    tokenizer.enable_truncation(about["context_length"])
    length = about["context_length"] if about.get("fixed_length") else None
    tokenizer.enable_padding(pad_id=about["padding_id"], length=length)
    return tokenizer


def _may_overflow(about: Mapping[str, Any]) -> bool:
    """Whether int8 sums can overflow in 16 bits: without VNNI, in bundles of versions that did not bound them."""
    bounded = (about.get("parity") or {}).get("int8_largest_pair_sum")
    return about.get("precision") == "int8" and not bounded and has_vnni() is False


def _open_session(
    file: Path, takes: str, gives: str, provider: str, threads: int, exact: bool = False
) -> InferenceSession:
    """The session of a graph; `exact` prevents 16-bit overflows of int8 sums, at twice the time."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    errors = (states.Fail, states.InvalidArgument, states.InvalidGraph, states.InvalidProtobuf, states.NotImplemented)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=[provider])
    except (*errors, states.NoSuchFile, states.RuntimeException) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise DcclipError(f"{file} cannot be loaded: {reason}", _COPY) from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if [node.name for node in (*inputs, *outputs)] != [takes, gives]:
        raise DcclipError(f"{file} does not turn {takes} into {gives}: it is not part of a dcclip bundle", _COPY)
    return session


def _provider(device: str) -> str:
    import onnxruntime

    names = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    there = onnxruntime.get_available_providers()
    if device == "auto":
        device = "cuda" if names["cuda"] in there else "cpu"
    if names.get(device) not in there:
        raise DcclipError(f"onnxruntime finds no device {device}", "omit --device, or use --device cpu")
    return names[device]
