"""ONNX bundles run by onnxruntime, without torch, and what all exports with a dcclip.json have in
common.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image
from pydantic_core import SchemaValidator
from pydantic_core import core_schema as of

from dcclip_cli.core.checksums import Record, read_record
from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import validated
from dcclip_cli.core.run_dir import RECORD
from dcclip_cli.model.known_words import KnownWords
from dcclip_cli.model.precision import INPUTS, NotFiniteError, check_logits, finite
from dcclip_cli.model.preprocess import flatten, read_preprocessing

Run = Callable[
    [np.ndarray], np.ndarray
]  # pixels (B, 3, H, W) or padded token ids (N, L) -> embeddings (B, D)
DESCRIPTION = RECORD
IMAGE = "image.onnx"
TEXT = "text.onnx"
TOKENIZER = "tokenizer.json"
PIXELS = "pixel_values"
IMAGE_EMBEDS = "image_embeds"
TOKENS = "input_ids"
TEXT_EMBEDS = "text_embeds"
RGB = "rgb_image"  # in place of PIXELS where the graph preprocesses: uint8 (1, height, width, 3)
# of an embedding; int8 and fp16 graphs end with a division by the length, too
_LENGTH_ERROR = 0.05
_COPY = Message("export the model again, or copy the whole bundle")
_UNEDITED = Message(
    "{}; for other prompts, use predict --template or export.prompts in the recipe", _COPY
)


@dataclass(frozen=True)
class Description:
    """The dcclip.json of an export, the part that is needed to run it.

    `preprocess`: whether the image graph takes `rgb_image` ("graph") or `pixel_values`
    ("outside").
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
    trained_dims: list[int]
    known: dict[str, Any] | None = None

    @classmethod
    def read(cls, content: Any) -> Self:
        """From the JSON object. Raises pydantic's ValidationError."""
        return cls(**_validator().validate_python(content))


def _validator() -> SchemaValidator:
    """Of a Description's JSON, without pydantic's models: importing these takes a fifth of a
    prediction's time.
    """
    templates = of.list_schema(of.str_schema(pattern=r"\{\}"), min_length=1)
    fields = {
        "name": of.str_schema(),
        "fingerprint": of.str_schema(),
        "parameters": of.int_schema(ge=0, lt=2**63),
        "precision": of.str_schema(),
        "preprocessing": of.no_info_after_validator_function(
            _supported, of.dict_schema(of.str_schema())
        ),
        "preprocess": of.literal_schema(["outside", "graph"]),
        "logit_scale": of.float_schema(gt=0, le=1e4),
        "logit_bias": of.nullable_schema(of.float_schema(ge=-1e4, le=1e4)),
        "prompts": of.dict_schema(of.str_schema(), templates),
        "context_length": of.int_schema(ge=1, le=2**16),
        "padding_id": of.int_schema(ge=0, lt=2**31),
        "fixed_length": of.bool_schema(),
        "trained_dims": of.list_schema(of.int_schema(ge=1, le=2**16)),
    }
    strict = of.CoreConfig(strict=True, allow_inf_nan=False)
    numbers = {
        "dimension": of.int_schema(ge=0, lt=2**16),
        "most": of.float_schema(),
        "fits": of.float_schema(),
    }
    known_fields = of.typed_dict_schema(
        {name: of.typed_dict_field(schema) for name, schema in numbers.items()}
    )
    required = {name: of.typed_dict_field(schema) for name, schema in fields.items()}
    optional = {"known": of.typed_dict_field(of.nullable_schema(known_fields), required=False)}
    return SchemaValidator(of.typed_dict_schema(required | optional, config=strict))


def _supported(preprocessing: dict[str, Any]) -> dict[str, Any]:
    read_preprocessing(preprocessing)
    return preprocessing


