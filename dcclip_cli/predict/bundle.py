"""The export bundle, run by onnxruntime: no torch, small enough for the start of a process to count."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcclip_cli.errors import DcclipError
from dcclip_cli.model.preprocess import Preprocessing

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from PIL import Image

FORMAT = 1
DESCRIPTION, IMAGE, TEXT, TOKENIZER = "dcclip.json", "image.onnx", "text.onnx", "tokenizer.json"
PIXELS, IMAGE_EMBEDS, TOKENS, TEXT_EMBEDS = "pixel_values", "image_embeds", "input_ids", "text_embeds"
_COPY = "export the model again, or copy the whole bundle"
# What a bundle's dcclip.json must say.
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


class Bundle:
    """A bundle directory as a DualEncoder. `threads` is per tower: more than one slows small models on shared cores."""

    def __init__(self, folder: Path, device: str = "auto", threads: int = 1) -> None:
        about = read_description(folder)
        self.name: str = about["name"]
        self.fingerprint: str = about["fingerprint"]
        self.parameters: int = about["parameters"]
        self.preprocessing: Mapping[str, Any] = about["preprocessing"]
        self.prompts: Mapping[str, Sequence[str]] = about["prompts"]
        self.logit_scale, self.logit_bias = float(about["logit_scale"]), about["logit_bias"]
        self.size_bytes = sum((folder / name).stat().st_size for name in (IMAGE, TEXT))
        try:
            self._preprocess = Preprocessing.from_config(about["preprocessing"])
        except (ValueError, TypeError) as error:
            raise DcclipError(f"{folder / DESCRIPTION}: preprocessing: {error}", _COPY) from None
        self._tokenizer = _open_tokenizer(folder, about)
        provider = _provider(device)
        self._image = _open_session(folder / IMAGE, PIXELS, IMAGE_EMBEDS, provider, threads)
        self._text = _open_session(folder / TEXT, TOKENS, TEXT_EMBEDS, provider, threads)

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return self._preprocess(image)

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        return np.asarray(self._image.run([IMAGE_EMBEDS], {PIXELS: pixels})[0])

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        encoded = self._tokenizer.encode_batch([" ".join(text.split()) for text in texts])
        ids = np.asarray([item.ids for item in encoded], np.int64)
        return np.asarray(self._text.run([TEXT_EMBEDS], {TOKENS: ids})[0])


def read_description(folder: Path) -> dict[str, Any]:
    """The bundle's dcclip.json, checked. Raises DcclipError where a file is missing or this is no bundle."""
    from dcclip_cli.model.folder import read_json

    missing = [name for name in (DESCRIPTION, IMAGE, TEXT, TOKENIZER) if not (folder / name).is_file()]
    if missing:
        found = ", ".join(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else "no such folder"
        raise DcclipError(f"{folder} has no {', '.join(missing)} (found: {found})", _COPY)
    about = read_json(folder / DESCRIPTION, _COPY)
    kind, version = about.get("kind"), about.get("format")
    if (kind, version) != ("bundle", FORMAT):
        raise DcclipError(
            f"{folder / DESCRIPTION} describes a {kind} of format {version}, not a bundle of format {FORMAT}",
            "export the model again with this version of dcclip",
        )
    for key, kind in _KEYS.items():
        if key not in about or not isinstance(about[key], kind):
            raise DcclipError(f"{folder / DESCRIPTION}: {key} is missing or of the wrong kind", _COPY)
    return about


def _open_tokenizer(folder: Path, about: Mapping[str, Any]) -> Any:
    from dcclip_cli.model.tokenizer import load_tokenizer

    if hashlib.sha256((folder / TOKENIZER).read_bytes()).hexdigest() != about["tokenizer_sha256"]:
        raise DcclipError(f"{folder / TOKENIZER} is not the tokenizer that this bundle was made with", _COPY)
    tokenizer = load_tokenizer(folder)
    tokenizer.enable_truncation(about["context_length"])
    tokenizer.enable_padding(pad_id=about["padding_id"])
    return tokenizer


def _open_session(file: Path, takes: str, gives: str, provider: str, threads: int) -> InferenceSession:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    errors = (states.Fail, states.InvalidArgument, states.InvalidGraph, states.InvalidProtobuf, states.NotImplemented)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=[provider])
    except (*errors, states.NoSuchFile, states.RuntimeException) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise DcclipError(f"{file} can't be loaded: {reason}", _COPY) from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if [node.name for node in (*inputs, *outputs)] != [takes, gives]:
        raise DcclipError(f"{file} does not turn {takes} into {gives}: it is not from a dcclip bundle", _COPY)
    return session


def _provider(device: str) -> str:
    import onnxruntime

    names = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    there = onnxruntime.get_available_providers()
    if device == "auto":
        device = "cuda" if names["cuda"] in there else "cpu"
    if names.get(device) not in there:
        raise DcclipError(f"onnxruntime finds no device {device}", "leave --device out, or say --device cpu")
    return names[device]
