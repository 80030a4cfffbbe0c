"""Test sets of the user's own: pairs whose captions are the classes or the texts to find, and class folders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from dcclip_cli.data.dataset import PairDataset, open_pairs
from dcclip_cli.data.pair import LANGUAGES, Language
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.datasets import PLAIN, Captions, Classes, DataSet
from dcclip_cli.eval.loaders.base import Images, stamp_of
from dcclip_cli.eval.loaders.class_folders import images_by_class, images_of
from dcclip_cli.predict.zero_shot import language_of

NAMES_FILE = "classes.yaml"
_EXAMPLE = "write it like this, a line for each folder: cat: {en: cat, zh: 猫}"


def open_own(path: Path, retrieval: bool = False) -> DataSet:
    """A Parquet or tar file of pairs, or a folder of class folders, in every language that it has."""
    if not path.is_dir() or any(path.glob("*.tar")):
        return _from_pairs(path, retrieval)
    if retrieval:
        raise DcclipError(
            f"{path} has no captions", "retrieval needs pairs: a Parquet or tar file, or a folder of tars"
        )
    return _from_folder(path)


def _from_pairs(path: Path, retrieval: bool) -> DataSet:
    """Pairs; the first caption in each language is the class name, unless all captions are texts to be found."""
    table = open_pairs(path)
    images = Images(_keys(table), partial(_image, table), stamp_of(table.files))
    captions = {language: table.captions(language) for language in LANGUAGES}
    complete = {language: every for language, every in captions.items() if all(every)}
    if not complete:
        raise DcclipError(
            f"{path}: some pairs have no zh caption and some no en caption, so their class is unknown",
            "give every pair its class name as first caption in en, in zh, or in both",
        )
    if retrieval:
        return DataSet(path.stem, images, {one: _captions(every) for one, every in complete.items()}, "mean_recall")
    return DataSet(
        path.stem, images, {one: _classes([several[0] for several in every]) for one, every in complete.items()}
    )


def _keys(table: PairDataset) -> list[str]:
    """The pairs' own, with their row behind those that an earlier pair has too."""
    keys = table.keys()
    earlier: set[str] = set()
    for row, key in enumerate(keys):
        if key in earlier:
            keys[row] = f"{key} (row {row})"
        earlier.add(key)
    return keys


def _image(table: PairDataset, index: int) -> bytes:
    return table[index].image


def _from_folder(path: Path) -> DataSet:
    images = images_by_class(path)
    files = [(file, number) for number, several in enumerate(images.values()) for file in several]
    classes = {
        language: _classes([names[number] for _, number in files])
        for language, names in names_of_folders(path, list(images)).items()
    }
    return DataSet(path.resolve().name, images_of([file for file, _ in files], path), classes)


def _classes(name_of_image: Sequence[str]) -> Classes:
    """Equal names are one class; classes come in the order of their first image."""
    number: dict[str, int] = {}
    labels = [number.setdefault(name, len(number)) for name in name_of_image]
    return Classes(tuple(number), np.asarray(labels), PLAIN)


def _captions(captions: Sequence[tuple[str, ...]]) -> Captions:
    texts = [(text, (number,)) for number, several in enumerate(captions) for text in several]
    return Captions(tuple(text for text, _ in texts), tuple(about for _, about in texts))


def names_of_folders(path: Path, folders: list[str]) -> dict[Language, list[str]]:
    """The folders' class names, in order, per language: from classes.yaml, else the folders' own names in theirs."""
    file = path / NAMES_FILE
    if not file.is_file():
        plain = [folder.replace("_", " ") for folder in folders]
        return {"zh" if any(language_of(name) == "zh" for name in plain) else "en": plain}
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise DcclipError(f"{file} is not YAML: {reason}", _EXAMPLE) from None
    if not isinstance(content, dict):
        raise DcclipError(f"{file} is no mapping from folders to names", _EXAMPLE)
    for folder in folders:
        if not isinstance(content.get(folder), dict):
            raise DcclipError(f"{file} has no names for the folder {folder}", _EXAMPLE)
    names = {language: [content[folder].get(language) for folder in folders] for language in LANGUAGES}
    complete = {language: every for language, every in names.items() if all(isinstance(name, str) for name in every)}
    if not complete:
        raise DcclipError(f"{file} names all folders neither in en nor in zh", _EXAMPLE)
    return complete
