"""ONNX bundles run by onnxruntime, without torch, and what all exports with a dcclip.json have in common."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dcclip_cli.checksums import Record, read_record
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import file_sha256, validated_by
from dcclip_cli.machine import has_vnni
from dcclip_cli.model.precision import NotFiniteError, check_logits, finite
from dcclip_cli.model.preprocess import Preprocessing, flatten
from dcclip_cli.run_dir import RECORD

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from PIL import Image
    from pydantic_core import SchemaValidator

Run = Callable[[np.ndarray], np.ndarray]  # pixels (B, 3, H, W) or padded token ids (N, L) -> embeddings (B, D)
DESCRIPTION, IMAGE, TEXT, TOKENIZER = RECORD, "image.onnx", "text.onnx", "tokenizer.json"
PIXELS, IMAGE_EMBEDS, TOKENS, TEXT_EMBEDS = "pixel_values", "image_embeds", "input_ids", "text_embeds"
RGB = "rgb_image"  # in place of PIXELS where the graph preprocesses: uint8 (1, height, width, 3)
_LENGTH_ERROR = 0.05  # of an embedding; int8 and fp16 graphs end with a division by the length, too
_COPY = Message("export the model again, or copy the whole bundle")
_UNEDITED = f"{_COPY}; for other prompts, use predict --template or export.prompts in the recipe"


@dataclass(frozen=True)
class Description:
    """The dcclip.json of an export, the part that is needed to run it.

    `preprocess`: whether the image graph takes `rgb_image` ("graph") or `pixel_values` ("outside").
    `int8_largest_pair_sum` is what two int8 products add up to at most; None where that was not bounded.
    """

    name: str
    fingerprint: str
    parameters: int
    precision: str
    preprocessing: dict[str, Any]
    preprocess: str
    logit_scale: float
    logit_bias: float | None
    prompts: dict[str, list[str]]
    context_length: int
    padding_id: int
    fixed_length: bool
    tokenizer_sha256: str
    int8_largest_pair_sum: int | None
    trained_dims: tuple[int, ...] = ()

    @classmethod
    def read(cls, content: Any) -> Description:
        """From the JSON object. Raises pydantic's ValidationError."""
        found = _validator().validate_python(content)
        found["trained_dims"] = tuple(found["trained_dims"])
        found["int8_largest_pair_sum"] = (found.pop("parity") or {}).get("int8_largest_pair_sum")
        return cls(**found)


def _validator() -> SchemaValidator:
    """Of a Description's JSON, without pydantic's models: importing these takes a fifth of a prediction's time."""
    from pydantic_core import SchemaValidator
    from pydantic_core import core_schema as of

    strict = of.CoreConfig(strict=True, allow_inf_nan=False)
    number = of.float_schema(ge=-1e4, le=1e4)
    templates = of.no_info_after_validator_function(
        _have_a_place_for_the_label, of.dict_schema(of.str_schema(), of.list_schema(of.str_schema()))
    )
    supported = of.no_info_after_validator_function(_is_supported, of.dict_schema(of.str_schema()))
    pair_sum = of.typed_dict_field(of.nullable_schema(of.int_schema()), required=False)
    parity = of.nullable_schema(of.typed_dict_schema({"int8_largest_pair_sum": pair_sum}, config=strict))
    fields = {
        "name": of.str_schema(),
        "fingerprint": of.str_schema(),
        "parameters": of.int_schema(ge=0, lt=2**63),
        "precision": of.with_default_schema(of.str_schema(), default="fp32"),
        "preprocessing": supported,
        "preprocess": of.with_default_schema(of.literal_schema(["outside", "graph"]), default="outside"),
        "logit_scale": of.float_schema(gt=0, le=1e4),
        "logit_bias": of.nullable_schema(number),
        "prompts": templates,
        "context_length": of.int_schema(ge=1, le=2**16),
        "padding_id": of.int_schema(ge=0, lt=2**31),
        "fixed_length": of.with_default_schema(of.bool_schema(), default=False),
        "tokenizer_sha256": of.str_schema(),
        "trained_dims": of.with_default_schema(of.list_schema(of.int_schema(ge=1, le=2**16)), default=[]),
        "parity": of.with_default_schema(parity, default=None),
    }
    return SchemaValidator(
        of.typed_dict_schema({name: of.typed_dict_field(one) for name, one in fields.items()}, config=strict)
    )


