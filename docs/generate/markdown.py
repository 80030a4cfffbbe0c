"""Markdown made of strings from the code."""

import re
from collections.abc import Iterable, Sequence

from dcclip_cli.errors import Language, Message, translated

MADE = "<!-- Made by python -m docs.generate: change the code, or docs/generate. -->\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, or nothing if there are no rows."""
    lines = [f"| {' | '.join(cells)} |\n" for cells in rows]
    return f"| {' | '.join(head)} |\n|{'---|' * len(head)}\n{''.join(lines)}" if lines else ""


def escaped(text: str) -> str:
    """A text for a cell of a table: one line, in which only code is marked up."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()).replace("|", r"\|"))
    parts[::2] = [re.sub(r"([*_<>$\[\]])", r"\\\1", part) for part in parts[::2]]
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