class ExportedEncoder:
    """An export with a dcclip.json and a tokenizer as an Encoder; `image` and `text` run its two
    towers.

    With a graph that preprocesses, `preprocess` returns an image's embedding (D,): images of
    different sizes cannot be in one batch, and are too large to wait for each other.
    `encode_pixels` then only checks the embeddings.
    """

    def __init__(
        self, folder: Path, description: Description, files: Sequence[str], image: Run, text: Run
    ) -> None:
        from dcclip_cli.model.tokenizer import load_tokenizer

        self.name = description.name
        self.fingerprint = description.fingerprint
        self.parameters = description.parameters
        self.precision = description.precision
        self.trained_dims: Sequence[int] = description.trained_dims
        self.image_fingerprint = description.fingerprint
        self.preprocessing: Mapping[str, Any] = description.preprocessing
        self.prompts: Mapping[str, Sequence[str]] = description.prompts
        self.logit_scale = description.logit_scale
        self.logit_bias = description.logit_bias
        self.known = None if description.known is None else KnownWords(**description.known)
        check_logits(self.logit_scale, self.logit_bias, self.name)
        # The weights of a large graph are in a file next to it.
        parts = (folder / f"{name}{suffix}" for name in files for suffix in ("", ".data"))
        self.size_bytes = sum(part.stat().st_size for part in parts if part.is_file())
        self._run_image = image
        self._run_text = text
        self._in_graph = description.preprocess == "graph"
        self._preprocess = read_preprocessing(description.preprocessing)
        self._tokenizer = load_tokenizer(folder)
        self._tokenizer.enable_truncation(description.context_length)
        length = description.context_length if description.fixed_length else None
        self._tokenizer.enable_padding(pad_id=description.padding_id, length=length)

    def preprocess(self, image: Image.Image) -> np.ndarray:
        if self._in_graph:
            return self._run_image(np.asarray(flatten(image))[np.newaxis])[0]
        return self._preprocess(image)

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        embeddings = (
            pixels if self._in_graph else self._run_image(self._preprocess.shortened(pixels))
        )
        return self._checked(embeddings, "images")

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return self._checked(self._run_text(self.tokenize(texts)), "texts")

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        encoded = self._tokenizer.encode_batch([" ".join(text.split()) for text in texts])
        return np.asarray([item.ids for item in encoded], np.int64)

    def _checked(self, embeddings: np.ndarray, inputs: str) -> np.ndarray:
        lengths = np.linalg.norm(finite(embeddings, self.name, inputs), axis=-1)
        if not (np.abs(lengths - 1) <= _LENGTH_ERROR).all():
            length = lengths[np.abs(lengths - 1).argmax()]
            raise NotFiniteError(
                "{} returned embeddings of {} with norm {:.3g} instead of 1",
                _COPY,
                self.name,
                INPUTS[inputs],
                length,
            )
        return embeddings


class OnnxEncoder(ExportedEncoder):
    """An ONNX bundle run by onnxruntime. `threads` is per tower: more than one slows small models
    on shared cores.
    """

    def __init__(self, folder: Path, device: str = "auto", threads: int = 1) -> None:
        description, record = read_description(folder)
        with (
            record.checking()
        ):  # which is over before the graphs are opened: damaged ones may crash onnxruntime
            import onnxruntime

            names = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
            providers = onnxruntime.get_available_providers()
            if device == "auto":
                device = "cuda" if names["cuda"] in providers else "cpu"
            if names.get(device) not in providers:
                raise DcclipError(
                    "onnxruntime does not support the device {}",
                    "remove --device, or use --device cpu",
                    device,
                )
        provider = names[device]
        image, text = (runner(folder / name, provider, threads) for name in (IMAGE, TEXT))
        super().__init__(folder, description, (IMAGE, TEXT), image, text)
        # Bundles with equal image graphs and preprocessing have this in common.
        graphs = [
            digest
            for name, digest in sorted(record.digests.items())
            if name in (IMAGE, f"{IMAGE}.data")
        ]
        of_images = json.dumps([graphs, description.preprocessing], sort_keys=True)
        self.image_fingerprint = hashlib.sha256(of_images.encode()).hexdigest()


def read_description(folder: Path, kind: str = "bundle") -> tuple[Description, Record]:
    """The dcclip.json of a bundle, or of another `kind` of export, and its record. Raises
    DcclipError if damaged.
    """
    record = read_record(folder / DESCRIPTION, _UNEDITED)
    if (recorded := record.content.get("kind")) != kind:
        raise DcclipError("{} describes a {} instead of a {}", _COPY, record.file, recorded, kind)
    return validated(Description.read, record.content, record.file, _COPY), record


def one_at_a_time(run: Run) -> Run:
    """`run` called with each item of a batch, for runtimes and graphs with a fixed batch size of
    one.
    """
    return lambda items: np.concatenate([run(item[np.newaxis]) for item in items])


def runner(file: Path, provider: str = "CPUExecutionProvider", threads: int = 1) -> Run:
    """A function that computes a graph. Both raise DcclipError: for a graph, and for inputs, that
    are no use.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    names = (
        "Fail InvalidArgument InvalidGraph InvalidProtobuf NotImplemented NoSuchFile "
        "RuntimeException"
    )
    errors = tuple(getattr(states, name) for name in names.split())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=[provider])
    except errors as error:
        raise DcclipError("{} cannot be loaded: {}", _COPY, file, _reason(error)) from None
    takes = session.get_inputs()[0]

    def run(items: np.ndarray) -> np.ndarray:
        ids = items.astype(np.int32) if takes.type == "tensor(int32)" else items
        try:
            embeddings = np.asarray(session.run(None, {takes.name: ids})[0])
        except errors as error:
            raise DcclipError(
                "onnxruntime cannot run {}: {}", _COPY, file, _reason(error)
            ) from None
        if embeddings.ndim != 2:
            raise DcclipError(
                "{} returned an array of shape {} instead of (B, D)", _COPY, file, embeddings.shape
            )
        return embeddings

    return run


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
