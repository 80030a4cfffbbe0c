"""The language of a text by its script; characters that are none; where a terminal breaks a line."""

import pytest
from rich.cells import chop_cells

from dcclip_cli.errors import DcclipError
from dcclip_cli.text import check_unicode, filled, language_by_script


@pytest.mark.parametrize(
    ("text", "language"),
    [("猫", "zh"), ("T恤", "zh"), ("𠮷野家", "zh"), ("dog", "en"), ("ねこ", "en"), ("é，。", "en")],
)
def test_a_chinese_character_makes_a_text_chinese(text: str, language: str) -> None:
    assert language_by_script(text) == language


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
        ("short", ["short"]),
        ("", [""]),
    ],
)
def test_a_terminal_breaks_no_word_of_a_filled_line_which_stays_one_line(line: str, rows: list[str]) -> None:
    found = filled(line, 12)
    assert [row.rstrip() for row in chop_cells(found, 12) or [""]] == rows
    assert "\n" not in found
    assert filled(line, 80) == line
