"""Shards that no library writes are refused by file and record, without a traceback."""

import io
import json
import os
import struct
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.preview import preview_pairs
from dcclip_cli.data.unpaired import open_texts
from dcclip_cli.errors import DcclipError
from tests.images import encode

IMAGE = encode(Image.new("RGB", (8, 8), "red"))
RECORD = json.dumps({"zh": ["红"], "en": ["red"]}).encode()
NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 1, [None, pa.py_buffer(struct.pack("<ii", 0, 2)), pa.py_buffer(b"\xff\xfe")]
)


def tar_with(file: Path, headers: dict[str, str], record: bytes = RECORD) -> Path:
    """A tar of two pairs, the second image with an extended header."""
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (("猫.png", IMAGE), ("猫.json", RECORD), ("b.png", IMAGE), ("b.json", record)):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(content), headers if name == "b.png" else {}
            archive.addfile(info, io.BytesIO(content))
    return file


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.size": "x"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "b.png", "GNU.sparse.realsize": "9"},
        {"size": "-100"},
        {"size": "many"},
    ],
)
def test_a_tar_with_an_impossible_extended_header_is_refused(tmp_path: Path, headers: dict[str, str]) -> None:
    file = tar_with(tmp_path / "坏.tar", headers)
    for read in (open_pairs, preview_pairs):
        with pytest.raises(DcclipError, match=r"坏\.tar is not a readable tar file") as raised:
            read(file)
        assert raised.value.hint == "fetch or collect it again"


def test_half_a_character_in_a_caption_is_written_out(tmp_path: Path) -> None:
    content = b'{"en": ["red \\ud800 cat"], "zh": ["\\u732b \\udfff"]}'
    file = tar_with(tmp_path / "a.tar", {}, content)
    (tmp_path / "a.jsonl").write_bytes(content)
    for found in (open_pairs(file)[1], open_texts(tmp_path / "a.jsonl")[0]):
        assert found.en == ("red \\ud800 cat",) and found.zh == ("猫 \\udfff",)
    assert preview_pairs(file).bytes_per_caption(("zh", "en")) == (3 + 3 + 10 + 14) / 4  # for an estimate


def parquet(file: Path, **columns: Any) -> Path:
    pq.write_table(pa.table({"key": ["a"], "image": [IMAGE], "en": ["red"], **columns}), file)
    return file


@pytest.mark.parametrize("column", ["key", "en", "zh", "meta"])
def test_text_in_parquet_that_is_not_utf8_is_shown(tmp_path: Path, column: str) -> None:
    file = parquet(tmp_path / "坏.parquet", **{column: NOT_UTF8})
    for read in (open_pairs, preview_pairs) if column in ("zh", "en") else (open_pairs,):
        with pytest.raises(DcclipError, match=r"坏\.parquet has text that is not UTF-8: b'\\xff\\xfe'"):
            read(file)


def test_columns_of_another_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(DcclipError, match=r"a\.parquet: column image is struct<path: string>, not images"):
        open_pairs(parquet(tmp_path / "a.parquet", image=[{"path": "红.jpg"}]))
    with pytest.raises(DcclipError, match=r"b\.parquet: pair a: en is not a list of captions"):
        open_pairs(parquet(tmp_path / "b.parquet", en=[3]))
    with pytest.raises(DcclipError, match=r"c\.parquet: meta of pair a is not text"):
        open_pairs(parquet(tmp_path / "c.parquet", meta=[3]))


@pytest.mark.parametrize("suffix", [".tar", ".parquet"])
def test_a_pipe_in_place_of_a_shard_is_refused_at_once(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"管{suffix}")
    with pytest.raises(DcclipError, match=rf"管{suffix} is a pipe, not a file"):
        open_pairs(tmp_path / f"管{suffix}")
