"""Models of open_clip, transformers and UForm on a hub or in a directory, judged by their files before one is built.

No size is beyond all bounds, every file that is needed is there, and nothing leads out of a directory or runs code. The
rest is the libraries' to judge: `library_errors` turns what they raise into an error that names the model.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import read_json
from dcclip_cli.hub import cached_folder, files_on_hub
from dcclip_cli.model.preprocess import MAX_SIDE, Preprocessing
from dcclip_cli.model.weights import CONFIG, OPEN_CLIP_WEIGHTS, TRANSFORMERS_WEIGHTS, UFORM_WEIGHTS, shards_of

TRANSFORMERS_CONFIG, IMAGE_PROCESSOR = "config.json", "preprocessor_config.json"
COPY_AGAIN = Message("copy the whole model directory again")
DUAL_ENCODERS = "AltCLIP, ChineseCLIP, CLIP, FG-CLIP2, SigLIP, SigLIP2, MetaCLIP2 or UForm"
_OF_TWO = "vision-text-dual-encoder"  # of any two towers, as dcclip exports students
_MODEL_TYPES = ("altclip", "chinese_clip", "clip", "fgclip2", "metaclip_2", "siglip", "siglip2", _OF_TWO)
_TOKENIZER_ARGUMENTS = ("additional_special_tokens", "clean", "language", "reduction_mask", "strip_sep_token")
_PREPROCESSING = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color", "crop"}
_ELSEWHERE = Message("use the name of a network that timm itself has, and keep its weights in the directory")
_MOST, _MOST_LAYERS = 4_000_000, 512  # of any number in a configuration, and of layers
_SIDES = ("image_size", "size", "crop_size")  # and all numbers in them

# What a directory or a repository needs besides its configuration, by the library that wrote it: one file of each line.
_NEEDED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "open_clip": {"configuration": (CONFIG,), "weights": OPEN_CLIP_WEIGHTS},
    "uform": {
        "configuration": (TRANSFORMERS_CONFIG,),
        "weights": tuple(name.replace("image", "text") for name in UFORM_WEIGHTS),
        "tokenizer": ("tokenizer.json",),
    },
    "transformers": {
        "configuration": (TRANSFORMERS_CONFIG,),
        "weights": TRANSFORMERS_WEIGHTS,
        "tokenizer": (
            *("tokenizer.json", "vocab.txt", "vocab.json"),
            *("sentencepiece.bpe.model", "spiece.model", "tokenizer.model"),
        ),
        "preprocessing": ("preprocessor_config.json", "processor_config.json"),
    },
}


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
        raise DcclipError("{}: {}", hint, what, _reason_of(error)) from None


def _reason_of(error: Exception) -> str:
    """What an error says in one line; of an assertion without words, what it asserts."""
    said = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    if not said and (frames := traceback.extract_tb(error.__traceback__)):
        said = frames[-1].line or ""
    return (said if type(error) in (OSError, RuntimeError, ValueError) else f"{type(error).__name__}: {said}")[:300]


def checked_json(file: Path, hint: str = COPY_AGAIN) -> dict[str, Any]:
    """The JSON object in a configuration. Raises DcclipError for one with a number that no model has."""
    content = read_json(file, hint)
    for key, value in _numbers(content):
        steps = key.split(".")
        side = any(step in _SIDES for step in steps)
        most = MAX_SIDE if side else _MOST_LAYERS if steps[-1].endswith("layers") else _MOST
        if abs(value) > most or (side and value < 1):
            what = Message("{}: {} is {}: no model has that", file, key, str(value)[:60])
            raise DcclipError(what, hint)
    return content


def _numbers(content: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    """The numbers in JSON, each with its key: `text_config.hidden_size`."""
    if isinstance(content, dict | list):
        for name, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _numbers(value, f"{key}.{name}" if key else str(name))
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield key, content


def _section(content: Any, keys: str, file: Path) -> dict[str, Any]:
    """The section at `keys` of a configuration. Raises DcclipError where it is not there."""
    found = content
    for key in keys.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise DcclipError("{}: {} is missing, or no section", COPY_AGAIN, file, keys)
    return found


def open_clip_config(folder: Path, on_hub: bool = False) -> dict[str, Any]:
    """The open_clip_config.json of a model directory, or of a copy of a repository `on_hub`.

    Raises DcclipError for sizes beyond all bounds, and what leads out of the directory or runs code.
    """
    file = folder / CONFIG
    content = checked_json(file, Message("make a model with: dcclip run recipes/quickstart.yaml"))
    text, vision = (_section(content, f"model_cfg.{name}_cfg", file) for name in ("text", "vision"))
    if unknown := {*(text.get("tokenizer_kwargs") or ())} - {*_TOKENIZER_ARGUMENTS}:
        where = f"{file}: model_cfg.text_cfg.tokenizer_kwargs: {min(unknown)}"
        raise DcclipError("{} is not allowed: it could run code or read other files", "remove it", where)
    with library_errors(f"{file}: preprocess_cfg", COPY_AGAIN):
        settings = dict(content.get("preprocess_cfg") or {})
        if unknown := settings.keys() - _PREPROCESSING:
            raise ValueError(Message("{} is no key of it", min(unknown)))
        Preprocessing.from_config(settings)
    network = vision.get("timm_model_name")
    if network is not None and not (on_hub and str(network).startswith("hf-hub:")):
        check_timm_name(str(network), f"{file}: model_cfg.vision_cfg.timm_model_name", _ELSEWHERE)
    return content


def check_timm_name(network: str, where: str, hint: str | None = None) -> None:
    """Raise DcclipError, with the nearest right name, unless timm has a network of that name."""
    import difflib

    import timm

    if ":" in network:
        what = Message("{}: {} leads to a hub or another directory", where, network)
        raise DcclipError(what, hint or "write the name of a network that timm itself has")
    name, _, tag = network.partition(".")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3, 0.5)
        advice = (
            Message("did you mean {}?", ", ".join(near))
            if near
            else Message("list timm's networks in Python: timm.list_models()")
        )
        raise DcclipError("{}: timm has no network '{}'", advice, where, network)
    try:
        timm.get_pretrained_cfg(network, allow_unregistered=True)
    except RuntimeError:  # of the tag
        tags = [one.partition(".")[2] for one in timm.list_pretrained(name)]
        near = difflib.get_close_matches(tag, tags, 1, 0.5) or tags[:3]
        advice = Message("its tags: {}", ", ".join(near)) if near else Message("write {}: it has no tags", name)
        raise DcclipError("{}: timm's network {} has no tag '{}'", advice, where, name, tag) from None


def transformers_config(file: Path, name: str) -> dict[str, Any]:
    """The config.json of a dual encoder. Raises DcclipError for other models, and what runs code or leads elsewhere."""
    content = checked_json(file)
    kind = content.get("model_type")
    if kind not in _MODEL_TYPES:
        what = Message(
            "{} is a model of type {}, not an image-text dual encoder ({}: model_type)", name, kind, file.name
        )
        raise DcclipError(what, Message("use {}", DUAL_ENCODERS))
    parts = [content, *(one for one in content.values() if isinstance(one, dict))]
    for key in ("quantization_config", "attn_implementation", "_attn_implementation"):
        if any(one.get(key) not in (None, "eager", "sdpa") for one in parts):  # others import packages, or download
            raise DcclipError("{}: {} is not supported", "remove it", file, key)
    image = content.get("vision_config")
    if kind == _OF_TWO and isinstance(image, dict):
        if image.get("backbone") or image.get("use_pretrained_backbone"):
            what = Message("{}: vision_config.backbone names a network elsewhere", file)
            raise DcclipError(what, _ELSEWHERE)
        if isinstance(image.get("architecture"), str):
            check_timm_name(image["architecture"], f"{file}: vision_config.architecture", _ELSEWHERE)
    return content


def is_uform(file: Path) -> bool:
    """Whether a config.json is UForm's, which transformers does not know. Raises DcclipError as `checked_json`."""
    content = checked_json(file)
    return "model_type" not in content and content.keys() >= {"text_encoder", "image_encoder"}


