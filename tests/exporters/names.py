"""Class names of all data sets and words of the starter, in both languages."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dcclip_cli.data import prompts

_STARTER = Path(__file__).parents[2] / "recipes/starter"


def names_and_words() -> list[str]:
    """Each of them once: names, alternates and folders of classes, templates, and words as the starter learnt them."""
    found = [text for file in sorted(prompts.FOLDER.glob("*.json")) for text in _texts(json.loads(file.read_text()))]
    for file in sorted([*_STARTER.glob("*.tsv"), *_STARTER.glob("*.txt")]):
        found += file.read_text("utf-8").replace("\t", ";").replace("\n", ";").split(";")
    return list(dict.fromkeys(filter(str.strip, found)))


def _texts(content: Any) -> Iterator[str]:
    """All texts in JSON, keys included."""
    if isinstance(content, str):
        yield content
    else:
        for inner in [*content, *content.values()] if isinstance(content, dict) else content:
            yield from _texts(inner)
