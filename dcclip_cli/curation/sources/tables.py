"""What is one file of a table, whatever its format: columns, and rows that can be read from anywhere in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dcclip_cli.curation.candidate import Drop, Slice

Cells = dict[str, Any] | Drop  # a row by its columns, or why there is none


class TableFile(ABC):
    """One file with rows; `header` names its columns if no line in it does, `limit` bounds the bytes of a row."""

    def __init__(self, path: Path, header: tuple[str, ...], limit: int) -> None:
        self.path = path
        self.header = header
        self.limit = limit

    @abstractmethod
    def columns(self) -> list[str]:
        """The names of the columns."""

    @abstractmethod
    def slices(self, size: int) -> Iterator[Slice]:
        """Parts of about `size` rows."""

    @abstractmethod
    def rows(self, part: Mapping[str, Any]) -> Iterator[tuple[str, Cells]]:
        """The rows of one part, each with its number: of the line it begins on, in Parquet of the row; from 1."""
