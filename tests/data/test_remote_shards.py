"""Shards in an S3 store and on a web server: the same samples as from disk, through a bounded cache."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcclip_cli.data import index, indexed
from dcclip_cli.data import remote as stores
from dcclip_cli.data.dataset import find_dataset, open_pairs, shards_at, write_parquet
from dcclip_cli.data.index import cached, find_indexes, own_place, verify_files, write_index
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.remote import DataFile, list_files
from dcclip_cli.data.shards import Columns
from dcclip_cli.errors import DcclipError
from dcclip_cli.files import cache_folder
from tests.data.servers import S3, forget_connections, http_server
from tests.tars import tar_of


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "WAITS_S", (0.01,))


def blocks() -> list[Path]:
    return sorted((cache_folder() / "blocks").glob("*.block"))


def upload(s3: S3, pairs: list[Pair]) -> None:
    for number, first in enumerate(range(0, len(pairs), 10)):
        s3.put("bucket", f"shards/{number:05}.tar", tar_of(pairs[first : first + 10]))


def test_parquet_in_a_bucket_is_read_by_row_group(s3: S3, pairs: list[Pair], tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write_parquet(tmp_path / "all.parquet", pairs)
    pq.write_table(pq.read_table(tmp_path / "all.parquet"), tmp_path / "groups.parquet", row_group_size=16)
    s3.put("bucket", "pairs.parquet", (tmp_path / "groups.parquet").read_bytes())
    remote = open_pairs("s3://bucket/pairs.parquet")
    assert remote.blocks.tolist() == [0, 16, 32]
    assert remote[39] == pairs[39]
    (block,) = blocks()
    assert block.read_bytes() == b"".join(pair.image for pair in pairs[32:])
    assert list(remote) == pairs


def test_indexing_a_bucket_uses_what_is_published_and_reads_the_rest(
    s3: S3, pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(s3, pairs)
    (tmp_path / "first.tar").write_bytes(tar_of(pairs[:10]))
    (own,) = find_indexes(list_files(tmp_path / "first.tar"), Columns())
    s3.put("bucket", "shards/00000.tar.index.arrow", own.path.read_bytes())
    read: list[str] = []
    write = write_index

    def note(file: DataFile, path: Path, columns: Columns) -> None:
        read.append(file.name)
        write(file, path, columns)

    monkeypatch.setattr(index, "write_index", note)
    found = find_indexes(shards_at("s3://bucket/shards"), Columns(), place=own_place)
    assert [sum(one.about.rows) for one in found] == [10, 10, 10, 10]
    assert read == ["00001.tar", "00002.tar", "00003.tar"]
    assert verify_files(shards_at("s3://bucket/shards"), Columns()) == found
    remote = open_pairs("s3://bucket/shards")
    assert not blocks() and remote.captions("zh")[7] == pairs[7].zh
    assert list(remote) == pairs and str(remote.path) == "s3://bucket/shards"
    assert len(blocks()) == 4


def test_a_published_index_of_other_data_is_not_used(s3: S3, pairs: list[Pair], tmp_path: Path) -> None:
    (tmp_path / "few.tar").write_bytes(tar_of(pairs[:5]))
    (own,) = find_indexes(list_files(tmp_path / "few.tar"), Columns())
    s3.put("bucket", "all.tar", tar_of(pairs))
    s3.put("bucket", "all.tar.index.arrow", own.path.read_bytes())
    assert list(open_pairs("s3://bucket/all.tar")) == pairs


def test_data_that_changes_under_its_index_is_an_error(s3: S3, pairs: list[Pair]) -> None:
    s3.put("bucket", "all.tar", tar_of(pairs))
    remote = open_pairs("s3://bucket/all.tar")
    s3.put("bucket", "all.tar", tar_of(pairs[::-1]))
    with pytest.raises(DcclipError, match=r"s3://bucket/all.tar: the image of pair red-circle has changed"):
        remote.image(0)


def test_a_damaged_block_is_fetched_again_by_the_next_run(s3: S3, pairs: list[Pair]) -> None:
    s3.put("bucket", "all.tar", tar_of(pairs))
    remote = open_pairs("s3://bucket/all.tar")
    assert list(remote) == pairs
    blocks()[0].write_bytes(bytes(blocks()[0].stat().st_size))  # as a crash of the machine leaves it
    with pytest.raises(DcclipError, match="the image of pair red-circle has changed"):
        list(remote)
    assert list(remote) == pairs


def test_what_is_needed_next_is_fetched_ahead(s3: S3, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexed, "BLOCK", 8)
    s3.put("bucket", "all.tar", tar_of(pairs))
    remote = open_pairs("s3://bucket/all.tar")
    assert remote.blocks.tolist() == [0, 8, 16, 24, 32]
    asked: list[int] = []
    monkeypatch.setattr(remote._cache, "prefetch", lambda needed: asked.extend(block.size for block in needed))  # type: ignore[attr-defined]
    remote.will_need(np.array([9, 10, 39, 15]))
    chunk = remote._datasets[0]  # type: ignore[attr-defined]
    assert asked == [block.size for block in chunk.blocks_of(np.array([8, 32]))]


def test_a_folder_on_disk_needs_no_cache(pairs: list[Pair], tmp_path: Path) -> None:
    (tmp_path / "all.tar").write_bytes(tar_of(pairs))
    local = open_pairs(tmp_path)
    local.will_need(np.arange(40))
    assert local.image(0) == pairs[0].image
    assert not (cache_folder() / "blocks").exists()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Any]]:
    forget_connections()
    with http_server(tmp_path) as (url, handler):
        yield url, handler


def test_tars_on_a_web_server_are_named_by_number(web: tuple[str, Any], pairs: list[Pair], tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number:05}.tar").write_bytes(tar_of(pairs[number * 20 : number * 20 + 20]))
    remote = open_pairs(f"{web[0]}/{{00000..00001}}.tar?signature=secret")
    assert list(remote) == pairs
    assert "secret" not in str(remote.path)
    assert all(b"secret" not in file.read_bytes() for file in cache_folder().rglob("*") if file.is_file())


def test_nothing_that_the_data_names_is_fetched(web: tuple[str, Any], pairs: list[Pair], tmp_path: Path) -> None:
    naming = [Pair(pair.key, pair.image, pair.zh, pair.en, {"url": f"{web[0]}/{pair.key}.png"}) for pair in pairs]
    (tmp_path / "all.tar").write_bytes(tar_of(naming))
    assert list(open_pairs(f"{web[0]}/all.tar")) == naming
    assert {request.split()[0] for request in web[1].requests} == {"/all.tar", "/all.tar.index.arrow"}


def test_another_version_of_a_shard_is_indexed_again(s3: S3, pairs: list[Pair]) -> None:
    s3.put("bucket", "all.tar", tar_of(pairs))
    (before,) = list_files("s3://bucket/all.tar")
    assert open_pairs("s3://bucket/all.tar")[0] == pairs[0]
    s3.put("bucket", "all.tar", tar_of(pairs[::-1]))
    forget_connections()
    (after,) = list_files("s3://bucket/all.tar")
    assert cached(before, Columns()) != cached(after, Columns())
    found = find_dataset("s3://bucket/all.tar")
    assert found is not None
    assert found[0] == pairs[39]
