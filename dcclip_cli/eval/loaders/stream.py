"""The samples of a split as they come from the hub, from the first to the last, no image of which is kept on disk."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcclip_cli.data.files.hub import BROKEN
from dcclip_cli.errors import DcclipError

if TYPE_CHECKING:
    from datasets import IterableDataset

_WINDOW = 64  # images that came by and were not asked for yet: several threads ask a little out of order
_AGAIN = "run the same command again: what is embedded already is kept"


class BrokenStream(Exception):
    """A stream that ended too early, with the `error` to tell: none of the image's own, which would be left out."""

    def __init__(self, error: DcclipError) -> None:
        super().__init__(error.what)
        self.error = error


class Stream:
    """Images by number, in a split that can only be read on. What is true of an image is known once it came by.

    `notes` is the file in which truths are kept, so that another language needs none of it again. An image that came
    by long ago begins the stream anew.
    """

    def __init__(self, rows: IterableDataset, image: str, truth: str, count: int | None, where: str, notes: Path):
        self._rows, self._image, self._truth, self._where, self._notes = rows, image, truth, where, notes
        self._lock = threading.Lock()
        self._coming: Iterator[dict[str, Any]] = iter(())
        self._position = -1  # of what comes next; -1 before the first
        self._window: dict[int, Any] = {}
        self._broken_by: DcclipError | None = None
        self._truths: dict[int, Any] = _read(notes)
        self._saved = len(self._truths)
        self._count = count or (len(self._truths) if self._truths else None)

    def __len__(self) -> int:
        """How many samples there are; told by the truths, which are read for it, where nothing says so before."""
        if self._count is None:
            self._count = self._see_truths(None)
            self._save()
        return self._count

    def cell(self, index: int) -> Any:
        """The image of one sample, as `datasets` has it. Raises BrokenStream."""
        with self._lock:
            if index not in self._window:
                if not 0 <= self._position <= index:
                    self._coming, self._position, self._broken_by = iter(self._rows), 0, None
                    self._window.clear()
                while self._position <= index and not self._broken_by:
                    self._advance()
                if self._broken_by:  # for every thread that asks for more
                    raise BrokenStream(self._broken_by)
            return self._window.pop(index)

    def truths(self, indices: Sequence[int]) -> list[Any]:
        """What is true of these images, as the column has it. Raises DcclipError."""
        with self._lock:
            if unknown := [index for index in indices if index not in self._truths]:
                self._see_truths(max(unknown))
            self._save()
            return [self._truths[index] for index in indices]

    def _advance(self) -> None:
        try:
            row = next(self._coming, None)
            surplus = self._position + 1 == self._count and next(self._coming, None) is not None
        except BROKEN as error:
            self._broken_by = self._broken(self._position, error)
            return
        if row is None or surplus:
            self._broken_by = self._size_error(self._position + 2 * surplus)
            return
        self._truths[self._position] = plain(row[self._truth])
        self._window[self._position] = row[self._image]
        self._window.pop(self._position - _WINDOW, None)
        self._position += 1

    def _see_truths(self, last: int | None) -> int:
        """Read the truths up to that image, or all; how many came by."""
        seen = 0
        try:
            for seen, row in enumerate(self._rows.select_columns([self._truth]), 1):
                self._truths[seen - 1] = plain(row[self._truth])
                if seen - 1 == last:
                    return seen
        except BROKEN as error:
            raise self._broken(seen, error) from None
        if last is not None:
            raise self._size_error(seen)
        return seen

    def _size_error(self, came: int) -> DcclipError:
        more = "more" if self._count and came > self._count else f"{came:,}"
        return DcclipError(f"{self._where} has {more} images, {self._count:,} are expected", "name the right split")

    def _broken(self, at: int, error: Exception) -> DcclipError:
        return DcclipError(f"{self._where} broke off after {at:,} images: {' '.join(str(error).split())[:200]}", _AGAIN)

    def _save(self) -> None:
        if len(self._truths) == self._saved:
            return
        self._saved = len(self._truths)
        self._notes.parent.mkdir(parents=True, exist_ok=True)
        partial = self._notes.with_suffix(".partial")
        partial.write_text(json.dumps(self._truths, ensure_ascii=False), "utf-8")
        partial.replace(self._notes)


class StreamedLabels:
    """The labels of a stream's images, by their numbers, once the images came by."""

    def __init__(self, stream: Stream, numbers: Callable[[Sequence[Any]], np.ndarray]) -> None:
        self._stream, self._numbers = stream, numbers

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return self._numbers(self._stream.truths(indices.tolist()))


def plain(value: Any) -> Any:
    """A truth as JSON can hold it."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def _read(notes: Path) -> dict[int, Any]:
    try:
        return {int(index): truth for index, truth in json.loads(notes.read_text("utf-8")).items()}
    except (OSError, ValueError, AttributeError):  # none yet, or broken off
        return {}
