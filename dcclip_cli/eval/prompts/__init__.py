"""Class names and templates of the data sets that have a name: one JSON per data set, both languages in it.

`{"subset_of": "imagenet", "folders": [...]}` takes names and templates from another file, by the folders' keys.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcclip_cli.data.pair import LANGUAGES, Language

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Prompts:
    """A data set's `split` folder, its class `folders` in order, and per language the classes' names and templates."""

    split: str
    folders: list[str]
    names: dict[Language, list[str]]
    templates: dict[Language, list[str]]


def known() -> list[str]:
    """The names of the data sets that there are prompts and a split for."""
    return sorted(file.stem for file in _FOLDER.glob("*.json") if "split" in _json(file.stem))


def read(name: str) -> Prompts:
    """The prompts of one of the `known` data sets, or of a subset of one."""
    content = _json(name)
    if whole := content.get("subset_of"):
        return _subset(read(whole), content["folders"])
    languages = [language for language in LANGUAGES if language in content]
    return Prompts(
        split=content["split"],
        folders=content["folders"],
        names={language: content[language]["names"] for language in languages},
        templates={language: content[language]["templates"] for language in languages},
    )


def _subset(whole: Prompts, folders: list[str]) -> Prompts:
    place = {folder: number for number, folder in enumerate(whole.folders)}
    names = {language: [every[place[folder]] for folder in folders] for language, every in whole.names.items()}
    return Prompts(whole.split, folders, names, whole.templates)


def _json(name: str) -> Any:
    return json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
