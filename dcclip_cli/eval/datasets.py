"""Test sets: by name, or a file or folder of the user's own, with what the images may be in each language."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from dcclip_cli.data.pair import Language
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval import prompts, registry
from dcclip_cli.eval.loaders import LOADERS, Captioned, HubDataset, Images, Labelled, Place
from dcclip_cli.eval.registry import KnownSet, Metric
from dcclip_cli.predict.zero_shot import language_of

Templates = Literal["own", "compact", "name"]
PLAIN = ("{}",)  # the template of data sets that come without any


@dataclass(frozen=True)
class Classes:
    """What images may be in one language: C names, the images' labels (N,) or truth values (N, C), and templates."""

    names: tuple[str, ...]
    labels: np.ndarray
    templates: tuple[str, ...]


@dataclass(frozen=True)
class Captions:
    """The texts about images in one language: text j is about the images `about[j]`."""

    texts: tuple[str, ...]
    about: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class DataSet:
    """A test set. `truth` has an entry for each language that it is evaluated in; `place` is where a named one lies."""

    name: str
    images: Images
    truth: dict[Language, Classes] | dict[Language, Captions]
    metric: Metric = "top1"
    split: str = ""
    squash: bool = False
    border: int = 0
    both_ways: bool = True
    place: Place | None = None

    @property
    def is_retrieval(self) -> bool:
        return any(isinstance(one, Captions) for one in self.truth.values())


def open_dataset(
    name: str,
    languages: Sequence[Language] | None = None,
    data_root: Path | None = None,
    templates: Templates = "own",
    retrieval: bool = False,
) -> DataSet:
    """The test set of that name, or at that path. Raises DcclipError where there is none, or where it isn't whole.

    A named one is looked for under `data_root`, or on the hub if there is no such folder; its name says its language.
    A path's comes in the `languages` given, else in all that it has, its captions as texts to be found if `retrieval`.
    """
    if found := registry.find(name):
        return _named(*found, data_root, templates)
    path = Path(name)
    if not path.exists():
        raise registry.unknown(name)
    from dcclip_cli.eval.own import open_own

    return _in_languages(open_own(path, retrieval), languages)


def layout_of(known: KnownSet, data_root: Path) -> str | None:
    """The layout in which a data set lies under `data_root`, unread; None where it doesn't. Raises DcclipError."""
    place = _place(known, data_root, registry.languages_of(known)[0])
    return next((layout.layout for layout in LOADERS if layout.find(place)), None)


def training_split(dataset: DataSet) -> Labelled:
    """The labelled images that probes are trained on. Raises DcclipError where the data set has none."""
    if dataset.place is None or dataset.is_retrieval:
        raise DcclipError(f"data set {dataset.name} has no training split", "probes need a data set with a name")
    found = _load(replace(dataset.place, split="train"))
    assert isinstance(found, Labelled)
    if found.images.stamp == dataset.images.stamp:
        raise DcclipError(f"data set {dataset.name} has no folder train", "put its training images there")
    return found


def _named(known: KnownSet, language: Language, data_root: Path | None, templates: Templates) -> DataSet:
    name = registry.name_in(known, language)
    place = _place(known, data_root, language)
    classes = place.prompts
    found = _load(place)
    _check_size(known, name, found)
    whole = DataSet(
        name, found.images, {}, known.metric, known.split, known.squash, known.border, known.both_ways, place
    )
    if isinstance(found, Captioned):
        _check_language(name, language, found.texts)
        return replace(whole, truth={language: Captions(found.texts, found.about)})
    assert classes is not None
    chosen = {"own": tuple(classes.templates[language]), "compact": prompts.compact(language), "name": PLAIN}[templates]
    return replace(whole, truth={language: Classes(tuple(classes.names[language]), found.labels, chosen)})


