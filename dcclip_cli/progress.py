"""How long-running work reports where it is, without knowing about terminals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Task(Protocol):
    """One running piece of work."""

    def advance(self, steps: int = 1, **figures: float) -> None:
        """Count `steps` more as done and show `figures` (loss, images/s, ...) beside the bar."""


class Progress(Protocol):
    """Something that shows tasks: a terminal's bars, plain lines, or nothing."""

    def say(self, line: str) -> None:
        """Show one line of talk (stderr in a terminal)."""

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        """Show a task of `total` steps of which `done` were finished before."""
        yield from ()


class _SilentTask:
    def advance(self, steps: int = 1, **figures: float) -> None:
        pass


class Silent:
    """A Progress that shows nothing: the default of every function that takes one."""

    def say(self, line: str) -> None:
        pass

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        yield _SilentTask()
