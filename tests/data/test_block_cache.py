"""The block cache: its bound, what it removes first, several processes, blocks ahead of their use, killed fetches."""

import os
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from dcclip_cli.data.indexed import Block, BlockCache
from dcclip_cli.errors import DcclipError

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


def test_a_block_is_fetched_once(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "blocks", 5000)
    assert cache.read(block(tmp_path, "aa"), 10, 3) == b"aaa"
    assert cache.read(block(tmp_path, "aa"), 999, 1) == b"a"
    assert BlockCache(tmp_path / "blocks", 5000).read(block(tmp_path, "aa"), 0, 2) == b"aa"
    assert fetched(tmp_path) == ["aa"]


def test_the_least_recently_used_blocks_are_removed_to_keep_the_bound(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "blocks", 2500)
    for key in ("a1", "b2"):
        cache.fetch(block(tmp_path, key))
    os.utime(cache.folder / "a1.block", (1, 1))
    os.utime(cache.folder / "b2.block", (2, 2))
    cache.read(block(tmp_path, "a1"), 0, 1)
    cache.fetch(block(tmp_path, "c3"))
    assert kept(cache) == ["a1", "c3"]


def test_a_block_that_is_cut_is_fetched_again(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "blocks", 5000)
    cache.fetch(block(tmp_path, "aa"))
    (cache.folder / "aa.block").write_bytes(b"a" * 999)
    assert cache.read(block(tmp_path, "aa"), 0, 2) == b"aa"


def _read(cache: BlockCache, one: Block) -> None:
    assert cache.read(one, 0, 1) == b"a"


def test_processes_that_need_the_same_block_fetch_it_once(tmp_path: Path) -> None:
    cache, one = BlockCache(tmp_path / "blocks", 5000), block(tmp_path, "aa")

    def write(descriptor: int) -> None:
        time.sleep(0.3)
        one.write(descriptor)

    slow = Block(one.key, 0, one.size, one.source, write)
    fork = get_context("fork")
    workers = [fork.Process(target=_read, args=(cache, slow)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert fetched(tmp_path) == ["aa"]


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


def test_a_window_larger_than_the_cache_is_an_error(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "blocks", 1500)
    with pytest.raises(DcclipError, match="a shuffle window of shard a1 needs 2e-06 GB") as caught:
        cache.prefetch([block(tmp_path, "a1"), block(tmp_path, "b2")])
    assert caught.value.hint == "make data.cache_gb larger, or data.shuffle_window smaller"


def test_a_full_disk_is_an_error_that_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device") as caught:  # no fault of an image
        BlockCache(tmp_path / "blocks", 5000).fetch(Block("aa", 0, 10, "shard", full))
    assert str(caught.value.filename).startswith(str(tmp_path / "blocks"))
    assert not list((tmp_path / "blocks").glob("aa*"))