def text_tower_config(file: Path) -> dict[str, Any]:
    """The config.json of a text tower of transformers, or {} of another model. Raises DcclipError as above."""
    from open_clip.hf_configs import arch_dict

    content = checked_json(file)
    return content if content.get("model_type") in list(arch_dict) else {}


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
                raise DcclipError("{} is a link to something that does not exist", COPY_AGAIN, entry) from None
            if not any(target.is_relative_to(one) for one in inside):
                raise DcclipError(
                    "{} is a link to {}, outside the model directory", "copy the file there", entry, target
                )
    if (folder / "adapter_config.json").exists():
        what = Message("{} is an adapter of another model (adapter_config.json)", folder)
        raise DcclipError(what, "merge it into that model with peft, and save the result")


def check_model(model: str, library: str) -> None:
    """Raise DcclipError where a file of the model is missing, or the hub is needed and cannot be reached.

    `library` (transformers or open_clip) loads it.
    """
    name = model.removeprefix("hf-hub:")
    folder = Path(name) if Path(name).is_dir() else None
    if folder is None and Path(name).is_absolute():
        raise DcclipError("{} is not a directory", "check the path, or give a name on the Hugging Face hub", name)
    if folder is None and library == "open_clip" and name == model:
        return _check_tag(model)
    if folder is None:
        folder = whole_cached_folder(name)
    files = files_on_hub(name) if folder is None else _names(folder)
    if lacking := _missing(files):
        kind, names = next(iter(lacking.items()))
        what = Message("{} has no {}: {}", name, kind, " or ".join(names))
        raise DcclipError(
            what, "copy or download the whole model again; name a directory written by save_pretrained or by dcclip"
        )
    if folder is None:
        return
    if folder == Path(name):
        check_directory(folder)
    _check_parts(folder)
    if CONFIG in files:
        open_clip_config(folder, on_hub=folder != Path(name))
    elif not is_uform(folder / TRANSFORMERS_CONFIG):
        transformers_config(folder / TRANSFORMERS_CONFIG, name)


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
    if config.hf_hub_id:
        repository = config.hf_hub_id.partition("@")[0]
        if not any(cached_folder(repository, file) for file in TRANSFORMERS_WEIGHTS):
            files_on_hub(repository)


