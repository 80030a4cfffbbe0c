"""Images in base64 with captions in JSON lines, as Chinese-CLIP's data sets ship."""

import base64
import json
from pathlib import Path

import pytest

from dcclip_cli.curation.candidate import Candidate
from dcclip_cli.curation.sources.base import SourceOptions
from dcclip_cli.curation.sources.base64 import Base64Source
from dcclip_cli.errors import DcclipError


def read(source: SourceOptions, size: int = 1000) -> list[Candidate]:
    parts = [json.loads(json.dumps(dict(part.part))) for part in source.slices(size)]
    return [candidate for part in parts for candidate in source.read(part)]


def faults(source: SourceOptions, size: int = 1000) -> dict[str, str | None]:
    return {one.pair.key: one.fault.reason if one.fault else None for one in read(source, size)}


def muge(folder: Path, split: str = "train") -> Path:
    """Three images and three texts, as MUGE has them: one text has two images, one image two texts, one none."""
    rows = [f"{number}\t{base64.b64encode(str(number).encode() * 300).decode()}\n" for number in (1000002, 517602, 3)]
    (folder / f"{split}_imgs.tsv").write_text("".join(rows))
    texts = [
        {"text_id": 8428, "text": "高级感托特包斜挎", "image_ids": [1000002, 517602]},
        {"text_id": 8429, "text": "iphone case", "image_ids": [517602]},
        {"text_id": 8430, "text": "没有图", "image_ids": []},
    ]
    (folder / f"{split}_texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    return folder / f"{split}_imgs.tsv"


@pytest.mark.parametrize("size", [1, 2, 10])
def test_muge_reads_as_it_ships(tmp_path: Path, size: int) -> None:
    found = read(Base64Source(path=muge(tmp_path)), size)
    assert [(one.pair.key, one.pair.image[:7], one.pair.zh, one.pair.en) for one in found] == [
        ("1000002", b"1000002", ("高级感托特包斜挎",), ()),
        ("517602", b"5176025", ("高级感托特包斜挎",), ("iphone case",)),
        ("3", b"3333333", (), ()),
    ]
    assert not any(one.fault for one in found)


def test_texts_may_be_said_to_be_chinese_all_of_them(tmp_path: Path) -> None:
    found = read(Base64Source(path=muge(tmp_path), language="zh"))
    assert found[1].pair.zh == ("高级感托特包斜挎", "iphone case")


def test_a_folder_holds_several_splits(tmp_path: Path) -> None:
    muge(tmp_path, "train")
    muge(tmp_path, "valid")
    (tmp_path / "notes.tsv").touch()
    assert [part.about for part in Base64Source(path=tmp_path).slices(2)] == [2, 1, 2, 1]
    assert list(faults(Base64Source(path=tmp_path)))[3:] == [
        "valid_imgs.tsv:1000002",
        "valid_imgs.tsv:517602",
        "valid_imgs.tsv:3",
    ]


def test_images_without_their_file_of_texts_are_an_error(tmp_path: Path) -> None:
    path = muge(tmp_path)
    (tmp_path / "train_texts.jsonl").unlink()
    with pytest.raises(DcclipError, match=r"train_imgs.tsv has no train_texts.jsonl beside it"):
        Base64Source(path=path).slices(10)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (b"7\t*bad*", {"7": "image-base64"}),
        (b"7\t\xff\xfe", {"7": "image-base64"}),
        (b"7\tabcde", {"7": "image-base64"}),
        (b"7 without a tab", {"line 1": "row-malformed"}),
        (b"\0\0\0", {"line 1": "row-malformed"}),
        (b"x" * 5000 + b"\tabcd", {"line 1": "row-malformed"}),
        (b"7\t" + b"A" * 86_000_000, {"line 1": "image-bytes"}),
        (b"\n\n", {}),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_broken_row_is_a_fault_and_the_next_is_read(tmp_path: Path, row: bytes, expected: dict[str, str]) -> None:
    path = muge(tmp_path)
    path.write_bytes(row + b"\n" + path.read_bytes())
    good = dict.fromkeys(("1000002", "517602", "3"))
    assert faults(Base64Source(path=path)) == expected | good


def test_a_broken_line_of_texts_is_one_fault_however_many_slices_there_are(tmp_path: Path) -> None:
    path = muge(tmp_path)
    broken = [b"{", b"[1]", b'{"text": 3}', b'{"text": "a", "image_ids": 3}', b"\xff", b"[" * 100_000, b"x" * 2_000_000]
    with (tmp_path / "train_texts.jsonl").open("ab") as stream:
        stream.write(b"\n".join(broken) + '\n\n{"text": "包", "image_ids": ["3"]}'.encode())
    found = read(Base64Source(path=path), size=1)
    assert [(one.pair.key, one.fault.reason) for one in found if one.fault] == [
        *((f"train_texts.jsonl:{line}", "captions-unreadable") for line in range(4, 10)),
        ("train_texts.jsonl:10", "captions-bytes"),
    ]
    assert found[-1].pair.zh == ("包",)
