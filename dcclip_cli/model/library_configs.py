"""Configurations that open_clip and transformers wrote, validated before anything is built from them, without torch.

Sizes are bounded, and in a model directory nothing may lead to a hub or out of the directory.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import read_json, validated
from dcclip_cli.model.preprocess import MAX_SIDE, Preprocessing
from dcclip_cli.model.weights import CONFIG

TRANSFORMERS_CONFIG, IMAGE_PROCESSOR = "config.json", "preprocessor_config.json"
COPY_AGAIN = Message("copy the whole model directory again")
DUAL_ENCODERS = "AltCLIP, ChineseCLIP, CLIP, FG-CLIP2, SigLIP, SigLIP2, MetaCLIP2 or UForm"
_OF_TWO = "vision-text-dual-encoder"  # of any two towers, as dcclip exports students
_MODEL_TYPES = ("altclip", "chinese_clip", "clip", "fgclip2", "metaclip_2", "siglip", "siglip2", _OF_TWO)
_TOKENIZER_ARGUMENTS = ("additional_special_tokens", "clean", "language", "reduction_mask", "strip_sep_token")
_PREPROCESSING = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color", "crop"}
_ELSEWHERE = Message("use the name of a network that timm itself has, and keep its weights in the directory")


def _whole(top: int, items: int = 1, least: int = 1) -> AfterValidator:
    """A whole number up to `top`, or, if it has `items`, a list of so many."""

    def check(value: Any) -> Any:
        listed = value if isinstance(value, list) and items > 1 else [value]
        numbers = all(type(one) is int and least <= one <= top for one in listed)
        if not numbers or (isinstance(value, list) and len(value) != items):
            more = f", or a list of {items}" if items > 1 else ""
            got = f" (got {value!r:.60})" if isinstance(value, int | float | str | list) else ""
            raise ValueError(
                Message(
                    "should be a whole number from {least} to {top:,}{more}{got}",
                    least=least,
                    top=top,
                    more=more,
                    got=got,
                )
            )
        return value

    return AfterValidator(check)


Width = Annotated[Any, _whole(65_536)]
Layers = Annotated[Any, _whole(512)]
Side = Annotated[Any, _whole(4_096, items=2)]  # of an image or a patch
Length = Annotated[Any, _whole(1 << 20)]  # of a text in tokens
Vocabulary = Annotated[Any, _whole(4_000_000)]
Ratio = Annotated[float, Field(gt=0, le=64)]


class LibraryConfig(BaseModel):
    """A part of another library's configuration: what is no field here is that library's to judge."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True)


