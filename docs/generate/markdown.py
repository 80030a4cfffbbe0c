"""Markdown made of strings from the code."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, fields
from html import escape
from inspect import formatannotation
from typing import Any

from dcclip_cli.core.errors import Language, Message, translated

WIDTH = 100  # of blocks of code, which a page of the site shows without scrolling
MADE = "<!-- Made by python -m docs.generate: change the code, or docs/generate. -->\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, or nothing if there are no rows."""
    lines = [f"| {' | '.join(cells)} |\n" for cells in rows]
    return f"| {' | '.join(head)} |\n|{'---|' * len(head)}\n{''.join(lines)}" if lines else ""


def escaped(text: str) -> str:
    """A text for a cell of a table: one line, in which only code is marked up."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()).replace("|", r"\|"))
    parts[::2] = [re.sub(r"([*_$\[\]])", r"\\\1", escape(part, quote=False)) for part in parts[::2]]
    return "".join(parts)


def code(text: object) -> str:
    """A text as code in a cell of a table."""
    return f"`{str(text).replace('|', chr(92) + '|')}`"


def anchor(heading: str) -> str:
    """The anchor of a heading, as code hosts and the site make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def text(english: str, language: Language) -> str:
    """A text of the code in a language, from the catalogue of messages."""
    return translated(Message(english), language)


def members(kind: Any) -> str:
    """The fields of a dataclass in a sentence, with their types and defaults."""
    return ", ".join(field(one) for one in fields(kind) if not one.name.startswith("_")) + ".\n"


def field(one: Field[Any]) -> str:
    default = one.default if one.default_factory is MISSING else one.default_factory()
    kind = (
        one.type if isinstance(one.type, str) else formatannotation(one.type).replace("typing.", "")
    )
    return code(
        f"{one.name}: {kind}" + ("" if default is MISSING else f" = {default!r}".replace("'", '"'))
    )


def filled(head: str, items: list[str], tail: str) -> str:
    """Items with commas between them, in as few lines as they need."""
    lines = [head]
    for item in [*(f"{item}, " for item in items[:-1]), items[-1] + tail]:
        if len(lines[-1]) + len(item) > WIDTH:
            lines.append("    ")
        lines[-1] += item
    return "\n".join(line.rstrip() for line in lines)
