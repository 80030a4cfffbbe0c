"""Several tables as one: pairs, then pictures without captions, then lines without pictures."""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from dcclip_cli.data.pair import LANGUAGES, Language, Pair
from dcclip_cli.data.table import PairTable


class JoinedTable(PairTable):
    """Tables one after the other; those with pictures have to come first."""

    def __init__(self, tables: list[PairTable]) -> None:
        self.path = tables[0].path
        self._tables = tables
        self.firsts = [0, *accumulate(map(len, tables))]  # the number at which each begins
        self._file_firsts = [0, *accumulate(len(table.files) for table in tables)]
        self._captions = {
            language: [captions for table in tables for captions in table.captions(language)] for language in LANGUAGES
        }

    def __len__(self) -> int:
        return self.firsts[-1]

    def __getitem__(self, index: int) -> Pair:
        number = self._table_of(index)
        return self._tables[number][index - self.firsts[number]]

    def captions(self, language: Language) -> list[tuple[str, ...]]:
        return self._captions[language]

    @property
    def files(self) -> list[Path]:
        return [file for table in self._tables for file in table.files]

    @cached_property
    def file_digests(self) -> list[bytes]:
        return [digest for table in self._tables for digest in table.file_digests]

    @property
    def pictures(self) -> int:
        return sum(table.pictures for table in self._tables)

    @property
    def has_bare_pictures(self) -> bool:
        return any(table.has_bare_pictures for table in self._tables)

    def place(self, index: int) -> tuple[int, int]:
        number = self._table_of(index)
        file, place = self._tables[number].place(index - self.firsts[number])
        return self._file_firsts[number] + file, place

    def _table_of(self, index: int) -> int:
        return bisect_right(self.firsts, index) - 1
