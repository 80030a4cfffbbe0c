"""Models of open_clip, transformers and UForm on a hub or in a directory, judged by their files before one is built.

Every file that is needed is there, nothing leads out of a directory or runs code, and no number is beyond all bounds.
The rest is the libraries' to judge: `library_errors` turns what they raise into an error that names the model.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import read_json
from dcclip_cli.hub import cached_folder, files_on_hub
from dcclip_cli.model.preprocess import Preprocessing
from dcclip_cli.model.weights import CONFIG, OPEN_CLIP_WEIGHTS, TRANSFORMERS_WEIGHTS, UFORM_WEIGHTS, find_weights

TRANSFORMERS_CONFIG, IMAGE_PROCESSOR = "config.json", "preprocessor_config.json"
SENTENCEPIECE = ("sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
COPY_AGAIN = Message("copy the whole model directory again")
DUAL_ENCODERS = "AltCLIP, ChineseCLIP, CLIP, EmbeddingGemma 2, FG-CLIP2, SigLIP, SigLIP2, MetaCLIP2 or UForm"
UFORM = "uform"  # the `model_type` that UForm's configurations do not have
_OF_TWO = "vision-text-dual-encoder"  # of any two towers, as dcclip exports students
GEMMA = "embedding_gemma2"
_MODEL_TYPES = {"altclip", "chinese_clip", "clip", "fgclip2", "metaclip_2", "siglip", "siglip2", GEMMA, _OF_TWO, UFORM}
_TOKENIZER_ARGUMENTS = {"additional_special_tokens", "clean", "language", "reduction_mask", "strip_sep_token"}
_PREPROCESSING = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color", "crop"}
_ELSEWHERE = Message("use the name of a network that timm itself has, and keep its weights in the directory")
_MOST, _MOST_LAYERS = 4_000_000, 512  # of any number in a configuration, and of layers

# What a model needs, by the library that wrote it: one file of each group.
_NEEDED: Mapping[str, Sequence[Sequence[str]]] = {
    "open_clip": ((CONFIG,), OPEN_CLIP_WEIGHTS),
    UFORM: (
        (TRANSFORMERS_CONFIG,),
        [name.replace("image", "text") for name in UFORM_WEIGHTS],
        ("tokenizer.json",),
    ),
    "transformers": (
        (TRANSFORMERS_CONFIG,),
        TRANSFORMERS_WEIGHTS,
        ("tokenizer.json", "vocab.txt", "vocab.json", *SENTENCEPIECE),
        (IMAGE_PROCESSOR, "processor_config.json"),
    ),
}


@contextmanager
def library_errors(what: str, hint: str) -> Iterator[None]:
    """Whatever another library raises for a configuration that it cannot use becomes a DcclipError, begun by `what`."""
    from huggingface_hub.errors import EntryNotFoundError, StrictDataclassError

    unusable = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError)
    try:
        yield
    except (*unusable, RuntimeError, TypeError, ValueError, EntryNotFoundError, StrictDataclassError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
        if not reason and (frames := traceback.extract_tb(error.__traceback__)):
            reason = frames[-1].line or ""  # of an assertion without words, what it asserts
        if type(error) not in (OSError, RuntimeError, ValueError):
            reason = f"{type(error).__name__}: {reason}"
        raise DcclipError("{}: {}", hint, what, reason[:300]) from None


def checked_json(file: Path, hint: str = COPY_AGAIN, most: int = _MOST) -> dict[str, Any]:
    """The JSON object in a configuration. Raises DcclipError for a number beyond `most`, or more than 512 layers.

    Building a model of such sizes would take minutes, or all memory, before anything is compared.
    """
    content = read_json(file, hint)
    for key, value in _numbers(content):
        if abs(value) > (_MOST_LAYERS if key.endswith("layers") else most):
            raise DcclipError("{}: {} is {}: no model has that", hint, file, key, str(value)[:60])
    return content


def _numbers(content: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    """The numbers in JSON, each with its key: `text_config.hidden_size`, without those of a tower for sound."""
    if isinstance(content, dict | list):
        for name, value in content.items() if isinstance(content, dict) else enumerate(content):
            if name != "audio_config":
                yield from _numbers(value, f"{key}.{name}" if key else str(name))
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield key, content


def open_clip_config(folder: Path, on_hub: bool = False) -> dict[str, Any]:
    """The open_clip_config.json of a model directory, or of a copy of a repository `on_hub`.

    Raises DcclipError for sizes beyond all bounds, and what leads out of the directory or runs code.
    """
    file = folder / CONFIG
    content = checked_json(file, Message("make a model with: dcclip run recipes/quickstart.yaml"))
    model: Any = content.get("model_cfg")
    for name in ("text_cfg", "vision_cfg"):
        if not isinstance(model, dict) or not isinstance(model.get(name), dict):
            raise DcclipError("{}: {} is missing, or no section", COPY_AGAIN, file, f"model_cfg.{name}")
    text, network = model["text_cfg"], model["vision_cfg"].get("timm_model_name")
    if unknown := {*(text.get("tokenizer_kwargs") or ())} - _TOKENIZER_ARGUMENTS:
        where = f"{file}: model_cfg.text_cfg.tokenizer_kwargs: {min(unknown)}"
        raise DcclipError("{} is not allowed: it could run code or read other files", "remove it", where)
    if text.get("pool_type") == "eos" and text.get("eos_id", 2) not in range(_MOST):
        where = f"{file}: model_cfg.text_cfg.eos_id"
        raise DcclipError("{} is no token's number: {}", COPY_AGAIN, where, str(text["eos_id"])[:60])
    with library_errors(f"{file}: preprocess_cfg", COPY_AGAIN):
        settings = dict(content.get("preprocess_cfg") or {})
        if unknown := settings.keys() - _PREPROCESSING:
            raise ValueError(Message("{} is no key of it", min(unknown)))
        Preprocessing.from_config(settings)
    if network is not None and not (on_hub and str(network).startswith("hf-hub:")):
        check_timm_name(str(network), f"{file}: model_cfg.vision_cfg.timm_model_name", _ELSEWHERE)
    return content


def check_timm_name(network: str, where: str, hint: str | None = None) -> None:
    """Raise DcclipError, with the nearest right name, unless timm has a network of that name."""
    import difflib

    import timm

    if ":" in network:
        message = Message("{}: {} leads to a hub or another directory", where, network)
        raise DcclipError(message, hint or "write the name of a network that timm itself has")
    name = network.partition(".")[0]
    if timm.is_model(name):
        with suppress(RuntimeError):  # it has no such tag
            timm.get_pretrained_cfg(network, allow_unregistered=True)
            return
    networks = timm.list_pretrained(name) if timm.is_model(name) else timm.list_models()
    near = ", ".join(difflib.get_close_matches(network, networks, 3, 0.5))
    advice = (
        Message("did you mean {}?", near) if near else Message("list timm's networks in Python: timm.list_models()")
    )
    raise DcclipError("{}: timm has no network '{}'", advice, where, network)


def transformers_config(file: Path, name: str) -> dict[str, Any]:
    """The config.json of a dual encoder, UForm's with `model_type: uform`.

    Raises DcclipError for other models, and what runs code or leads elsewhere.
    """
    content = checked_json(file)
    if "model_type" not in content and content.keys() >= {"text_encoder", "image_encoder"}:
        return content | {"model_type": UFORM}
    kind, image = content.get("model_type"), content.get("vision_config")
    if kind not in _MODEL_TYPES:
        message = Message(
            "{} is a model of type {}, not an image-text dual encoder ({}: model_type)", name, kind, file.name
        )
        raise DcclipError(message, Message("use {}", DUAL_ENCODERS))
    parts = [content, *(value for value in content.values() if isinstance(value, dict))]
    for key in ("quantization_config", "attn_implementation", "_attn_implementation"):
        if any(part.get(key) not in (None, "eager", "sdpa") for part in parts):  # others import packages, or download
            raise DcclipError("{}: {} is not supported", "remove it", file, key)
    if kind == _OF_TWO and isinstance(image, dict):
        if image.get("backbone") or image.get("use_pretrained_backbone"):
            raise DcclipError("{}: vision_config.backbone names a network elsewhere", _ELSEWHERE, file)
        if isinstance(image.get("architecture"), str):
            check_timm_name(image["architecture"], f"{file}: vision_config.architecture", _ELSEWHERE)
    return content


def check_directory(folder: Path) -> None:
    """Raise DcclipError where a file of a model directory leads out of it.

    In the hub's cache, a repository's files are links into the `blobs` next to its `snapshots`.
    """
    inside = [folder.resolve()]
    if inside[0].parent.name == "snapshots":
        inside.append(inside[0].parents[1] / "blobs")
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink():
            try:
                target = entry.resolve(strict=True)
            except (OSError, RuntimeError):  # a loop
                raise DcclipError("{} is a link to something that does not exist", COPY_AGAIN, entry) from None
            if not any(target.is_relative_to(root) for root in inside):
                raise DcclipError(
                    "{} is a link to {}, outside the model directory", "copy the file there", entry, target
                )
    if (folder / "adapter_config.json").exists():
        message = Message("{} is an adapter of another model (adapter_config.json)", folder)
        raise DcclipError(message, "merge it into that model with peft, and save the result")


def check_model(model: str, library: str) -> None:
    """Raise DcclipError where a file of the model is missing, or the hub is needed and cannot be reached.

    `library` (transformers or open_clip) loads it. Of open_clip's ARCH/TAG the weights are looked for.
    """
    name = model.removeprefix("hf-hub:")
    is_here = Path(name).is_dir()
    if not is_here and Path(name).is_absolute():
        raise DcclipError("{} is not a directory", "check the path, or give a name on the Hugging Face hub", name)
    if not is_here and library == "open_clip" and name == model:
        import open_clip

        architecture, _, tag = model.rpartition("/")
        if not architecture:
            raise DcclipError(
                "open_clip model '{}' has no tag", "write ARCH/TAG, as in ViT-B-32/laion2b_s34b_b79k", model
            )
        config = open_clip.get_pretrained_cfg(architecture, tag)
        if not config:
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture))
            tags = tags or Message("none: the architecture is unknown")
            raise DcclipError("open_clip has no {}", "its tags of {}: {}", model, architecture, tags)
        return _check_repository(str(config.get("hf_hub", "")).rstrip("/"), OPEN_CLIP_WEIGHTS)
    folder = Path(name) if is_here else whole_cached_folder(name)
    files = files_on_hub(name) if folder is None else _names(folder)
    if lacking := _missing(files):
        raise DcclipError(
            "{} has no {}",
            "copy or download the whole model again; name a directory written by save_pretrained or by dcclip",
            *(name, lacking),
        )
    if folder is None:
        return
    if is_here:
        check_directory(folder)
    if CONFIG in files:
        open_clip_config(folder, on_hub=not is_here)
    else:
        transformers_config(folder / TRANSFORMERS_CONFIG, name)
    find_weights(str(folder), (*OPEN_CLIP_WEIGHTS, *TRANSFORMERS_WEIGHTS, *UFORM_WEIGHTS))  # with all their parts


def whole_cached_folder(name: str) -> Path | None:
    """The folder of a hub's model in the local cache; None if one of its files is missing."""
    cached = cached_folder(name, CONFIG) or cached_folder(name)
    return cached if cached and not _missing(_names(cached)) else None


def check_timm(network: str) -> None:
    """Raise DcclipError unless timm's weights of a network are in the local cache or on a hub that can be reached."""
    import timm

    config = timm.get_pretrained_cfg(network, allow_unregistered=True)
    if config is None or not config.has_weights:
        raise DcclipError(
            "timm has no pretrained weights of {}", "name another network, or a .safetensors file", network
        )
    _check_repository((config.hf_hub_id or "").partition("@")[0], TRANSFORMERS_WEIGHTS)


def _check_repository(name: str, weights: Collection[str]) -> None:
    if name and not any(cached_folder(name, file) for file in weights):
        files_on_hub(name)


def _names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def _missing(files: Collection[str]) -> str:
    """What a model with these files lacks: names of which one would do; empty if it lacks nothing."""
    present = {file.removesuffix(".index.json") for file in files}  # of weights in several files
    library = "open_clip" if CONFIG in present else "transformers" if present.isdisjoint(UFORM_WEIGHTS) else UFORM
    return next((" or ".join(names) for names in _NEEDED[library] if present.isdisjoint(names)), "")
