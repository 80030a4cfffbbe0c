"""Open test sets: a named one from disk or the hub, or a file or folder of the user's own."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from dcclip_cli.data.pair import Language
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval import prompts, registry
from dcclip_cli.eval.dataset import BARE_NAME, Captions, Classes, DataSet, ImageTransform, Loaded, Location
from dcclip_cli.eval.loaders import LOADERS
from dcclip_cli.eval.loaders.hub import HubDataset
from dcclip_cli.eval.registry import KnownSet
from dcclip_cli.eval.user_datasets import open_user_dataset
from dcclip_cli.text import language_by_script

Templates = Literal["own", "compact", "name"]


def open_dataset(
    name: str,
    languages: Sequence[Language] | None = None,
    data_root: Path | None = None,
    templates: Templates = "own",
    retrieval: bool = False,
) -> DataSet:
    """The test set of that name, or at that path. Raises DcclipError for a missing or incomplete one.

    A named one is read from `data_root`, or downloaded from the hub if there is no root; its name has its language.
    A path is opened in the `languages` given, else in all that it has; all its captions are texts if `retrieval`.
    """
    if found := registry.find(name):
        return _named(*found, data_root, templates)
    path = Path(name)
    if not path.exists():
        raise registry.unknown(name)
    return _in_languages(open_user_dataset(path, retrieval), languages)


def layout_of(known: KnownSet, data_root: Path) -> str | None:
    """The layout of a data set under `data_root`, unread; None where it is missing. Raises DcclipError."""
    location = _location(known, data_root, registry.languages_of(known)[0])
    return next((layout.layout for layout in LOADERS if layout.find(location)), None)


def training_split(dataset: DataSet) -> Loaded:
    """The labelled images to train probes on. Raises DcclipError where the data set has none."""
    if dataset.location is None or dataset.is_retrieval:
        raise DcclipError(f"data set {dataset.name} has no training split", "probes need a named classification set")
    found = _load(replace(dataset.location, split="train"))
    if found.images.fingerprint == dataset.images.fingerprint:
        raise DcclipError(f"data set {dataset.name} has no folder train", "put its training images there")
    return found


def _named(known: KnownSet, language: Language, data_root: Path | None, templates: Templates) -> DataSet:
    location = _location(known, data_root, language)
    found, classes = _load(location), location.prompts
    dataset = DataSet(
        name=registry.name_in(known, language),
        images=found.images,
        truth={},
        metric=known.metric,
        split=known.split,
        transform=ImageTransform(known.squash, known.border),
        both_ways=known.both_ways,
        location=location,
    )
    _check_size(known, dataset.name, found)
    if isinstance(found.truth, Captions):
        _check_language(dataset.name, language, found.truth.texts)
        return replace(dataset, truth={language: found.truth})
    assert classes is not None
    chosen = {"own": tuple(classes.templates[language]), "compact": prompts.compact(language), "name": BARE_NAME}
    return replace(dataset, truth={language: Classes(tuple(classes.names[language]), found.truth, chosen[templates])})


def _location(known: KnownSet, data_root: Path | None, language: Language) -> Location:
    classes = prompts.read(registry.prompts_of(known)) if known.task != "retrieval" else None
    own, base = known.name, known.name.removesuffix("_cn")
    names = [own, known.label, *([f"wds_{known.hub}", known.hub] if known.hub else [])]
    if base != own:
        names += [f"{base.capitalize()}-CN", f"{base.upper()}-CN"]
    if own == "muge_cn":
        names += [base, base.upper()]
    folders = _folders(names, data_root)
    siblings = tuple(folder for folder in _folders([base], data_root) if folder not in folders)
    return Location(known, folders, known.split, language, classes, data_root, siblings)


def _folders(names: Sequence[str], data_root: Path | None) -> tuple[Path, ...]:
    """The folders under the root that have one of the names."""
    if data_root is None:
        return ()
    if not data_root.is_dir():
        raise DcclipError(f"--data-root {data_root} is not a folder", "name the folder that contains the data sets")
    folders = (data_root / name for name in dict.fromkeys(names))
    return tuple(folder for folder in folders if folder.is_dir())


def _load(location: Location) -> Loaded:
    # Only captions depend on the language: classes have the same images in both.
    language: Language = "en" if location.prompts else location.language
    return _cached(location.known.name, location.root, location.split, language)


@functools.lru_cache(maxsize=4)
def _cached(name: str, root: Path | None, split: str, language: Language) -> Loaded:
    known = registry.SETS[name]
    location = replace(_location(known, root, language), split=split)
    for layout in LOADERS:
        if loader := layout.find(location):
            return loader.load()
    if location.folders:
        raise DcclipError(
            f"{location.folders[0]} has no {split} images of {known.label} in any supported layout", _where(known)
        )
    hub = HubDataset.on_hub(location)
    if hub is None:
        lacking = f"{root} does not have them" if root else "the hub does not have them"
        raise DcclipError(f"data set {known.label} needs its images, and {lacking}", _where(known))
    try:
        return hub.load()
    except DcclipError as error:
        raise DcclipError(f"data set {known.label} needs its images: {error.what}", _where(known)) from None


def _where(known: KnownSet) -> str:
    if known.task == "retrieval":
        return f"give --data-root DIR, where DIR/{known.name}/ has its caption file and images (see docs/eval.md)"
    folder = prompts.read(registry.prompts_of(known)).folders[0]
    split = f"{known.name}/{known.split}"
    return f"give --data-root DIR, where DIR has {split}/{folder}/*.jpg or {split}/0.tar"


def _check_size(known: KnownSet, name: str, found: Loaded) -> None:
    counts = [("images", known.size, len(found.images))]
    if isinstance(found.truth, Captions):
        counts.append(("captions", known.texts, len(found.truth.texts)))
    for what, expected, count in counts:
        if expected not in (None, count):
            remark = f" ({known.remark})" if known.remark else ""
            raise DcclipError(
                f"data set {name}: the split {known.split} has {expected:,} {what}{remark}, {count:,} were found",
                "finish the download, or download the right split; to evaluate a part of it use --dataset PATH, "
                "a sample --limit",
            )


def _check_language(name: str, language: Language, texts: Sequence[str]) -> None:
    """Raise DcclipError for captions in the other language, which would be measured under this one's name."""
    chinese = sum(language_by_script(text) == "zh" for text in texts)
    if (chinese > len(texts) / 2) != (language == "zh"):
        raise DcclipError(
            f"data set {name}: {chinese:,} of {len(texts):,} captions contain Chinese, so they are not in {language}",
            "put the captions of each language into a folder of its own, named like the data set",
        )


def _in_languages(dataset: DataSet, languages: Sequence[Language] | None) -> DataSet:
    wanted = languages or sorted(dataset.truth)
    for language in wanted:
        if language not in dataset.truth:
            what = "captions" if dataset.is_retrieval else "class names"
            raise DcclipError(
                f"data set {dataset.name} has no {what} in {language}",
                f"evaluate it with --languages {','.join(sorted(dataset.truth))}, or add the names",
            )
    chosen = {language: dataset.truth[language] for language in wanted}
    return replace(dataset, truth=chosen)  # type: ignore[arg-type]
