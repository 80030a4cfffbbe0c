"""Class names and templates of the data sets that have a name: one JSON per data set, both languages in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

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
    """The names of the data sets that there are prompts for."""
    return sorted(file.stem for file in _FOLDER.glob("*.json"))


def read(name: str) -> Prompts:
    """The prompts of one of the `known` data sets."""
    content = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    languages = [language for language in LANGUAGES if language in content]
    return Prompts(
        split=content["split"],
        folders=content["folders"],
        names={language: content[language]["names"] for language in languages},
        templates={language: content[language]["templates"] for language in languages},
    )
