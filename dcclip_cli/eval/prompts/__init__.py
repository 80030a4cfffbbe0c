"""Class names and prompt templates in both languages, one JSON file per data set.

    {"folders": [key of each class in the source's label order],
     "en": {"names": [...], "alternates": {"name": ["synonym", ...]}, "templates": [...]}, "zh": {...}}

`{"subset_of": "imagenet", "folders": [...]}` takes the names and templates of these folders from another file.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcclip_cli.data.pair import LANGUAGES, Language

FOLDER = Path(__file__).parent
COMPACT = "compact"  # generic templates


@dataclass(frozen=True)
class Prompts:
    """The class `folders` in label order and, per language, the classes' names, synonyms of names, and templates."""

    folders: list[str]
    names: dict[Language, list[str]]
    alternates: dict[Language, dict[str, list[str]]]
    templates: dict[Language, list[str]]


def languages(name: str) -> list[Language]:
    """The languages of a data set's class names, English first; none without a file."""
    return sorted(read(name).names) if (FOLDER / f"{name}.json").is_file() else []


@functools.cache
def read(name: str) -> Prompts:
    """A data set's class names and its own templates."""
    content = _json(name)
    if whole := content.get("subset_of"):
        return _subset(read(whole), content["folders"])
    found = {language: content[language] for language in LANGUAGES if language in content}
    return Prompts(
        folders=content["folders"],
        names={language: one["names"] for language, one in found.items()},
        alternates={language: one.get("alternates", {}) for language, one in found.items()},
        templates={language: one["templates"] for language, one in found.items()},
    )


def compact(language: Language) -> tuple[str, ...]:
    """A few generic templates for any data set."""
    return tuple(_json(COMPACT)[language])


def _subset(whole: Prompts, folders: list[str]) -> Prompts:
    place = {folder: number for number, folder in enumerate(whole.folders)}
    names = {language: [every[place[folder]] for folder in folders] for language, every in whole.names.items()}
    return Prompts(folders, names, whole.alternates, whole.templates)


def _json(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
