"""Test sets for zero-shot classification: by name, or a file or folder of the user's own."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from dcclip_cli.data.pair import LANGUAGES, Language
from dcclip_cli.data.table import open_pairs
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval import prompts
from dcclip_cli.eval.class_folders import images_by_class, names_of_folders
from dcclip_cli.model.preprocess import decode

PLAIN = ("{}",)  # the template of data sets that come without any
SUFFIXES: dict[str, Language] = {"": "en", "-cn": "zh"}  # NAME is English, NAME-cn the same images in Chinese


@dataclass(frozen=True)
class Classes:
    """What the images may be in one language: (C,) names, the images' labels (N,), and templates for the names."""

    names: tuple[str, ...]
    labels: np.ndarray
    templates: tuple[str, ...]


@dataclass(frozen=True)
class LabelledImages:
    """A test set: `picture(i)` reads image i < `count`; `classes` has an entry for each language that it exists in."""

    name: str
    count: int
    picture: Callable[[int], Image.Image]
    classes: dict[Language, Classes]


def known_names() -> list[str]:
    """The data set names that `--dataset` takes, Chinese ones included."""
    return [
        name + suffix
        for name in prompts.known()
        for suffix, language in SUFFIXES.items()
        if language in prompts.read(name).names
    ]


def open_dataset(
    name: str, languages: Sequence[Language] | None = None, data_root: Path | None = None
) -> LabelledImages:
    """The test set of that name under `data_root`, or at that path. Raises DcclipError where there is none.

    A path's set comes in the `languages` given, else in all that it has; a name says its language itself.
    """
    if name in known_names():
        return _named(name, data_root)
    path = Path(name)
    if not path.exists():
        near = difflib.get_close_matches(name, known_names(), n=1)
        raise DcclipError(
            f"data set {name} is neither a known name nor a path",
            f"did you mean {near[0]}?" if near else f"known are {', '.join(known_names())}",
        )
    is_class_folders = path.is_dir() and not any(path.glob("*.tar"))
    return _in_languages(_from_folder(path) if is_class_folders else _from_pairs(path), languages)


def _in_languages(images: LabelledImages, languages: Sequence[Language] | None) -> LabelledImages:
    wanted = languages or [language for language in SUFFIXES.values() if language in images.classes]
    for language in wanted:
        if language not in images.classes:
            raise DcclipError(
                f"data set {images.name} has no class names in {language}",
                f"evaluate it with --languages {','.join(images.classes)}, or add the names",
            )
    return replace(images, classes={language: images.classes[language] for language in wanted})


def _from_pairs(path: Path) -> LabelledImages:
    """Pairs whose first caption in each language is the class name."""
    table = open_pairs(path)
    captions = {language: table.captions(language) for language in LANGUAGES}
    complete = {language: every for language, every in captions.items() if all(every)}
    classes = {language: _classes([several[0] for several in every], PLAIN) for language, every in complete.items()}
    if not classes:
        raise DcclipError(
            f"{path}: some pairs have no zh caption and some no en caption, so their class is unknown",
            "give every pair its class name as first caption in en, in zh, or in both",
        )
    return LabelledImages(path.stem, len(table), lambda index: decode(table[index].image), classes)


def _from_folder(path: Path) -> LabelledImages:
    images = images_by_class(path)
    files = [(file, number) for number, several in enumerate(images.values()) for file in several]
    classes = {
        language: _classes([names[number] for _, number in files], PLAIN)
        for language, names in names_of_folders(path, list(images)).items()
    }
    return LabelledImages(path.resolve().name, len(files), lambda index: decode(files[index][0]), classes)


def _named(name: str, data_root: Path | None) -> LabelledImages:
    language = SUFFIXES["-cn" if name.endswith("-cn") else ""]
    base = name.removesuffix("-cn")
    known = prompts.read(base)
    place = f"{base}/{known.split}/{known.folders[0]}/"
    if data_root is None:
        raise DcclipError(f"data set {name} needs its images", f"say --data-root DIR, where DIR has {place}")
    path = data_root / base / known.split
    if not path.is_dir():
        raise DcclipError(f"data set {name}: {path} is no folder", f"--data-root must name a folder that has {place}")
    images = images_by_class(path)
    if foreign := sorted(set(images) - set(known.folders)):
        raise DcclipError(
            f"{path / foreign[0]} is no class of {base} (there are {len(foreign)} such folders)",
            f"class folders are called like {known.folders[0]}",
        )
    if missing := sorted(set(known.folders) - set(images)):
        raise DcclipError(
            f"{path}: {len(missing)} of {len(known.folders)} classes have no images, {missing[0]} for one",
            "finish the download; a part of the data can be tried as a data set of your own: --dataset PATH",
        )
    files = [(file, number) for number, folder in enumerate(known.folders) for file in images[folder]]
    labels = np.asarray([number for _, number in files])
    classes = Classes(tuple(known.names[language]), labels, tuple(known.templates[language]))
    return LabelledImages(name, len(files), lambda index: decode(files[index][0]), {language: classes})


def _classes(name_of_image: Sequence[str], templates: Sequence[str]) -> Classes:
    """Equal names are one class; classes come in the order of their first image."""
    number: dict[str, int] = {}
    labels = [number.setdefault(name, len(number)) for name in name_of_image]
    return Classes(tuple(number), np.asarray(labels), tuple(templates))
