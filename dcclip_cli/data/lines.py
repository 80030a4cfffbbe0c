"""Text without pictures, for the text tower alone: lines of either language, or parallel text."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from dcclip_cli.data.pair import LANGUAGES, Language, Pair
from dcclip_cli.data.table import PairTable, open_pairs
from dcclip_cli.errors import DcclipError

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
Captions = dict[Language, tuple[str, ...]]


class Lines(PairTable):
    """Lines of text; what stands in one line in both languages says the same."""

    def __init__(self, path: Path, lines: list[Captions]) -> None:
        self.path = path
        self._captions = {language: [line.get(language, ()) for line in lines] for language in LANGUAGES}

    def __len__(self) -> int:
        return len(self._captions["zh"])

    def __getitem__(self, index: int) -> Pair:
        return Pair(str(index), b"", self._captions["zh"][index], self._captions["en"][index])

    def captions(self, language: Language) -> list[tuple[str, ...]]:
        return self._captions[language]

    @property
    def files(self) -> list[Path]:
        return [self.path]

    @property
    def pictures(self) -> int:
        return 0

    def place(self, index: int) -> tuple[int, int]:
        return 0, index


def open_lines(path: str | Path) -> PairTable:
    """The text in a file: .txt, one caption a line, in Chinese if it has a Chinese character; .tsv or .csv with columns
    zh and en, or without a header two columns of which one is Chinese; .jsonl, objects with zh and en, a string or a
    list each; .parquet or .tar, pairs, of which each different caption is a line. UTF-8; empty lines are passed over.
    Raises DcclipError where the file is something else, or empty.
    """
    path = Path(path)
    if not path.exists():
        raise DcclipError(f"{path} does not exist", "check the path; in a recipe it is relative to the recipe's folder")
    if path.is_dir() or path.suffix not in _READERS:
        raise DcclipError(f"{path} is no text file that dcclip reads", f"name one of {', '.join(_READERS)}")
    try:
        lines = [line for line in _READERS[path.suffix](path) if line]
    except UnicodeDecodeError as error:
        raise DcclipError(f"{path} is not UTF-8: {error.reason} at byte {error.start}", "save it as UTF-8") from None
    if not lines:
        raise DcclipError(f"{path} holds no text", "every line in it is empty: write it again, or name another")
    return Lines(path, lines)


def _language(text: str) -> Language:
    return "zh" if _HAN.search(text) else "en"


def _plain(path: Path) -> Iterator[Captions]:
    with path.open(encoding="utf-8-sig") as stream:
        for line in stream:
            text = line.strip()
            yield {_language(text): (text,)} if text else {}


def _separated(path: Path) -> Iterator[Captions]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        if path.suffix == ".tsv":  # nobody quotes there, and a lone " is a character
            rows: Iterator[list[str]] = (line.rstrip("\r\n").split("\t") for line in stream)
        else:
            rows = csv.reader(stream)
        columns: dict[Language, int] = {}
        for number, row in enumerate(rows, 1):
            texts = [text.strip() for text in row]
            if not any(texts):
                continue
            if not columns:
                columns = _columns(path, texts)
                if texts[min(columns.values())] in LANGUAGES:
                    continue  # the header
            if len(texts) <= max(columns.values()):
                raise DcclipError(
                    f"{path}:{number}: {len(texts)} columns, and {max(columns.values()) + 1} are wanted",
                    "each line has the same columns; leave a text empty where it is missing",
                )
            yield {language: (texts[column],) for language, column in columns.items() if texts[column]}


def _columns(path: Path, first: list[str]) -> dict[Language, int]:
    """Which column holds which language, from the first line: a header, or Chinese beside English."""
    named: dict[Language, int] = {language: first.index(language) for language in LANGUAGES if language in first}
    if named:
        return named
    languages = [_language(text) for text in first]
    if sorted(languages) != ["en", "zh"]:
        raise DcclipError(
            f"{path}:1: it can't be told which column is Chinese and which English", "begin with a header: zh, en"
        )
    return {language: column for column, language in enumerate(languages)}


def _objects(path: Path) -> Iterator[Captions]:
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DcclipError(f"{path}:{number}: not JSON: {error}", "write one JSON object a line") from None
            if not isinstance(record, dict):
                raise DcclipError(f"{path}:{number}: not a JSON object", 'write lines like {"zh": "猫", "en": "cat"}')
            yield _captions(record, f"{path}:{number}")


def _captions(record: dict[str, object], where: str) -> Captions:
    found: Captions = {}
    for language in LANGUAGES:
        value = record.get(language) or ()
        texts = (value,) if isinstance(value, str) else value
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise DcclipError(f"{where}: {language} is no text", "write a string, or a list of strings")
        if kept := tuple(text.strip() for text in texts if text.strip()):
            found[language] = kept
    return found


def _pairs(path: Path) -> Iterator[Captions]:
    """The captions of pairs, which need not say the same in both languages: keywords are not parallel."""
    table = open_pairs(path)
    for language in LANGUAGES:
        for text in dict.fromkeys(text for own in table.captions(language) for text in own):
            yield {language: (text,)}


_READERS: dict[str, Callable[[Path], Iterator[Captions]]] = {
    ".txt": _plain,
    ".tsv": _separated,
    ".csv": _separated,
    ".jsonl": _objects,
    ".parquet": _pairs,
    ".tar": _pairs,
}