@contextmanager
def library_errors(what: str, hint: str) -> Iterator[None]:
    """Whatever another library raises for a configuration that it cannot use becomes a DcclipError, begun by `what`."""
    from huggingface_hub.errors import StrictDataclassError

    unusable = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError)
    try:
        yield
    except (*unusable, RuntimeError, TypeError, ValueError, StrictDataclassError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DcclipError(Message("{what}: {error}", what=what, error=_reason_of(error)), hint) from None


def _reason_of(error: Exception) -> str:
    """What an error says in one line; of an assertion without words, what it asserts."""
    said = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    if not said and (frames := traceback.extract_tb(error.__traceback__)):
        said = frames[-1].line or ""
    return (said if type(error) in (OSError, RuntimeError, ValueError) else f"{type(error).__name__}: {said}")[:300]


# ---- open_clip


class VisionConfig(LibraryConfig):
    """open_clip's `vision_cfg`."""

    layers: Annotated[Any, _whole(512, items=4)] = 12
    width: Width = 768
    head_width: Width = 64
    mlp_ratio: Ratio = 4.0
    patch_size: Side | None = 16
    image_size: Side = 224
    attn_pooler_queries: Width = 256
    attn_pooler_heads: Width = 8
    timm_model_name: str | None = None


class TextConfig(LibraryConfig):
    """open_clip's `text_cfg`."""

    context_length: Length = 77
    vocab_size: Vocabulary = 49_408
    width: Width = 512
    heads: Width = 8
    layers: Annotated[Any, _whole(512, least=0)] = 12
    mlp_ratio: Ratio = 4.0
    pad_id: Annotated[Any, _whole(4_000_000, least=0)] = 0
    eos_id: Annotated[Any, _whole(4_000_000, least=0)] = 2
    hf_model_name: str | None = None
    hf_tokenizer_name: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = None


class ModelConfig(LibraryConfig):
    """open_clip's `model_cfg`."""

    embed_dim: Width
    vision_cfg: VisionConfig
    text_cfg: TextConfig
    multimodal_cfg: TextConfig | None = None


def _preprocessing(config: dict[str, Any]) -> dict[str, Any]:
    if unknown := config.keys() - _PREPROCESSING:
        raise ValueError(
            Message(
                "{unknown} is no key of it (these are: {preprocessing})",
                unknown=min(unknown),
                preprocessing=", ".join(sorted(_PREPROCESSING)),
            )
        )
    Preprocessing.from_config(config)
    return config


class OpenClipConfig(LibraryConfig):
    """An open_clip_config.json."""

    model_cfg: ModelConfig
    preprocess_cfg: Annotated[dict[str, Any], AfterValidator(_preprocessing)] = {}


def open_clip_config(folder: Path, on_hub: bool = False) -> dict[str, Any]:
    """The open_clip_config.json of a model directory, or of a copy of a repository `on_hub`.

    Raises DcclipError for sizes beyond all bounds, wrong types, and what leads out of the directory or runs code.
    """
    file = folder / CONFIG
    content = read_json(file, Message("make a model with: dcclip run recipes/quickstart.yaml"))
    found = validated(OpenClipConfig, content, file, COPY_AGAIN).model_cfg
    unknown = (found.text_cfg.tokenizer_kwargs or {}).keys() - set(_TOKENIZER_ARGUMENTS)
    if unknown:
        where = f"{file}: model_cfg.text_cfg.tokenizer_kwargs: {min(unknown)}"
        raise DcclipError("{where} is not allowed: it could run code or read other files", "remove it", where=where)
    network = found.vision_cfg.timm_model_name
    if network is not None and not (on_hub and network.startswith("hf-hub:")):
        check_timm_name(network, f"{file}: model_cfg.vision_cfg.timm_model_name", _ELSEWHERE)
    return content


def check_timm_name(network: str, where: str, hint: str | None = None) -> None:
    """Raise DcclipError, with the nearest right name, unless timm has a network of that name."""
    import difflib

    import timm

    if ":" in network:
        what = Message("{where}: {network} leads to a hub or another directory", where=where, network=network)
        raise DcclipError(what, hint or "write the name of a network that timm itself has")
    name, _, tag = network.partition(".")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3, 0.5)
        advice = (
            Message("did you mean {near}?", near=", ".join(near))
            if near
            else Message("list timm's networks in Python: timm.list_models()")
        )
        raise DcclipError(Message("{where}: timm has no network '{network}'", where=where, network=network), advice)
    try:
        timm.get_pretrained_cfg(network, allow_unregistered=True)
    except RuntimeError:  # of the tag
        tags = [one.partition(".")[2] for one in timm.list_pretrained(name)]
        near = difflib.get_close_matches(tag, tags, 1, 0.5) or tags[:3]
        advice = (
            Message("its tags: {near}", near=", ".join(near))
            if near
            else Message("write {name}: it has no tags", name=name)
        )
        raise DcclipError(
            Message("{where}: timm's network {name} has no tag '{tag}'", where=where, name=name, tag=tag), advice
        ) from None


# ---- transformers


class TowerConfig(LibraryConfig):
    """transformers' `text_config` or `vision_config`, whatever the model; also that of a text tower by itself."""

    hidden_size: Width = 768
    intermediate_size: Width = 3_072
    project_dim: Width | None = None
    projection_dim: Width | None = None
    projection_size: Width | None = None
    num_hidden_layers: Layers = 12
    num_attention_heads: Width = 12
    vocab_size: Vocabulary = 30_000
    max_position_embeddings: Length = 77
    longtext_len: Length = 196  # of FG-CLIP2
    num_patches: Length = 256  # of NaFlex models
    type_vocab_size: Width = 1
    image_size: Side = 224
    patch_size: Side = 16
    num_channels: Annotated[Any, _whole(16)] = 3
    # Which would import other packages, or download from the hub.
    quantization_config: None = None
    attn_implementation: Literal["eager", "sdpa"] | None = None
    attn_implementation_too: Literal["eager", "sdpa"] | None = Field(None, alias="_attn_implementation")


class TransformersConfig(TowerConfig):
    """The config.json of a dual encoder of transformers."""

    model_type: str
    text_config: TowerConfig | None = None
    vision_config: TowerConfig | None = None
    # Of configurations from 2022, which prefer these.
    text_config_dict: TowerConfig | None = None
    vision_config_dict: TowerConfig | None = None


