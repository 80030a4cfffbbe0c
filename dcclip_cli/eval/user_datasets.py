"""The user's own test sets: pairs whose captions are classes or texts to retrieve, and folders of class folders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.pair import LANGUAGES, Language, PairDataset
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.dataset import BARE_NAME, Captions, Classes, DataSet, Images, fingerprint_of
from dcclip_cli.eval.loaders.files import image_files, images_by_class
from dcclip_cli.text import language_by_script

NAMES_FILE = "classes.yaml"
_EXAMPLE = "write a line for each folder, for example: cat: {en: cat, zh: 猫}"


def open_user_dataset(path: Path, retrieval: bool = False) -> DataSet:
    """A Parquet or tar file of pairs, or a folder of class folders, in every language that it has."""
    if not path.is_dir() or any(path.glob("*.tar")):
        return _from_pairs(path, retrieval)
    if retrieval:
        raise DcclipError(
            f"{path} has no captions", "retrieval needs pairs: a Parquet or tar file, or a folder of tars"
        )
    return _from_folder(path)


def _from_pairs(path: Path, retrieval: bool) -> DataSet:
    """Pairs; the first caption in each language is the class name, or all captions are texts if `retrieval`."""
    table = open_pairs(path)
    images = Images(_keys(table), partial(_image, table), fingerprint_of(table.files))
    captions = {language: table.captions(language) for language in LANGUAGES}
    complete = {language: every for language, every in captions.items() if all(every)}
    if not complete:
        raise DcclipError(
            f"{path}: some pairs have no zh caption and some no en caption, so their class is unknown",
            "give every pair its class name as first caption in en, in zh, or in both",
        )
    if retrieval:
        texts = {language: Captions.of_images(every) for language, every in complete.items()}
        return DataSet(path.stem, images, texts, "mean_recall")
    classes = {language: _classes([several[0] for several in every]) for language, every in complete.items()}
    return DataSet(path.stem, images, classes)


def _keys(table: PairDataset) -> list[str]:
    """The pairs' keys, with the row appended to those that an earlier pair has too."""
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
    by_folder = images_by_class(path)
    files = [(file, number) for number, several in enumerate(by_folder.values()) for file in several]
    classes = {
        language: _classes([names[number] for _, number in files])
        for language, names in names_of_folders(path, list(by_folder)).items()
    }
    return DataSet(path.resolve().name, image_files([file for file, _ in files], path), classes)


def _classes(name_of_image: Sequence[str]) -> Classes:
    """Images of the same name are of one class; classes are in the order of their first image."""
    number: dict[str, int] = {}
    labels = [number.setdefault(name, len(number)) for name in name_of_image]
    return Classes(tuple(number), np.asarray(labels), BARE_NAME)


def names_of_folders(path: Path, folders: list[str]) -> dict[Language, list[str]]:
    """The folders' class names by language, in order: from classes.yaml, else the folder names in their language."""
    file = path / NAMES_FILE
    if not file.is_file():
        plain = [folder.replace("_", " ") for folder in folders]
        return {"zh" if any(language_by_script(name) == "zh" for name in plain) else "en": plain}
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise DcclipError(f"{file} is not YAML: {reason}", _EXAMPLE) from None
    if not isinstance(content, dict):
        raise DcclipError(f"{file} is not a mapping from folders to names", _EXAMPLE)
    for folder in folders:
        if not isinstance(content.get(folder), dict):
            raise DcclipError(f"{file} has no names for the folder {folder}", _EXAMPLE)
    names = {language: [content[folder].get(language) for folder in folders] for language in LANGUAGES}
    complete = {language: every for language, every in names.items() if all(isinstance(name, str) for name in every)}
    if not complete:
        raise DcclipError(f"{file} names all folders neither in en nor in zh", _EXAMPLE)
    return complete
