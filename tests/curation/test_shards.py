"""What stands in a shard and in the table of what was dropped."""

import hashlib
import tarfile
from pathlib import Path

import pyarrow.parquet as pq

from dcclip_cli.curation.shards import DroppedTable, Shard, ShardWriter, join_dropped
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.reading import Drop
from tests.curation.conftest import MakeImage


def write(path: Path, pairs: list[Pair]) -> Shard:
    path.parent.mkdir(exist_ok=True)
    writer = ShardWriter(path)
    for pair in pairs:
        writer.add(pair)
    return writer.finish(path.name)


def test_shards_read_back_as_the_pairs_written(tmp_path: Path, picture: MakeImage) -> None:
    pairs = [
        Pair("0", picture("red", kind="JPEG"), zh=("猫，在睡觉", "小猫"), en=("cat",), meta={"license": "MIT", "n": 1}),
        Pair("1", picture("blue", kind="PNG"), en=("dog", "a dog")),
        Pair("2", picture("green", kind="WEBP"), zh=("狐狸",)),
    ]
    write(tmp_path / "out" / "000000.tar", pairs[:2])
    shard = write(tmp_path / "out" / "000004.tar", pairs[2:])
    assert (shard.name, shard.pairs) == ("000004.tar", 1)
    assert list(open_pairs(tmp_path / "out")) == pairs


def test_members_wear_no_time_and_no_owner_and_the_json_is_readable(tmp_path: Path, picture: MakeImage) -> None:
    write(tmp_path / "000000.tar", [Pair("7", picture(kind="WEBP"), zh=("猫",), en=("cat",))])
    with tarfile.open(tmp_path / "000000.tar") as archive:
        image, record = archive.getmembers()
        stream = archive.extractfile(record)
        assert stream is not None
        assert stream.read().decode() == '{"en": ["cat"], "zh": ["猫"]}'
    assert (image.name, record.name) == ("7.webp", "7.json")
    for member in (image, record):
        owner = (member.uid, member.gid, member.uname, member.gname)
        assert (member.mtime, owner, member.mode) == (0, (0, 0, "", ""), 0o644)


def test_equal_pairs_give_equal_bytes_and_the_sha256_is_the_files(tmp_path: Path, picture: MakeImage) -> None:
    first, second = (
        write(tmp_path / name / "0.tar", [Pair("0", picture(), zh=("猫",), meta=meta)])
        for name, meta in (("a", {"x": 1, "y": 2}), ("b", {"y": 2, "x": 1}))
    )
    assert first == second
    assert first.sha256 == hashlib.sha256((tmp_path / "a" / "0.tar").read_bytes()).hexdigest()


def test_metadata_that_utf8_cannot_hold_is_replaced(tmp_path: Path, picture: MakeImage) -> None:
    write(tmp_path / "0.tar", [Pair("0", picture(), zh=("猫",), meta={"file": "\udcff.png"})])
    assert open_pairs(tmp_path)[0].meta == {"file": "?.png"}


def test_the_table_of_the_dropped_has_a_row_for_a_pair_and_one_for_a_caption_by_key(tmp_path: Path) -> None:
    read, written = DroppedTable(), DroppedTable()
    second = Pair("1", b"", zh=("狗" * 2000,), en=("dog", "\ud83d"), meta={"source": "a.tsv", "origin": "3"})
    read.add(second, Drop("image-missing"))
    first = Pair("0", b"", meta={"source": "a.tsv", "origin": "2"})
    read.add(first, Drop("caption-language", "looks like zh"), "en", "猫")
    written.add(first, Drop("no-caption"))
    read.write(tmp_path / "read.parquet")
    written.write(tmp_path / "written.parquet")
    join_dropped([[tmp_path / "read.parquet", tmp_path / "written.parquet"]], tmp_path / "dropped.parquet")
    assert [list(row.values()) for row in pq.read_table(tmp_path / "dropped.parquet").to_pylist()] == [
        ["0", "a.tsv:2", "caption-language", "looks like zh", "en", [], ["猫"]],
        ["0", "a.tsv:2", "no-caption", "", None, [], []],
        ["1", "a.tsv:3", "image-missing", "", None, ["狗" * 1000], ["dog", "?"]],
    ]
