"""Lines, CSV records and JSON lists of large files are read in pieces, whatever the file contains."""

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcclip_cli.data.caption_files import json_items, names_in
from dcclip_cli.data.reading import Cut, Row, cuts, lines, records


def cuts_of(rows: Callable[[BinaryIO, int], Iterator[Row]], text: bytes, size: int, limit: int) -> list[Cut]:
    stream = io.BytesIO(text)
    return list(cuts(stream, rows(stream, limit), size))


_TEXT = st.text(alphabet='a猫",\n\r ', max_size=60).map(str.encode)


def test_lines_come_with_their_number_and_offset_and_without_content_over_the_limit() -> None:
    text = "猫\n\ndog\n".encode() + b"x" * 6 + b"\nabcde"
    expected = ["猫\n".encode(), b"\n", b"dog\n", None, b"abcde"]
    starts = [0, 4, 5, 9, 16]
    assert list(lines(io.BytesIO(text), 5)) == list(map(Row, range(1, 6), starts, expected))


@given(
    st.lists(st.lists(st.text(alphabet='a猫",\n ', max_size=8), min_size=2, max_size=3), max_size=12), st.integers(1, 4)
)
def test_records_are_the_rows_that_a_csv_writer_wrote(rows: list[list[str]], size: int) -> None:
    written = io.StringIO(newline="")
    csv.writer(written).writerows(rows)
    text = written.getvalue().encode()
    assert b"".join(row.content or b"" for row in records(io.BytesIO(text), 1000)) == text
    cells = [next(csv.reader([(row.content or b"").decode()])) for row in records(io.BytesIO(text), 1000)]
    assert cells == rows
    ranges = cuts_of(records, text, size, 1000)
    assert [cut.lines for cut in ranges] == [min(size, len(rows) - at) for at in range(0, len(rows), size)]
    assert b"".join(text[cut.start : cut.end] for cut in ranges) == text


@given(_TEXT, st.integers(1, 3), st.integers(1, 20))
def test_reading_from_the_cuts_gives_the_records_of_reading_the_whole(text: bytes, size: int, limit: int) -> None:
    all_rows = list(records(io.BytesIO(text), limit))
    parts = []
    for cut in cuts_of(records, text, size, limit):
        stream = io.BytesIO(text)
        stream.seek(cut.start)
        parts += [row for row in records(stream, limit, cut.number) if row.start < cut.end]
    assert parts == all_rows


def test_a_quote_that_is_never_closed_loses_its_own_line_only() -> None:
    text = b'1,"open\n' + b"2,b\n" * 5 + b'3,"c\nd"\n'
    assert [(row.number, row.content) for row in records(io.BytesIO(text), 16)] == [
        (1, b'1,"open\n'),
        *((number, b"2,b\n") for number in range(2, 7)),
        (7, b'3,"c\nd"\n'),
    ]


def items(tmp_path: Path, text: str | bytes, *keys: str) -> list[tuple[str, object]]:
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(json_items(tmp_path / "a.json", keys))


def test_the_elements_of_lists_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = '\ufeff{"info": {"a": [1]}, "b": [ {"猫": 1} , 2], "c": [], "d": [3], "n": 12.5e3, "e": [null]}'
    assert items(tmp_path, text, "b", "d", "e") == [("b", {"猫": 1}), ("b", 2), ("d", 3), ("e", None)]
    assert items(tmp_path, " [1, [2]]", "") == [("", 1), ("", [2])]
    assert items(tmp_path, "[1]", "images") == []
    assert items(tmp_path, "{}", "images") == []


def test_a_json_file_that_is_too_large_is_a_fault_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text('[{"image": "猫.jpg", "caption": "a cat"}]', "utf-8")
    assert [image.name for image in names_in(tmp_path / "a.json")] == ["猫.jpg"]
    monkeypatch.setattr("dcclip_cli.data.caption_files.MAX_JSON_BYTES", 20)
    [image] = names_in(tmp_path / "a.json")
    assert image.fault and image.fault.detail.startswith("a.json: has 42 bytes, more than 20: split it")
