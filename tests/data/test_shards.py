"""What stands in a shard and in the table of what was dropped."""

import hashlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from dcclip_cli.data.filters import Drop
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.shards import DroppedWriter, Shard, ShardWriter
from dcclip_cli.data.table import open_pairs


def write(folder: Path, pairs: list[Pair], shard_size: int) -> list[Shard]:
    folder.mkdir(exist_ok=True)
    with ShardWriter(folder, shard_size) as writer:
        for pair in pairs:
            writer.write(pair)
    return writer.shards


def test_shards_read_back_as_the_pairs_written(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    pairs = [
        Pair("0", picture("red", kind="JPEG"), zh=("猫，在睡觉", "小猫"), en=("cat",), meta={"licence": "MIT", "n": 1}),
        Pair("1", picture("blue", kind="PNG"), en=("dog", "a dog")),
        Pair("2", picture("green", kind="WEBP"), zh=("狐狸",)),
    ]
    shards = write(tmp_path / "out", pairs, shard_size=2)
    assert [(shard.name, shard.pairs) for shard in shards] == [("000000.tar", 2), ("000001.tar", 1)]
    assert list(open_pairs(tmp_path / "out")) == pairs


def test_a_full_last_shard_is_not_followed_by_an_empty_one(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    assert len(write(tmp_path, [Pair("0", picture()), Pair("1", picture())], shard_size=1)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.tar", "000001.tar"]


def test_members_wear_no_time_and_no_owner_and_the_json_is_readable(
    tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    write(tmp_path, [Pair("7", picture(kind="WEBP"), zh=("猫",), en=("cat",))], 10)
    with tarfile.open(tmp_path / "000000.tar") as archive:
        image, record = archive.getmembers()
        stream = archive.extractfile(record)
        assert stream is not None
        assert stream.read().decode() == '{"en": ["cat"], "zh": ["猫"]}'
    assert (image.name, record.name) == ("7.webp", "7.json")
    for member in (image, record):
        assert (member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode) == (
            0,
            0,
            0,
            "",
            "",
            0o644,
        )


def test_equal_pairs_give_equal_bytes_and_the_sha256_is_the_files(
    tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    first, second = (
        write(tmp_path / name, [Pair("0", picture(), zh=("猫",), meta=meta)], 10)
        for name, meta in (("a", {"x": 1, "y": 2}), ("b", {"y": 2, "x": 1}))
    )
    assert first == second
    assert first[0].sha256 == hashlib.sha256((tmp_path / "a" / "000000.tar").read_bytes()).hexdigest()


def test_metadata_that_utf8_cannot_hold_is_replaced(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    write(tmp_path, [Pair("0", picture(), zh=("猫",), meta={"file": "\udcff.png"})], 10)
    assert open_pairs(tmp_path)[0].meta == {"file": "?.png"}


def test_the_table_of_the_dropped_has_a_row_for_a_pair_and_one_for_a_caption(tmp_path: Path) -> None:
    with DroppedWriter(tmp_path / "dropped.parquet") as writer:
        writer.write_caption("0", "a.tsv:2", Drop("caption-language", "looks like zh"), "en", "猫")
        writer.write_pair(Pair("1", b"", zh=("狗" * 2000,), en=("dog", "\ud83d")), "a.tsv:3", Drop("image-missing"))
    table = pq.read_table(tmp_path / "dropped.parquet")
    assert [list(row.values()) for row in table.to_pylist()] == [
        ["0", "a.tsv:2", "caption-language", "looks like zh", "en", [], ["猫"]],
        ["1", "a.tsv:3", "image-missing", "", None, ["狗" * 1000], ["dog", "?"]],
    ]


def test_nothing_dropped_still_leaves_a_table(tmp_path: Path) -> None:
    with DroppedWriter(tmp_path / "dropped.parquet"):
        pass
    table = pq.read_table(tmp_path / "dropped.parquet")
    assert table.num_rows == 0
    assert json.dumps(table.column_names) == '["key", "origin", "reason", "detail", "language", "zh", "en"]'
