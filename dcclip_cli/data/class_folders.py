"""Folders of class folders, CLASS/*.jpg, and the names of their classes in both languages."""

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any, Literal

import yaml

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import is_listed, refuse_special
from dcclip_cli.core.text import encodable, language_by_script, read_text
from dcclip_cli.data import prompts
from dcclip_cli.data.pair import LANGUAGES, Language
from dcclip_cli.data.reading import IMAGE_SUFFIXES, MAX_TEXT_BYTES, TABLE_SUFFIXES

NAMES_FILE = "classes.yaml"
_WORDNET_ID = re.compile(r"n\d{8}")
# folders, and files of each, where there may be millions
_LOOKED_INTO = 50
_LOOKED_AT = 500


def folders_in(path: Path) -> list[Path]:
    """The folders in a folder, sorted, without those of a NAS; none where it is no folder."""
    entries = path.iterdir() if path.is_dir() else ()
    return sorted(entry for entry in entries if is_listed(entry.name) and entry.is_dir())


def images_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The image files in a class folder, sorted."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in suffixes and is_listed(file.name)
    )


def images_below(folder: Path) -> Iterator[Path]:
    """The image files in a folder and below it, without those of a NAS."""
    images = (file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    return (file for file in images if all(map(is_listed, file.relative_to(folder).parts)))


def images_by_class(
    path: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES
) -> dict[str, list[Path]]:
    """Folder name -> its image files, both sorted, empty folders left out. Raises DcclipError if
    nothing is left.
    """
    by_folder = {
        folder.name: files for folder in folders_in(path) if (files := images_in(folder, suffixes))
    }
    if not by_folder:
        raise DcclipError(
            "{} has no folders with images", "create a folder for each class, with its images", path
        )
    return by_folder


def no_pairs(
    path: str | Path,
    hint: str = Message("use a .parquet file, a .tar file or a folder of such files"),
) -> DcclipError:
    """The error for a place without pairs, which may be a folder of images, with a folder for each
    class or without.
    """
    if classes := _classes(Path(path)):
        return DcclipError(
            "{} is a folder of class folders ({}), not of image-caption pairs",
            "to make pairs, write in the recipe: {{collect: {{sources: [{{kind: "
            "class_folders, path: {}}}]}}, data: "
            "{{train: collect}}}}; to distill without captions, set data.images to this folder",
            path,
            ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else ""),
            json.dumps(os.path.join(".", path), ensure_ascii=False),
        )
    if _has_image(Path(path)):
        return DcclipError(
            "{} is a folder of images, not of image-caption pairs",
            "to distill without captions, set data.images to this folder; to train on "
            "captions, list images and "
            "captions in a table (columns image, zh, en) and run dcclip collect on it "
            "(source {{kind: table}})",
            path,
        )
    # what dcclip new takes
    if str(path).lower().endswith(TABLE_SUFFIXES) and Path(path).is_file():
        table = shlex.quote(str(path))
        hint = Message(
            "collect its pairs first: dcclip new FILE --yes --data {}; dcclip collect FILE", table
        )
    return DcclipError("{} contains no pairs", hint, path)


def kind_of_folder(path: Path) -> Literal["classes", "images"] | None:
    """Whether a folder has folders of images or images; None if neither. Only two levels are
    looked at.
    """
    return "classes" if _classes(path) else "images" if _has_image(path) else None


def _classes(path: Path) -> list[str]:
    return [folder.name for folder in folders_in(path)[:_LOOKED_INTO] if _has_image(folder)]


def _has_image(folder: Path) -> bool:
    files = islice(folder.iterdir(), _LOOKED_AT) if folder.is_dir() else ()
    return any(file.suffix.lower() in IMAGE_SUFFIXES and is_listed(file.name) for file in files)


def class_names(path: Path, folders: Sequence[str]) -> dict[Language, list[str]]:
    """The class names of `folders` by language, in order.

    They are from classes.yaml, else those of the known data set that the folders are of, else the
    folders' own.
    """
    file = path / NAMES_FILE
    if not os.path.lexists(file):
        # Keys of a known data set, such as WordNet ids; folders that are names, or only numbers,
        # mean something else in each data set.
        for dataset in map(prompts.read, prompts.all_names()):
            place = {folder: number for number, folder in enumerate(dataset.folders)}
            english = {prompts.normalized(name) for name in dataset.names.get("en", [])}
            says_nothing = all(
                folder.isdecimal() or prompts.normalized(folder) in english for folder in folders
            )
            if set(folders) <= set(place) and not says_nothing:
                return {
                    key: [names[place[folder]] for folder in folders]
                    for key, names in dataset.names.items()
                }
        if ids := [folder for folder in folders if _WORDNET_ID.fullmatch(folder)]:
            unknown = next(iter({*ids} - {*prompts.read("imagenet").folders}), ids[0])
            message = Message("{} is a WordNet id whose class name is unknown", path / unknown)
            raise DcclipError(message, _example(path / NAMES_FILE, unknown))
        if odd := [folder for folder in folders if not _is_name(folder)]:
            raise DcclipError(
                "{}: the folder name {!r} is not UTF-8",
                "rename the folder",
                path,
                os.fsencode(odd[0]),
            )
        plain = [folder.replace("_", " ") for folder in folders]
        return {"zh" if any(language_by_script(name) == "zh" for name in plain) else "en": plain}
    example = _example(file, folders[0])
    refuse_special(file)
    try:
        content = yaml.safe_load(read_text(file, MAX_TEXT_BYTES, example))
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        RecursionError,
    ) as error:  # dates, keys that are lists, nesting
        raise DcclipError(
            "{} is not valid YAML: {}", example, file, " ".join(str(error).split())[:300]
        ) from None
    if not isinstance(content, dict):
        raise DcclipError("{} is not a mapping from folder names to class names", example, file)
    for folder in folders:
        if not isinstance(content.get(folder), dict):
            raise DcclipError(
                "{} has no class name for the folder {}", _example(file, folder), file, folder
            )
    languages = [
        language for language in LANGUAGES if any(language in content[folder] for folder in folders)
    ]
    for language, folder in product(languages or LANGUAGES, folders):
        if not _is_name(content[folder].get(language)):
            raise DcclipError(
                "{} has no {} name for the folder {}",
                _example(file, folder),
                file,
                language,
                folder,
            )
    return {language: [content[folder][language] for folder in folders] for language in languages}


def _example(file: Path, folder: str) -> str:
    key = json.dumps(folder, ensure_ascii=False)  # 7 and "no" are no texts in YAML
    return Message(
        "add a line for each folder to {}, for example: {}: {{en: cat, zh: 猫}}", file, key
    )


def _is_name(value: Any) -> bool:
    """Whether it is a text with something in it, and without halves of characters."""
    return isinstance(value, str) and bool(value.strip()) and encodable(value) == value
