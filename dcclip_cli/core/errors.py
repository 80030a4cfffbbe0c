"""Messages for users, their translation from the catalogue in `locale/`, and the exception for
what users can fix.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from gettext import GNUTranslations

Language = Literal["en", "zh"]
DOMAIN = "dcclip"
LOCALES = Path(__file__).parents[1] / "locale"

FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")  # a doubled brace, or a field: {}, {:,}, {1}, {name}


class Message(str):
    """A text in English that keeps its template and the texts of its fields, for a translation of
    the template.

    Fields are those of str.format: `{}` and `{:,}` take the values one by one, `{0}` by its
    number, `{name}` one of `named`. Doubled braces are braces, with or without fields; a template
    without any values keeps its fields. A value that is a Message, or an exception with one, stays
    a Message and is translated as well.
    """

    template: str
    values: Mapping[str, str]  # by field, numbered, as in the template: "0", "1:,", "name!r"

    def __new__(cls, template: str, /, *values: object, **named: object) -> Message:
        text_by_field: dict[str, str] = {}

        def text_of(field: str) -> str:
            name = re.split("[.!:]", field, maxsplit=1)[0]
            value = values[int(name)] if name.isdecimal() else named.get(name)
            if isinstance(value, Exception) and value.args and isinstance(value.args[0], Message):
                value = value.args[0]
            text = value if isinstance(value, Message) else f"{{{field}}}".format(*values, **named)
            return text_by_field.setdefault(field, text)

        return _message(
            _fill(template, text_of if values or named else text_by_field.get),
            template,
            text_by_field,
        )

    def map(self, change: Callable[[str], str]) -> Message:
        """The same with the text of each field changed."""
        values = {field: change(text) for field, text in self.values.items()}
        return _message(filled(self.template, values), self.template, values)

    def __reduce__(self) -> tuple[object, ...]:
        return _message, (str(self), self.template, self.values)


def _message(text: str, template: str, values: Mapping[str, str]) -> Message:
    message = str.__new__(Message, text)
    message.template = template
    message.values = values
    return message


def _takes_next(field: str | None) -> bool:
    """Whether a field, None for a doubled brace, takes the next of the values: {} or {:,}."""
    return field is not None and field[:1] in ("", "!", ":")


def _fill(template: str, text_of: Callable[[str], str | None]) -> str:
    count = itertools.count()

    def text(match: re.Match[str]) -> str:
        field = match[1]
        if field is None:
            return match[0][0]
        filled = text_of(f"{next(count)}{field}" if _takes_next(field) else field)
        return match[0] if filled is None else filled

    return FIELD.sub(text, template)


def filled(template: str, values: Mapping[str, str]) -> str:
    """A template with texts for its numbered fields; what looks like a field in a text is none."""
    return _fill(template, values.get)


def joined(separator: str, parts: Iterable[str]) -> Message:
    """Messages as one: below each other with a line break as `separator`, or side by side."""
    texts = list(parts)
    return Message(separator.join(["{}"] * len(texts)), *texts)


def all_of(parts: Iterable[str]) -> str:
    """One or more parts with "and" between them, in the reader's language."""
    return reduce(lambda first, second: Message("{} and {}", first, second), parts)


def language() -> Language:
    """Chinese if DCCLIP_LANG, or without it the locale, begins with zh; otherwise English."""
    names = ("DCCLIP_LANG", "LC_ALL", "LC_MESSAGES", "LANG")
    locale = next(filter(None, map(os.environ.get, names)), "")
    return "zh" if locale.lower().startswith("zh") else "en"


def translated(text: str, to: Language | None = None) -> str:
    """A Message in the user's language, or in another one, with all Messages in it; any other text
    as it is.
    """
    if not isinstance(text, Message) or not text.template or (to or language()) == "en":
        return text
    template = _chinese().gettext(text.template)
    return filled(template, {place: translated(value, to) for place, value in text.values.items()})


def load_catalogue() -> None:
    """Read the catalogue now if the language has one, so that `translated` imports and reads
    nothing later.
    """
    if language() == "zh":
        _chinese()


@cache
def _chinese() -> GNUTranslations:
    import gettext

    return gettext.translation(DOMAIN, LOCALES, ["zh"])


class DcclipError(Exception):
    """An error that the user can fix: `what` says where and what is wrong, `hint` what to do next.

    Each is a Message, or a template: what the fields `{}` of `what` leave of the values is for
    those of `hint`. The command line prints them as two lines (`error:` and `hint:`), and exits
    with 1.
    """

    def __init__(self, what: str, hint: str, /, *values: object, **named: object) -> None:
        used = (
            0
            if isinstance(what, Message)
            else sum(_takes_next(match[1]) for match in FIELD.finditer(what))
        )
        self.what = what if isinstance(what, Message) else Message(what, *values, **named)
        self.hint = hint if isinstance(hint, Message) else Message(hint, *values[used:], **named)
        super().__init__(self.what)

    def __reduce__(self) -> tuple[type, tuple[Message, Message]]:
        return type(self), (self.what, self.hint)  # it is pickled to leave a worker process


class AgainError(DcclipError):
    """An error after which the same command goes on."""


_WRITING = "while writing "


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let every error of the block name `path`, also that of a library that does not say what it
    was writing.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)
        elif written_by(error) is None:
            error.add_note(f"{_WRITING}{path}")
        raise


def written_by(error: BaseException) -> str | None:
    """What was being written when an error was raised, according to `writing`."""
    notes = (note for note in getattr(error, "__notes__", ()) if note.startswith(_WRITING))
    return next((note.removeprefix(_WRITING) for note in notes), None)
