"""Messages for users: texts that keep their template, and the exception for errors that users can fix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

FIELD = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")  # a doubled brace, or a field with its format: {name}, {count:,}


class Message(str):
    """A text in English that keeps its template and the values of its fields, for a translation of the template.

    In a template, with or without fields, a doubled brace is a brace; a template without any values keeps its fields.
    A value that is a Message, or an exception with one, stays a Message and is translated as well.
    """

    template: str
    values: Mapping[str, str]  # by field, format included, as in the template

    def __new__(cls, template: str, /, **fields: object) -> Message:
        places = [place for place in FIELD.findall(template) if place] if fields else []
        return _message(template, {place: _value(place, fields) for place in places})

    def __reduce__(self) -> tuple[object, ...]:
        return _message, (self.template, self.values)


def _message(template: str, values: Mapping[str, str]) -> Message:
    text = str.__new__(Message, filled(template, values))
    text.template, text.values = template, values
    return text


def _value(place: str, fields: Mapping[str, object]) -> str:
    value = fields.get(place)
    if isinstance(value, Exception) and value.args and isinstance(value.args[0], Message):
        value = value.args[0]
    return value if isinstance(value, Message) else f"{{{place}}}".format(**fields)


def filled(template: str, values: Mapping[str, str]) -> str:
    """A template with values for its fields; what looks like a field in a value is none."""
    return FIELD.sub(lambda found: values.get(found[1], found[0]) if found[1] else found[0][0], template)


def joined(separator: str, parts: Iterable[str]) -> Message:
    """Messages as one: below each other with a line break as `separator`, or side by side."""
    fields = {f"part{number}": part for number, part in enumerate(parts)}
    return Message(separator.join(f"{{{name}}}" for name in fields), **fields)


class DcclipError(Exception):
    """An error that the user can fix: `what` says where and what is wrong, `hint` what to do next.

    Each is a template for the `fields`, or a Message. The command line prints them as two lines
    (`error:` and `hint:`), and exits with 1.
    """

    def __init__(self, what: str, hint: str, /, **fields: object) -> None:
        self.what = what if isinstance(what, Message) else Message(what, **fields)
        self.hint = hint if isinstance(hint, Message) else Message(hint, **fields)
        super().__init__(self.what)

    def __reduce__(self) -> tuple[type, tuple[Message, Message]]:
        return type(self), (self.what, self.hint)  # it is pickled to leave a worker process


class AgainError(DcclipError):
    """An error after which the same command goes on."""


_WRITING = "while writing "


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let every error of the block name `path`, also that of a library that does not say what it was writing."""
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