def _check_tag(model: str) -> None:
    """Raise DcclipError unless open_clip's weights ARCH/TAG are in the local cache or on a hub that can be reached."""
    import open_clip

    architecture, _, tag = model.rpartition("/")
    if not architecture:
        raise DcclipError("open_clip model '{}' has no tag", "write ARCH/TAG, as in ViT-B-32/laion2b_s34b_b79k", model)
    config = open_clip.get_pretrained_cfg(architecture, tag)
    if not config:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or Message(
            "none: the architecture is unknown"
        )
        raise DcclipError("open_clip has no {}", "its tags of {}: {}", model, architecture, tags)
    repository = str(config.get("hf_hub", "")).rstrip("/")
    if repository and not any(cached_folder(repository, file) for file in OPEN_CLIP_WEIGHTS):
        files_on_hub(repository)


def _names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def _missing(files: Collection[str]) -> dict[str, tuple[str, ...]]:
    """What is missing of a model with these files: the kind, and names of which one would do."""
    there = {file.removesuffix(".index.json") for file in files}  # of weights in several files
    library = "open_clip" if CONFIG in there else "transformers" if there.isdisjoint(UFORM_WEIGHTS) else "uform"
    return {kind: names for kind, names in _NEEDED[library].items() if there.isdisjoint(names)}


def _check_parts(folder: Path) -> None:
    """Raise DcclipError where weights in several files are not all there."""
    for index in folder.glob("*.index.json"):
        if not (folder / index.name.removesuffix(".index.json")).exists():
            parts = shards_of(index)
            if absent := [part for part in parts if not (folder / part).is_file()]:
                what = Message(
                    "{} has no {} ({} of {} such files are missing)", folder, absent[0], len(absent), len(parts)
                )
                raise DcclipError(what, "copy or download the whole model again")
