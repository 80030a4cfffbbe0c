"""The language of a text by its script; characters that are none; where a terminal breaks a line."""

from pathlib import Path

import pytest
from rich.cells import chop_cells

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.text import (
    check_unicode,
    duration_in_words,
    encoding_of,
    filled,
    language_by_script,
    read_text,
    size_in_words,
    split_excluded,
)


@pytest.mark.parametrize(
    ("text", "language"),
    [("猫", "zh"), ("T恤", "zh"), ("𠮷野家", "zh"), ("dog", "en"), ("ねこ", "en"), ("é，。", "en")],
)
def test_a_chinese_character_makes_a_text_chinese(text: str, language: str) -> None:
    assert language_by_script(text) == language


@pytest.mark.parametrize(
    ("text", "included", "excluded"),
    [
        ("dog -beach", ["dog"], ["beach"]),
        ("狗 -海滩", ["狗"], ["海滩"]),
        ("狗　－海滩  －人 公园", ["狗 公园"], ["海滩", "人"]),
        ("-beach a  dog −park", ["a dog"], ["beach", "park"]),
        ("-é", [], ["é"]),
        *(
            (text, [text], [])
            for text in ("t-shirt", "dog - beach", "狗 － 海滩", "dog -", "-5 °C", "--x", " dog  ", "猫-狗")
        ),
    ],
)
def test_a_word_after_a_minus_is_excluded(text: str, included: list[str], excluded: list[str]) -> None:
    assert split_excluded([text]) == (included, excluded)
    assert split_excluded(["猫", text], ["人"]) == (["猫", *included], ["人", *excluded])


def test_half_a_character_is_no_text_for_a_tokenizer() -> None:
    check_unicode(["猫 cat", "👩‍🔬", ""])
    for text in ("猫\udcff", "\ud83d cat"):
        with pytest.raises(DcclipError, match="contains bytes that are not UTF-8"):
            check_unicode(["dog", text])


@pytest.mark.parametrize(
    ("line", "rows"),
    [
        ("runs/ contains no finished run", ["runs/", "contains no", "finished run"]),
        ("hf:OFA-Sys/chinese-clip 猫", ["hf:OFA-Sys/c", "hinese-clip", "猫"]),
        ("名称：模型目录，以及导出包", ["名称：模型目", "录，以及导出", "包"]),
        ("用 --model 指定模型", ["用 --model", "指定模型"]),
        ("", [""]),
    ],
)
def test_a_terminal_breaks_no_word_of_a_filled_line_which_stays_one_line(line: str, rows: list[str]) -> None:
    filled_line = filled(line, 12)
    assert [row.rstrip() for row in chop_cells(filled_line, 12) or [""]] == rows
    assert "\n" not in filled_line
    assert filled(line, 80) == line


def test_durations_and_sizes_in_words() -> None:
    durations = [duration_in_words(seconds) for seconds in (0.2, 99, 600, 9_000, 300_000)]
    assert durations == ["1 s", "99 s", "10 min", "2.5 h", "3 days"]
    assert [size_in_words(size) for size in (800, 2_345_678, 7.6e9, 2e12)] == ["1 kB", "2.3 MB", "7.6 GB", "2.0 TB"]


CHINESE = "猫\n一只在雪地里的狗，红色的圆"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (CHINESE.encode("gbk"), "GB18030"),
        (CHINESE.encode("utf-16"), "UTF-16"),
        ("貓\n一隻在雪地裡的狗，紅色的圓".encode("big5"), None),
        ("привет мир".encode("cp1251"), None),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), None),
        (b"", None),
    ],
)
def test_an_encoding_is_known_by_its_mark_or_its_characters(content: bytes, found: str | None) -> None:
    assert encoding_of(content) == found


def test_text_is_bounded_and_what_is_wrong_is_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\ufeff猫\n", "utf-8")
    assert read_text(file, 100, "") == "猫\n"
    for path, most_bytes, complaint in (
        (tmp_path / "none", 9, "does not exist"),
        (tmp_path, 9, "is a folder"),
        (file, 3, "is larger than"),
    ):
        with pytest.raises(DcclipError, match=complaint):
            read_text(path, most_bytes, "give another")