class UFormTower(LibraryConfig):
    """The `text_encoder` or `image_encoder` in the config.json of UForm."""

    dim: Width
    num_layers: Layers
    num_heads: Width
    embedding_dim: Width
    vocab_size: Vocabulary = 30_000
    max_position_embeddings: Length = 77
    image_size: Annotated[Any, _whole(4_096)] = 224
    patch_size: Annotated[Any, _whole(4_096)] = 16


class UFormConfig(LibraryConfig):
    """The config.json of UForm, which transformers does not know."""

    text_encoder: UFormTower
    image_encoder: UFormTower


def _sides(size: Any) -> Any:
    """The size of images in any form that transformers had: a number, two of them, or a mapping."""
    listed = size if isinstance(size, list) else list(size.values()) if isinstance(size, dict) else [size]
    if not listed or any(one is not None and (type(one) is not int or not 1 <= one <= MAX_SIDE) for one in listed):
        raise ValueError(
            Message("should be whole numbers from 1 to {max_side:,} (got {size!r:.60})", max_side=MAX_SIDE, size=size)
        )
    return size


Sides = Annotated[Any, AfterValidator(_sides)]


class ImageProcessorConfig(LibraryConfig):
    """A preprocessor_config.json."""

    size: Sides = None
    crop_size: Sides = None
    image_mean: Annotated[list[float], Field(min_length=3, max_length=3)] | None = None
    image_std: Annotated[list[float], Field(min_length=3, max_length=3)] | None = None
    resample: Annotated[int, Field(ge=0, le=5)] | None = None
    rescale_factor: Annotated[float, Field(gt=0, le=1)] | None = None


def transformers_config(file: Path, name: str) -> TransformersConfig:
    """The config.json of a dual encoder. Raises DcclipError for other models, wrong types, sizes beyond all bounds."""
    content = read_json(file, COPY_AGAIN)
    kind = content.get("model_type")
    if isinstance(kind, str) and kind not in _MODEL_TYPES:
        what = Message(
            "{name} is a model of type {kind}, not an image-text dual encoder ({file_name}: model_type)",
            name=name,
            kind=kind,
            file_name=file.name,
        )
        raise DcclipError(what, Message("use {dual_encoders}", dual_encoders=DUAL_ENCODERS))
    config = validated(TransformersConfig, content, file, COPY_AGAIN)
    image = (config.vision_config.model_extra if config.vision_config else None) or {}
    if kind == _OF_TWO and (image.get("backbone") or image.get("use_pretrained_backbone")):
        raise DcclipError(Message("{file}: vision_config.backbone names a network elsewhere", file=file), _ELSEWHERE)
    if kind == _OF_TWO and isinstance(image.get("architecture"), str):
        check_timm_name(image["architecture"], f"{file}: vision_config.architecture", _ELSEWHERE)
    return config


def is_uform(file: Path) -> bool:
    """Whether a config.json is UForm's. Raises DcclipError for wrong types, and sizes beyond all bounds."""
    content = read_json(file, COPY_AGAIN)
    if "model_type" in content or not content.keys() >= UFormConfig.model_fields.keys():
        return False
    validated(UFormConfig, content, file, COPY_AGAIN)
    return True


def text_tower_config(file: Path) -> dict[str, Any]:
    """The config.json of a text tower of transformers, or {} of another model. Raises DcclipError as above."""
    from open_clip.hf_configs import arch_dict

    content = read_json(file, COPY_AGAIN)
    if content.get("model_type") not in list(arch_dict):
        return {}
    validated(TowerConfig, content, file, COPY_AGAIN)
    return content


# ---- directories


def check_directory(folder: Path) -> None:
    """Raise DcclipError where a file of a model directory leads out of it.

    In the hub's cache, a repository's files are links into the `blobs` next to its `snapshots`.
    """
    inside = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        inside.append(folder.resolve().parents[1] / "blobs")
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink():
            try:
                target = entry.resolve(strict=True)
            except (OSError, RuntimeError):  # a loop
                raise DcclipError(
                    Message("{entry} is a link to something that does not exist", entry=entry), COPY_AGAIN
                ) from None
            if not any(target.is_relative_to(one) for one in inside):
                raise DcclipError(
                    "{entry} is a link to {target}, outside the model directory",
                    "copy the file there",
                    entry=entry,
                    target=target,
                )
    if (folder / "adapter_config.json").exists():
        what = Message("{folder} is an adapter of another model (adapter_config.json)", folder=folder)
        raise DcclipError(what, "merge it into that model with peft, and save the result")