def _is_supported(preprocessing: dict[str, Any]) -> dict[str, Any]:
    Preprocessing.from_config(preprocessing)
    return preprocessing


def _have_a_place_for_the_label(prompts: dict[str, list[str]]) -> dict[str, list[str]]:
    for language, templates in prompts.items():
        if not templates or not all("{}" in template for template in templates):
            raise ValueError(Message("prompts for {} must be texts with {{}}", language))
    return prompts


class ExportedEncoder:
    """An export with a dcclip.json and a tokenizer as an Encoder; `image` and `text` run its two towers."""

    def __init__(self, folder: Path, about: Description, files: Sequence[str], image: Run, text: Run) -> None:
        self.name, self.fingerprint, self.parameters = about.name, about.fingerprint, about.parameters
        self.precision = about.precision
        self.trained_dims: Sequence[int] = about.trained_dims
        self.image_fingerprint = about.fingerprint
        self.preprocessing: Mapping[str, Any] = about.preprocessing
        self.prompts: Mapping[str, Sequence[str]] = about.prompts
        self.logit_scale, self.logit_bias = about.logit_scale, about.logit_bias
        check_logits(self.logit_scale, self.logit_bias, self.name)
        # The weights of a large graph are in a file next to it.
        parts = (folder / f"{name}{suffix}" for name in files for suffix in ("", ".data"))
        self.size_bytes = sum(part.stat().st_size for part in parts if part.is_file())
        self._run_image, self._run_text = image, text
        self._preprocess = Preprocessing.from_config(about.preprocessing)
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
            what = Message(
                "{} returned embeddings of {} of the length {:.3g}",
                self.name,
                inputs,
                lengths[np.abs(lengths - 1).argmax()],
            )
            raise NotFiniteError("{} instead of 1", _COPY, what)
        return embeddings


class OnnxEncoder(ExportedEncoder):
    """An ONNX bundle run by onnxruntime. `threads` is per tower: more than one slows small models on shared cores.

    With a graph that preprocesses, `preprocess` returns an image's embedding (D,): images of different sizes cannot be
    in one batch, and are too large to wait for each other. `encode_pixels` then only checks the embeddings.
    """

    def __init__(self, folder: Path, device: str = "auto", threads: int = 1) -> None:
        about, record = read_description(folder)
        with record.checking():  # which is over before the graphs are opened: damaged ones may crash onnxruntime
            provider, exact = _provider(device), _may_overflow(about)
        self._in_graph = about.preprocess == "graph"
        takes = RGB if self._in_graph else PIXELS
        image = _open_session(folder / IMAGE, takes, IMAGE_EMBEDS, provider, threads, exact)
        text = _open_session(folder / TEXT, TOKENS, TEXT_EMBEDS, provider, threads, exact)
        self._image = _runner(image, folder / IMAGE, takes, IMAGE_EMBEDS)
        encode = _unchanged if self._in_graph else self._image
        super().__init__(folder, about, (IMAGE, TEXT), encode, _runner(text, folder / TEXT, TOKENS, TEXT_EMBEDS))
        self.image_fingerprint = _image_fingerprint(about, record)
        side = image.get_inputs()[0].shape[-1]
        if not self._in_graph and isinstance(side, int) and side != self._preprocess.size:
            raise DcclipError(
                Message(
                    "{0} takes images of {1} x {1}, {2} says {3}",
                    folder / IMAGE,
                    side,
                    DESCRIPTION,
                    self._preprocess.size,
                ),
                _COPY,
            )
        widths = [one.get_outputs()[0].shape[-1] for one in (image, text)]
        if widths[0] != widths[1]:
            what = Message(
                "{}: {} gives {} numbers and {} {}: they are from two models", folder, IMAGE, widths[0], TEXT, widths[1]
            )
            raise DcclipError(what, _COPY)

    def preprocess(self, image: Image.Image) -> np.ndarray:
        if not self._in_graph:
            return super().preprocess(image)
        return self._image(np.asarray(flatten(image))[np.newaxis])[0]


def _unchanged(embeddings: np.ndarray) -> np.ndarray:
    return embeddings


class Described(NamedTuple):
    """The description of an export, and the record of its files that it was read from."""

    about: Description
    record: Record


def one_at_a_time(run: Run) -> Run:
    """`run` called with each item of a batch, for runtimes and graphs with a fixed batch size of one."""
    return lambda items: np.concatenate([run(item[np.newaxis]) for item in items])


