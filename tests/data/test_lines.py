"""Text without pictures, in every form that people keep it in."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcclip_cli.data.unpaired import open_texts
from dcclip_cli.errors import DcclipError


def write(tmp_path: Path, name: str, text: str) -> Path:
    (tmp_path / name).write_text(text, "utf-8")
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "en\tzh\na cat, “asleep”\t一只猫，睡着了\na dog\t狗\n"),
        ("a.tsv", "a cat, “asleep”\t一只猫，睡着了\r\na dog\t狗\r\n"),
        ("a.csv", 'zh,en\n一只猫，睡着了,"a cat, “asleep”"\n狗,a dog\n'),
        ("a.jsonl", '{"zh": "一只猫，睡着了", "en": ["a cat, “asleep”"]}\n\n{"zh": ["狗"], "en": "a dog", "id": 3}\n'),
    ],
)
def test_parallel_text_is_read_line_by_line(tmp_path: Path, name: str, text: str) -> None:
    lines = open_texts(write(tmp_path, name, text))
    assert lines.captions("zh") == [("一只猫，睡着了",), ("狗",)]
    assert lines.captions("en") == [("a cat, “asleep”",), ("a dog",)]
    assert (len(lines), lines.num_images) == (2, 0)


def test_plain_lines_are_chinese_if_they_have_a_chinese_character(tmp_path: Path) -> None:
    lines = open_texts(write(tmp_path, "a.txt", "\ufeff一只 cat\n\n  a dog \n"))
    assert lines.captions("zh") == [("一只 cat",), ()]
    assert lines.captions("en") == [(), ("a dog",)]


def test_a_quotation_mark_in_a_tsv_is_a_character(tmp_path: Path) -> None:
    lines = open_texts(write(tmp_path, "a.tsv", 'a 5" pipe\t五英寸管\n"so"\t“这样”\n'))
    assert lines.captions("en") == [('a 5" pipe',), ('"so"',)]


def test_a_side_may_be_empty(tmp_path: Path) -> None:
    lines = open_texts(write(tmp_path, "a.tsv", "zh\ten\n猫\t\n\ta dog\n"))
    assert (lines.captions("zh"), lines.captions("en")) == ([("猫",), ()], [(), ("a dog",)])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.tsv", "a cat\ta dog\n", r"a\.tsv:1: cannot tell which column is Chinese"),
        ("a.tsv", "zh\ten\n猫\tcat\n狗\n", r"a\.tsv:3: 1 columns instead of 2"),
        ("a.jsonl", '{"zh": "猫"}\n{"zh": \n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", "[]\n", r"a\.jsonl:1: not a JSON object"),
        ("a.jsonl", '{"en": 3}\n', r"a\.jsonl:1: en is not text"),
        ("a.txt", " \n\n", r"a\.txt has no text"),
        ("a.docx", "猫", r"a\.docx is not a text file"),
    ],
)
def test_what_can_not_be_read_is_named_with_file_and_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(DcclipError, match=said) as raised:
        open_texts(write(tmp_path, name, text))
    assert raised.value.hint


def test_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("一只小猫在睡觉".encode("gb18030"))
    with pytest.raises(DcclipError, match="is not UTF-8"):
        open_texts(tmp_path / "a.txt")
    with pytest.raises(DcclipError, match="is not a text file"):
        open_texts(tmp_path)
    with pytest.raises(DcclipError, match="does not exist"):
        open_texts(tmp_path / "b.txt")


def test_each_different_caption_of_pairs_is_a_line(tmp_path: Path) -> None:
    captions = {"zh": [["猫", "动物"], ["狗", "动物"]], "en": [["cat", "animal"], ["dog"]]}
    table = {"key": ["a", "b"], "image": [b"", b""], **captions, "meta": ["{}", "{}"]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    lines = open_texts(tmp_path / "a.parquet")
    assert lines.captions("zh") == [("猫",), ("动物",), ("狗",), (), (), ()]
    assert lines.captions("en") == [(), (), (), ("cat",), ("animal",), ("dog",)]
    assert lines.num_images == 0
