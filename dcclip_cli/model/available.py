"""Whether a teacher or pretrained weights can be loaded, by their files alone: mostly without torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.hub import cached_folder, files_on_hub
from dcclip_cli.model.library_configs import (
    TRANSFORMERS_CONFIG,
    check_directory,
    is_uform,
    open_clip_config,
    transformers_config,
)
from dcclip_cli.model.weights import CONFIG, OPEN_CLIP_WEIGHTS, TRANSFORMERS_WEIGHTS, UFORM_WEIGHTS, shards_of

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


def check_model(model: str, library: str) -> None:
    """Raise DcclipError where a file of the model is missing, or the hub is needed and cannot be reached.

    `library` (transformers or open_clip) loads it.
    """
    name = model.removeprefix("hf-hub:")
    folder = Path(name) if Path(name).is_dir() else None
    if folder is None and Path(name).is_absolute():
        raise DcclipError(
            "{name} is not a directory", "check the path, or give a name on the Hugging Face hub", name=name
        )
    if folder is None and library == "open_clip" and name == model:
        return _check_tag(model)
    if folder is None:
        folder = whole_cached_folder(name)
    files = files_on_hub(name) if folder is None else _names(folder)
    if lacking := _missing(files):
        kind, names = next(iter(lacking.items()))
        raise DcclipError(
            "{name} has no {kind}: {names}",
            "copy or download the whole model again; name a directory written by save_pretrained or by dcclip",
            name=name,
            kind=kind,
            names=" or ".join(names),
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
            "timm has no pretrained weights of {network}",
            "name another network, or a .safetensors file",
            network=network,
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
        raise DcclipError(
            "open_clip model '{model}' has no tag", "write ARCH/TAG, as in ViT-B-32/laion2b_s34b_b79k", model=model
        )
    config = open_clip.get_pretrained_cfg(architecture, tag)
    if not config:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or Message(
            "none: the architecture is unknown"
        )
        raise DcclipError(
            "open_clip has no {model}",
            "its tags of {architecture}: {tags}",
            model=model,
            architecture=architecture,
            tags=tags,
        )
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
                raise DcclipError(
                    "{folder} has no {absent} ({count} of {total} such files are missing)",
                    "copy or download the whole model again",
                    folder=folder,
                    absent=absent[0],
                    count=len(absent),
                    total=len(parts),
                )