def read_description(folder: Path, kind: str = "bundle", files: Sequence[str] = (IMAGE, TEXT)) -> Described:
    """The dcclip.json of a bundle, checked, or of another `kind` of export, which has `files`.

    Raises DcclipError if a file is missing, or the JSON is damaged or describes something else.
    """
    needed = (DESCRIPTION, *files, TOKENIZER)
    if missing := [name for name in needed if not (folder / name).exists()]:
        found = (
            ", ".join(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else Message("no such folder")
        )
        raise DcclipError("{} has no {} (found: {})", _COPY, folder, ", ".join(missing), found)
    for file in (folder / name for name in needed):
        if not os.access(file, os.R_OK):  # onnxruntime would only give the number of the error
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
    record = read_record(folder / DESCRIPTION, _UNEDITED)
    found_kind = record.content.get("kind")
    if found_kind is None:
        raise DcclipError("{} has no kind: it is not that of a dcclip {}", _COPY, folder / DESCRIPTION, kind)
    if found_kind != kind:
        what = Message("{} describes a {}, not a {}", folder / DESCRIPTION, found_kind, kind)
        raise DcclipError(what, "export the model again with this version of dcclip")
    return Described(validated_by(Description.read, record.content, folder / DESCRIPTION, _COPY), record)


def _image_fingerprint(about: Description, record: Record) -> str:
    """What bundles with equal image graphs and preprocessing have alike."""
    graphs = [digest for name, digest in sorted(record.digests.items()) if name in (IMAGE, f"{IMAGE}.data")]
    text = json.dumps([graphs, about.preprocessing], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _open_tokenizer(folder: Path, about: Description) -> Any:
    from dcclip_cli.model.tokenizer import load_tokenizer

    if file_sha256(folder / TOKENIZER) != about.tokenizer_sha256:
        raise DcclipError("{} is not the tokenizer of this bundle", _COPY, folder / TOKENIZER)
    tokenizer = load_tokenizer(folder)
    tokenizer.enable_truncation(about.context_length)
    tokenizer.enable_padding(pad_id=about.padding_id, length=about.context_length if about.fixed_length else None)
    return tokenizer


def _may_overflow(about: Description) -> bool:
    """Whether int8 sums can overflow in 16 bits: without VNNI, in bundles of versions that did not bound them."""
    return about.precision == "int8" and not about.int8_largest_pair_sum and has_vnni() is False


def _open_session(
    file: Path, takes: str, gives: str, provider: str, threads: int, exact: bool = False
) -> InferenceSession:
    """The session of a graph; `exact` prevents 16-bit overflows of int8 sums, at twice the time."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=[provider])
    except _onnxruntime_errors() as error:
        raise DcclipError("{} cannot be loaded: {}", _COPY, file, _reason(error)) from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if [node.name for node in (*inputs, *outputs)] != [takes, gives]:
        raise DcclipError("{} does not turn {} into {}: it is not part of a dcclip bundle", _COPY, file, takes, gives)
    if not inputs[0].shape or len(outputs[0].shape or ()) != 2:
        raise DcclipError(
            "{} does not say the shapes of {} and {}: it is not of a dcclip bundle", _COPY, file, takes, gives
        )
    return session


def _runner(session: InferenceSession, file: Path, takes: str, gives: str) -> Run:
    """A function that computes a graph. It raises DcclipError for inputs that the graph cannot take."""

    def run(items: np.ndarray) -> np.ndarray:
        try:
            return np.asarray(session.run([gives], {takes: items})[0])
        except _onnxruntime_errors() as error:
            raise DcclipError("{} cannot be computed: {}", _COPY, file, _reason(error)) from None

    return run


def _onnxruntime_errors() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    names = "Fail InvalidArgument InvalidGraph InvalidProtobuf NotImplemented NoSuchFile RuntimeException"
    return (*(getattr(states, name) for name in names.split()), UnicodeDecodeError)  # of a damaged name in a message


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _provider(device: str) -> str:
    import onnxruntime

    names = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    there = onnxruntime.get_available_providers()
    if device == "auto":
        device = "cuda" if names["cuda"] in there else "cpu"
    if names.get(device) not in there:
        raise DcclipError("onnxruntime finds no device {}", "omit --device, or use --device cpu", device)
    return names[device]