def _place(known: KnownSet, data_root: Path | None, language: Language) -> Place:
    classes = prompts.read(registry.prompts_of(known)) if known.task != "retrieval" else None
    own, base = known.name, known.name.removesuffix("_cn")
    names = [own, known.said, *([f"wds_{known.hub}", known.hub] if known.hub else [])]
    if base != own:
        names += [f"{base.capitalize()}-CN", f"{base.upper()}-CN"]
    if own == "muge_cn":
        names += [base, base.upper()]
    folders = _folders(names, data_root)
    return Place(known, folders, known.split, language, classes, data_root, _folders([base], data_root, folders))


def _folders(names: Sequence[str], data_root: Path | None, known: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Those of the names that are folders under the root and aren't known yet."""
    if data_root is None:
        return ()
    if not data_root.is_dir():
        raise DcclipError(f"--data-root {data_root} is no folder", "name the folder that holds the data sets")
    places = (data_root / name for name in dict.fromkeys(names))
    return tuple(place for place in places if place.is_dir() and place not in known)


def _load(place: Place) -> Labelled | Captioned:
    # Of the language only captions depend: the second language of classes has the same images.
    return _cached(place.known.name, place.root, place.split, "en" if place.prompts else place.language)


@functools.lru_cache(maxsize=4)
def _cached(name: str, root: Path | None, split: str, language: Language) -> Labelled | Captioned:
    known = registry.SETS[name]
    place = replace(_place(known, root, language), split=split)
    for layout in LOADERS:
        if found := layout.find(place):
            return found.load()
    if place.folders:
        raise DcclipError(
            f"{place.folders[0]} has no {split} images of {known.said} in any layout known", _where(known)
        )
    hub = HubDataset.on_hub(place)
    if hub is None:
        lacking = f"{root} does not have them" if root else "the hub does not have them"
        raise DcclipError(f"data set {known.said} needs its images, and {lacking}", _where(known))
    try:
        return hub.load()
    except DcclipError as error:
        raise DcclipError(f"data set {known.said} needs its images: {error.what}", _where(known)) from None


def _where(known: KnownSet) -> str:
    if known.task == "retrieval":
        return f"say --data-root DIR, where DIR/{known.name}/ holds its caption file and images (see docs/eval.md)"
    folder = prompts.read(registry.prompts_of(known)).folders[0]
    place = f"{known.name}/{known.split}"
    return f"say --data-root DIR, where DIR has {place}/{folder}/*.jpg or {place}/0.tar"


def _check_size(known: KnownSet, name: str, found: Labelled | Captioned) -> None:
    count = len(found.images)
    if known.size is not None and count != known.size:
        remark = f" ({known.remark})" if known.remark else ""
        raise DcclipError(
            f"data set {name}: the split {known.split} has {known.size:,} images{remark}, {count:,} are here",
            "finish the download, or fetch the right split; a part of it is evaluated with --dataset PATH, "
            "a sample with --limit",
        )
    if isinstance(found, Captioned) and known.texts is not None and len(found.texts) != known.texts:
        raise DcclipError(
            f"data set {name}: the split has {known.texts:,} captions, {len(found.texts):,} are here", "fetch it again"
        )


def _check_language(name: str, language: Language, texts: Sequence[str]) -> None:
    """Raise DcclipError for captions in the other language, which would be measured under this one's name."""
    chinese = sum(language_of(text) == "zh" for text in texts)
    if (chinese > len(texts) / 2) != (language == "zh"):
        raise DcclipError(
            f"data set {name}: {chinese:,} of {len(texts):,} captions have Chinese in them, so they are not in "
            f"{language}",
            "put the captions of each language into a folder of its own, called as the data set",
        )


def _in_languages(dataset: DataSet, languages: Sequence[Language] | None) -> DataSet:
    there = dataset.truth
    wanted = languages or sorted(there)
    for language in wanted:
        if language not in there:
            what = "captions" if dataset.is_retrieval else "class names"
            raise DcclipError(
                f"data set {dataset.name} has no {what} in {language}",
                f"evaluate it with --languages {','.join(sorted(there))}, or add the names",
            )
    chosen = {language: there[language] for language in wanted}
    return replace(dataset, truth=chosen)  # type: ignore[arg-type]
