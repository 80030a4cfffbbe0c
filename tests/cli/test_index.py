"""`dcclip index`: what it prints and writes, and how a changed shard is reported."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.shards import Columns
from tests.cli.test_commands import dcclip
from tests.data.test_dataset import CAT, DOG, write_tar


def test_shards_are_indexed_once_and_counted(tmp_path: Path) -> None:
    for name, pairs in (("0", [CAT, DOG]), ("1", [DOG])):
        write_tar(tmp_path / f"{name}.tar", *pairs)
    result = dcclip("index", tmp_path)
    assert (result.exit_code, result.stdout) == (0, "3 pairs in 2 files\n")
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar.index.arrow")}
    assert len(written) == 2
    assert dcclip("index", f"{tmp_path}/*.tar").stdout == "3 pairs in 2 files\n"
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_shard_that_has_changed_is_named_and_indexed_again_when_asked(tmp_path: Path) -> None:
    tar = tmp_path / "0.tar"
    write_tar(tar, CAT, DOG)
    dcclip("index", tar)
    assert dcclip("index", tar, "--verify").stdout == "2 pairs in 1 file\n"
    about = tar.stat()
    tar.write_bytes(tar.read_bytes().replace(b"PNG cat", b"PNG dog"))
    os.utime(tar, ns=(about.st_atime_ns, about.st_mtime_ns))
    result = dcclip("index", tar, "--verify")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        f"error: {tar} differs from its index {tar}.index.arrow",
        "hint:  if the data is right, index it again: dcclip index --fresh PATH",
    ]
    dcclip("index", tar, "--fresh")
    assert open_pairs(tar)[0].image == b"\x89PNG dog"


def test_the_columns_of_others_are_options(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": [b"1", b"2"], "alt": ["一只猫", "a dog"]}), tmp_path / "a.parquet")
    result = dcclip("index", tmp_path)
    assert result.exit_code == 1 and "has no column image (found: jpg, alt)" in result.stderr
    assert dcclip("index", tmp_path, "--image", "jpg", "--caption", "alt").stdout == "2 pairs in 1 file\n"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.parquet", "a.parquet.index.arrow"]
    pairs = open_pairs(tmp_path, Columns(image="jpg", caption="alt"))
    assert (pairs[0].zh, pairs[1].en) == (("一只猫",), ("a dog",))


def test_a_folder_without_shards_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "猫.txt").write_text("猫", "utf-8")
    result = dcclip("index", tmp_path)
    assert result.exit_code == 1 and "has no tar and no Parquet file" in result.stderr
