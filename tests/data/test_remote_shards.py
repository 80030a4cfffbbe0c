"""Shards in an S3 store and on a web server: the same samples as from disk, through a bounded cache."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from dcclip_cli.data import index, indexed
from dcclip_cli.data import remote as stores
from dcclip_cli.data.dataset import find_dataset, open_pairs, shards_at, write_parquet
from dcclip_cli.data.index import cached, find_indexes, own_place, verify_files, write_index
from dcclip_cli.data.indexed import Block, BlockCache
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.remote import DataFile, list_files
from dcclip_cli.data.shards import Columns
from dcclip_cli.files import cache_folder, lock
from tests.data.servers import S3, forget_connections, http_server
from tests.tars import tar_of
from tests.train.jobs import (
    TIMEOUT_S,
    Job,
    Watch,
    assert_close,
    elsewhere,
    in_processes,
    refused,
    run,
    run_job,
    sha256,
    weights,
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "WAITS_S", (0.01,))


def blocks() -> list[Path]:
    return sorted((cache_folder() / "blocks").glob("*.block"))


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
    for number, first in enumerate(range(0, len(pairs), 10)):
        s3.put("bucket", f"shards/{number:05}.tar", tar_of(pairs[first : first + 10]))
    (tmp_path / "first.tar").write_bytes(tar_of(pairs[:10]))
    (first_index,) = find_indexes(list_files(tmp_path / "first.tar"), Columns())
    s3.put("bucket", "shards/00000.tar.index.arrow", first_index.path.read_bytes())
    requests: list[str] = []
    write = write_index

    def note(file: DataFile, path: Path, columns: Columns) -> None:
        requests.append(file.name)
        write(file, path, columns)

    monkeypatch.setattr(index, "write_index", note)
    indexes = find_indexes(shards_at("s3://bucket/shards"), Columns(), place=own_place)
    assert [sum(file_index.metadata.rows) for file_index in indexes] == [10, 10, 10, 10]
    assert requests == ["00001.tar", "00002.tar", "00003.tar"]
    assert verify_files(shards_at("s3://bucket/shards"), Columns()) == indexes
    remote = open_pairs("s3://bucket/shards")
    assert not blocks() and remote.captions("zh")[7] == pairs[7].zh
    assert list(remote) == pairs and str(remote.path) == "s3://bucket/shards"
    assert len(blocks()) == 4


def test_a_published_index_of_other_data_is_not_used(s3: S3, pairs: list[Pair], tmp_path: Path) -> None:
    (tmp_path / "few.tar").write_bytes(tar_of(pairs[:5]))
    (first_index,) = find_indexes(list_files(tmp_path / "few.tar"), Columns())
    s3.put("bucket", "all.tar", tar_of(pairs))
    s3.put("bucket", "all.tar.index.arrow", first_index.path.read_bytes())
    assert list(open_pairs("s3://bucket/all.tar")) == pairs


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Any]]:
    forget_connections()
    with http_server(tmp_path) as (url, handler):
        yield url, handler


def test_tars_on_a_web_server_are_named_by_number_and_nothing_that_they_name_is_fetched(
    web: tuple[str, Any], pairs: list[Pair], tmp_path: Path
) -> None:
    naming = [Pair(pair.key, pair.image, pair.zh, pair.en, {"url": f"{web[0]}/{pair.key}.png"}) for pair in pairs]
    for number in range(2):
        (tmp_path / f"{number:05}.tar").write_bytes(tar_of(naming[number * 20 : number * 20 + 20]))
    remote = open_pairs(f"{web[0]}/{{00000..00001}}.tar?signature=secret")
    assert list(remote) == naming
    names = {request.split()[0].partition("?")[0] for request in web[1].requests}
    assert names == {f"/0000{number}.tar{suffix}" for number in range(2) for suffix in ("", ".index.arrow")}
    assert "secret" not in str(remote.path)
    assert all(b"secret" not in file.read_bytes() for file in cache_folder().rglob("*") if file.is_file())


def test_another_version_of_a_shard_is_indexed_again(s3: S3, pairs: list[Pair]) -> None:
    s3.put("bucket", "all.tar", tar_of(pairs))
    (before,) = list_files("s3://bucket/all.tar")
    assert open_pairs("s3://bucket/all.tar")[0] == pairs[0]
    s3.put("bucket", "all.tar", tar_of(pairs[::-1]))
    forget_connections()
    (after,) = list_files("s3://bucket/all.tar")
    assert cached(before, Columns()) != cached(after, Columns())
    dataset = find_dataset("s3://bucket/all.tar")
    assert dataset is not None
    assert dataset[0] == pairs[39]


SHARDS = 8


@pytest.fixture
def job(s3: S3, pairs: list[Pair], student_section: dict[str, Any], tmp_path: Path) -> Job:
    """`align` in windows of eight pairs, from a store with eight shards of five pairs."""
    (tmp_path / "shards").mkdir()
    for number in range(SHARDS):
        content = tar_of(pairs[number * 5 : number * 5 + 5])
        (tmp_path / "shards" / f"{number:05}.tar").write_bytes(content)
        s3.put("bucket", f"shards/{number:05}.tar", content)
    return {
        "root": str(tmp_path / "remote"),
        "stage": "align",
        "student": student_section,
        "data": {"train": "s3://bucket/shards", "shuffle_window": 8, "cache_gb": 5e-5},
        "options": {"start": "scratch", "steps": 12, "batch_size": 4, "workers": 1},
    }


def test_training_from_a_store_that_stops_meanwhile_gives_the_weights_of_training_from_disk(
    job: Job, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_disk = run(job | {"root": str(tmp_path / "local"), "data": job["data"] | {"train": str(tmp_path / "shards")}})
    assert sha256(run(job)) == sha256(from_disk)
    cached_bytes = sum(file.stat().st_size for file in blocks())
    assert 10_000 < cached_bytes <= 50_000
    monkeypatch.setenv("DCCLIP_CACHE", str(tmp_path / "empty"))
    # A worker that loads ahead has all of so few images before the store stops.
    job |= {"root": str(tmp_path / "again"), "options": job["options"] | {"workers": 0}}
    with refused(r"s3://bucket/shards/0000\d.tar cannot be read: Could not connect", "run the same command again"):
        run(job, Watch("align", 4, s3.stop))
    s3.start()
    progress = Watch()
    result = run(job, progress)
    assert [line for line in progress.said if line.startswith("align: resuming from step")]
    assert sha256(result) == sha256(from_disk)


NODES, SAMPLES = 4, 320
SMALL = 3  # samples of a block here


@pytest.mark.timeout(2 * TIMEOUT_S)
def test_each_of_four_nodes_reads_its_quarter_of_the_data_and_all_train_as_one_process_resumes(
    s3: S3, pairs: list[Pair], job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexed, "BLOCK", SMALL)
    content = tar_of([replace(pairs[number % 40], key=f"{number:05}") for number in range(SAMPLES)])
    (tmp_path / "all.tar").write_bytes(content)
    (file_index,) = find_indexes(list_files(tmp_path / "all.tar"), Columns())
    s3.put("bucket", "all.tar", content)
    s3.put("bucket", "all.tar.index.arrow", file_index.path.read_bytes())
    sgd = {"kind": "sgd", "lr": 0.02, "momentum": 0.9}
    options = {"start": "scratch", "steps": 20, "batch_size": 16, "freeze_batch_norms": True, "optimizer": sgd}
    nodes = job | {"root": str(tmp_path / "nodes"), "options": options | {"clip_norm": None, "workers": 1}}
    nodes["data"] = {"train": "s3://bucket/all.tar", "shuffle_window": 100}
    (tmp_path / "job.json").write_text(json.dumps(nodes))
    counts = s3.count_bytes("all.tar")
    in_processes(NODES, train_on_a_node, tmp_path / "job.json")
    shares = [counts[f"node{number}"] / len(content) for number in range(NODES)]
    assert max(shares) <= 1.1 / NODES, shares
    alone = elsewhere(nodes, "alone")
    (tmp_path / "alone/align").mkdir(parents=True)
    (tmp_path / "alone/align/computed_in.json").write_text(json.dumps({"nodes": NODES}))
    assert_close(weights(tmp_path / "nodes/align/model"), weights(run(alone)))


def train_on_a_node(job: str) -> None:
    """What each process does, which is alone on its machine."""
    rank = os.environ["RANK"]
    pytest.MonkeyPatch().setattr(indexed, "BLOCK", SMALL)
    os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "AWS_ACCESS_KEY_ID": f"node{rank}"}
    os.environ["DCCLIP_CACHE"] = str(Path(job).with_name(f"cache{rank}"))
    run_job(job)


FETCHED = "fetched"  # a line in this file for each fetch


def block(tmp_path: Path, key: str, size: int = 1000) -> Block:
    """A block of `size` times the last character of its key."""
    content = key[-1:].encode() * size

    def write(descriptor: int) -> None:
        with (tmp_path / FETCHED).open("a") as log:
            log.write(f"{key}\n")
        os.pwrite(descriptor, content, 0)

    return Block(key, 0, size, f"shard {key}", write)


def fetched(tmp_path: Path) -> list[str]:
    return (tmp_path / FETCHED).read_text().split()


def kept(cache: BlockCache) -> list[str]:
    return sorted(file.stem for file in cache.folder.glob("*.block"))


def test_a_block_is_fetched_once_and_again_if_it_is_cut(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "blocks", 5000)
    assert cache.read(block(tmp_path, "aa"), 10, 3) == b"aaa"
    assert cache.read(block(tmp_path, "aa"), 999, 1) == b"a"
    assert BlockCache(tmp_path / "blocks", 5000).read(block(tmp_path, "aa"), 0, 2) == b"aa"
    assert fetched(tmp_path) == ["aa"]
    (cache.folder / "aa.block").write_bytes(b"a" * 999)
    assert cache.read(block(tmp_path, "aa"), 0, 2) == b"aa"


def test_the_least_recently_used_blocks_are_removed_to_keep_the_bound(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "blocks", 2500)
    for key in ("a1", "b2"):
        cache.fetch(block(tmp_path, key))
    os.utime(cache.folder / "a1.block", (1, 1))
    os.utime(cache.folder / "b2.block", (2, 2))
    cache.read(block(tmp_path, "a1"), 0, 1)
    cache.fetch(block(tmp_path, "c3"))
    assert kept(cache) == ["a1", "c3"]


def _read(cache: BlockCache, one: Block) -> None:
    assert cache.read(one, 0, 1) == b"a"


def test_processes_that_need_the_same_block_fetch_it_once(tmp_path: Path) -> None:
    cache, content = BlockCache(tmp_path / "blocks", 5000), block(tmp_path, "aa")

    def write(descriptor: int) -> None:
        time.sleep(0.3)
        content.write(descriptor)

    slow = Block(content.key, 0, content.size, content.source, write)
    fork = get_context("fork")
    workers = [fork.Process(target=_read, args=(cache, slow)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert fetched(tmp_path) == ["aa"]


def test_processes_of_a_machine_fetch_a_window_together_and_do_not_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    cache = BlockCache(tmp_path / "blocks", 9000)
    cache.folder.mkdir()
    with lock(cache.folder / ".c3.lock"):  # another process fetches it
        cache.prefetch(block(tmp_path, key) for key in ("a1", "b2", "c3", "d4"))
        _wait(cache, ["a1", "b2", "d4"])
        assert fetched(tmp_path) == ["b2", "d4", "a1"]
    _wait(cache, ["a1", "b2", "c3", "d4"])  # it did not


def _wait(cache: BlockCache, keys: list[str]) -> None:
    end = time.monotonic() + 10
    while kept(cache) != keys and time.monotonic() < end:
        time.sleep(0.01)
    assert kept(cache) == keys


def test_windows_are_fetched_ahead_and_the_one_in_use_is_kept(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "blocks", 4000)
    cache.prefetch([block(tmp_path, "a1"), block(tmp_path, "b2")])
    _wait(cache, ["a1", "b2"])
    cache.prefetch([block(tmp_path, "c3"), block(tmp_path, "d4")])
    _wait(cache, ["a1", "b2", "c3", "d4"])
    cache.prefetch([block(tmp_path, "e5")])
    _wait(cache, ["b2", "c3", "d4", "e5"])
    assert fetched(tmp_path) == ["a1", "b2", "c3", "d4", "e5"]
