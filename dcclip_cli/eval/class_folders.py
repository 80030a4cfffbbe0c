"""Test images in one folder per class, and what these classes are called."""

from __future__ import annotations

from pathlib import Path

import yaml

from dcclip_cli.data.pair import LANGUAGES, Language
from dcclip_cli.data.table import IMAGE_SUFFIXES
from dcclip_cli.errors import DcclipError
from dcclip_cli.predict.classifier import language_of

NAMES_FILE = "classes.yaml"
_EXAMPLE = "write it like this, a line for each folder: cat: {en: cat, zh: 猫}"


def images_by_class(path: Path) -> dict[str, list[Path]]:
    """Folder name -> its image files, both sorted, empty folders left out. Raises DcclipError if nothing is left."""
    found = {}
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if files:
            found[folder.name] = files
    if not found:
        raise DcclipError(f"{path} holds no folders with images", "make a folder for each class, with its images in it")
    return found


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
