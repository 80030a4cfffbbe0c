"""The language of messages, help and reports, and their translation from the catalogue in `locale/`."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dcclip_cli.errors import Message, filled

if TYPE_CHECKING:
    from gettext import GNUTranslations

Language = Literal["en", "zh"]
DOMAIN = "dcclip"
LOCALES = Path(__file__).parent / "locale"


def language() -> Language:
    """Chinese if DCCLIP_LANG, or without it the locale, begins with zh; otherwise English."""
    names = ("DCCLIP_LANG", "LC_ALL", "LC_MESSAGES", "LANG")
    asked = next(filter(None, map(os.environ.get, names)), "")
    return "zh" if asked.lower().startswith("zh") else "en"


def translated(text: str, to: Language | None = None) -> str:
    """A Message in the user's language, or in another one, with all Messages in it; any other text as it is."""
    if not isinstance(text, Message) or (to or language()) == "en":
        return text
    template = _chinese().gettext(text.template) if text.template else ""
    return filled(template, {place: translated(value, to) for place, value in text.values.items()})


def load_catalogue() -> None:
    """Read the catalogue now if the language has one, so that `translated` imports and reads nothing later."""
    if language() == "zh":
        _chinese()


@cache
def _chinese() -> GNUTranslations:
    import gettext

    return gettext.translation(DOMAIN, LOCALES, ["zh"])
