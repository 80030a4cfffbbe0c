"""The exception for errors that the user can fix, and the file that an error of the system is about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DcclipError(Exception):
    """An error that the user can fix: `what` says where and what is wrong, `hint` what to do next.

    The command line prints it as two lines (`error:` and `hint:`) and exits with 1.
    """

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
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
