"""The feature store: rows by key, written and read by any number of processes."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from dcclip_cli.core import store
from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.machine import allow_open_files
from dcclip_cli.core.store import FeatureStore, MissingRows, Ragged, Values, digests

N = 24
LENGTHS = np.arange(N) % 5
ROWS: dict[str, np.ndarray] = {
    "embedding": np.random.default_rng(0).standard_normal((N, 8)).astype(np.float16),
    "map": np.random.default_rng(1).standard_normal((N, 3, 2, 2)).astype(np.float16),
}
TOKENS = np.random.default_rng(2).standard_normal((N, 4, 3)).astype(np.float16)
KEYS = digests("row 猫", (str(number).encode() for number in range(N)))


def values(places: np.ndarray) -> dict[str, np.ndarray | Ragged]:
    tokens = np.concatenate([TOKENS[place, : LENGTHS[place]] for place in places])
    return {**{name: rows[places] for name, rows in ROWS.items()}, "tokens": Ragged(tokens, LENGTHS[places])}


def filled(folder: Path | None, *cuts: int) -> FeatureStore:
    """A store with all rows, in blocks that end at `cuts`."""
    stored = FeatureStore(folder)
    for places in np.split(np.arange(N), cuts):
        stored.write([(KEYS[places], values(places))])
    return stored


def assert_right(kept: FeatureStore, places: np.ndarray) -> None:
    for name, rows in ROWS.items():
        assert np.array_equal(kept.read(name, KEYS[places]), rows[places])
    tokens = kept.read_arrays(["tokens"], KEYS[places])["tokens"]
    assert isinstance(tokens, Ragged)
    assert tokens.lengths.tolist() == LENGTHS[places].tolist()
    assert np.array_equal(tokens.values, np.concatenate([TOKENS[place, : LENGTHS[place]] for place in places]))


@pytest.mark.parametrize("in_memory", [False, True])
def test_rows_come_back_by_key_in_the_order_asked_for(in_memory: bool, tmp_path: Path) -> None:
    stored = filled(None if in_memory else tmp_path, 5, 6, 20)
    again = stored if in_memory else FeatureStore(tmp_path)
    for reader in (stored, again):
        assert_right(reader, np.asarray([23, 0, 7, 7, 5, 19, 20]))
    stranger = digests("row 狗", [b"0"])
    assert again.missing(np.concatenate([KEYS[:2], stranger]), ["embedding", "tokens"]).tolist() == [False, False, True]
    assert again.missing(KEYS[:1], ["embedding", "other"]).tolist() == [True]
    with pytest.raises(MissingRows, match="1 of 2 rows"):
        again.read("map", np.concatenate([KEYS[:1], stranger]))


def test_of_rows_that_two_processes_computed_both_read_the_first_now_and_later(tmp_path: Path) -> None:
    first = FeatureStore(tmp_path)
    second = FeatureStore(tmp_path)
    for number, process in enumerate((first, second)):  # as a teacher in bf16, whose batches differ
        process.write([(KEYS, {"embedding": np.full((N, 1), number, np.float16)})])
    assert not any(reader.read("embedding", KEYS).any() for reader in (first, second, FeatureStore(tmp_path)))


def test_rows_of_other_arrays_are_told_apart_and_keys_may_end_in_zeros(tmp_path: Path) -> None:
    keys = np.asarray([b"7", b"7\0\0b", b"7\0\0c", b"8"], "S16")
    stored = FeatureStore(tmp_path)
    stored.write([(keys[[2, 0]], {"x": np.asarray([[3.0], [1.0]])})])
    stored.write([(keys[:2], {"y": np.asarray([[10.0], [20.0]])})])
    stored.write([(keys[:1], {"x": np.asarray([[99.0]])})])  # what was first written counts
    assert stored.missing(keys, ["x"]).tolist() == [False, True, False, True]
    assert stored.missing(keys, ["x", "y"]).tolist() == [False, True, True, True]
    assert stored.read("x", keys[[0, 2]]).tolist() == [[1], [3]]
    assert stored.read("y", keys[[1, 0]]).tolist() == [[20], [10]]


def every_row(kept: FeatureStore) -> list[int]:
    """Read all rows of all arrays, one by one; the places of those that are there."""
    present = []
    for place in range(N):
        try:
            assert_right(kept, np.asarray([place]))
            present.append(place)
        except MissingRows:
            continue
    return present


@pytest.mark.parametrize("damage", ["cut", "another format"])
def test_a_file_that_is_no_block_is_removed_with_a_warning_and_its_rows_are_missing(
    damage: str, tmp_path: Path
) -> None:
    filled(tmp_path, 8, 16)
    file = sorted(tmp_path.iterdir())[1]
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-1] if damage == "cut" else content.replace(b'"format": "1"', b'"format": "9"'))
    lines: list[str] = []
    places = [*range(8), *range(16, N)]
    assert every_row(FeatureStore(tmp_path)) == places and file.exists()  # as in `dcclip run --check`
    stored = FeatureStore(tmp_path, lines.append)
    assert every_row(stored) == places and not file.exists()
    assert len(lines) == 1 and lines[0].startswith(f"warning: {file}: ") and lines[0].endswith("rows again")
    missing = np.flatnonzero(stored.missing(KEYS, list(ROWS)))
    stored.write([(KEYS[missing], values(missing))])
    assert every_row(FeatureStore(tmp_path, lines.append)) == [*range(N)] and len(lines) == 1


def test_an_index_is_read_in_place_of_blocks_and_rows_of_damaged_ones_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, 8, 16)  # as older versions leave a folder
    first, second, _ = sorted(tmp_path.glob("*.safetensors"))
    monkeypatch.setattr(store, "_UNINDEXED", 10)
    assert every_row(FeatureStore(tmp_path, pytest.fail)) == [*range(N)] and (tmp_path / "index").is_file()
    first.unlink()
    first.mkdir()  # an error where it is opened
    assert not FeatureStore(tmp_path, pytest.fail).missing(KEYS, list(ROWS)).any()
    first.rmdir()
    second.write_bytes(second.read_bytes()[:-1])
    lines = list[str]()
    stored = FeatureStore(tmp_path, lines.append)
    assert stored.missing(KEYS, ["map"]).tolist() == [True] * 8 + [False] * 16 and not lines
    store._mapped.cache_clear()
    assert every_row(stored) == [*range(16, N)] and len(lines) == 1 and not second.exists()  # found where it is read
    (tmp_path / "index").write_bytes(b"damaged")
    stored = FeatureStore(tmp_path, pytest.fail)
    assert every_row(stored) == [*range(16, N)]
    stored.clear()
    assert not list(tmp_path.glob("[!.]*")) and stored.missing(KEYS, ["map"]).all()


def test_many_small_blocks_become_one_and_who_has_read_them_reads_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = filled(tmp_path, *range(1, N))
    monkeypatch.setattr(store, "_MOST_SMALL", N)
    for merged in (FeatureStore(tmp_path, optional=True), other, FeatureStore(tmp_path)):
        arrays = merged.read_arrays([*ROWS, "tokens"], KEYS[::-1])
        for name, expected in values(np.arange(N)[::-1]).items():
            rows = arrays[name]
            np.testing.assert_array_equal(store.flat(rows), store.flat(expected))
            assert not isinstance(rows, Ragged) or rows.lengths.tolist() == LENGTHS[::-1].tolist()
    assert len([*tmp_path.glob("*.safetensors")]) == 1


def test_more_blocks_than_files_may_be_open_are_listed_and_read_and_none_is_deleted(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    keys = digests("", (str(number).encode() for number in range(1500)))
    rows = np.arange(1500.0)[:, None]
    stored = FeatureStore(tmp_path)
    for block in np.arange(1500).reshape(300, 5):
        stored.write([(keys[block], {"x": rows[block], "tokens": Ragged(rows[block], np.ones(5, np.int64))})])
    (soft, hard) = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 200, hard))
    try:
        again = FeatureStore(tmp_path, pytest.fail)
        listed = len(os.listdir("/dev/fd"))
        arrays = again.read_arrays(["tokens", "x"], keys[::-1])
        allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert isinstance(arrays["tokens"], Ragged) and np.array_equal(arrays["tokens"].values, rows[::-1])
    assert np.array_equal(again.read("x", keys[::-1]), rows[::-1])
    assert len(list(tmp_path.iterdir())) == 300 and listed < opened + 10


def test_a_block_that_the_system_cannot_open_is_an_error_and_one_that_is_gone_is_not(tmp_path: Path) -> None:
    filled(tmp_path, 8)
    (tmp_path / "0-gone.safetensors").symlink_to(tmp_path / "deleted by another process")
    stored = FeatureStore(tmp_path)
    first, last = sorted(file for file in tmp_path.iterdir() if file.is_file())
    first.rename(tmp_path / "moved")
    first.mkdir()  # EISDIR in place of EIO, which no test can cause
    for action in (lambda: stored.read("map", KEYS), lambda: FeatureStore(tmp_path, pytest.fail)):
        with pytest.raises(DcclipError, match=f"{first.name}: cannot open this feature file: Is a directory"):
            action()
    last.unlink()
    assert stored.read("map", KEYS[:0]).size == 0 and first.is_dir()
    with pytest.raises(MissingRows):
        stored.read("map", KEYS[8:])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("optional", [False, True])
def test_a_disk_that_takes_nothing_is_an_error_that_names_the_file_and_leaves_none(
    code: int, optional: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    stored = FeatureStore(tmp_path, optional=optional)
    if optional:
        stored.write([(KEYS, values(np.arange(N)))])
        assert_right(stored, np.arange(N))  # in memory
    else:
        with pytest.raises(OSError, match=r"\.safetensors") as raised:
            stored.write([(KEYS, values(np.arange(N)))])
        assert raised.value.errno == code and stored.missing(KEYS, ["map"]).all()
    assert not list(tmp_path.iterdir())


def test_a_block_is_written_while_the_next_rows_are_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = Event()
    stored = FeatureStore(tmp_path)
    monkeypatch.setattr(store, "_BLOCK_BYTES", 1)  # a block for each batch
    monkeypatch.setattr(os, "fsync", lambda _: computed.wait(20) or pytest.fail("nothing is computed meanwhile"))

    def compute(batches: Iterable[np.ndarray]) -> Iterator[Values]:
        for number, batch in enumerate(batches):
            if number:
                computed.set()
            yield values(batch)

    stored.fill(KEYS, list(ROWS), compute, 12)
    assert every_row(stored) == [*range(N)]


def computing(batches: Iterable[np.ndarray], seen: list[list[int]]) -> Iterator[Values]:
    for batch in batches:
        seen.append(batch.tolist())
        yield values(batch)


def test_batches_are_cut_from_the_missing_rows_in_order_and_one_new_row_is_a_batch(tmp_path: Path) -> None:
    sizes: list[list[int]] = []
    stored = FeatureStore(tmp_path)
    keys = KEYS[[*range(9), *range(10, 24)]]
    stored.fill(keys, ["map"], lambda batches: computing(batches, sizes), 10)
    assert sizes == [[*range(10)], [*range(10, 20)], [20, 21, 22]]
    stored.fill(KEYS, ["map"], lambda batches: computing(batches, sizes), 10)
    assert sizes[3:] == [[9]]


@pytest.mark.parametrize("stopped_at", range(1, 6))
def test_an_interrupted_fill_computes_the_same_batches_in_the_end(
    stopped_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_CLAIMED", 10)
    sizes: list[list[int]] = []

    def stops(batches: Iterable[np.ndarray]) -> Iterator[Values]:
        for batch_values in computing(batches, sizes):
            if len(sizes) == stopped_at:
                raise KeyboardInterrupt
            yield batch_values

    names = ["embedding", "map", "tokens"]
    with pytest.raises(KeyboardInterrupt):
        FeatureStore(tmp_path).fill(KEYS, names, stops, 5)
    assert sizes.pop() == [*range(5 * stopped_at - 5, min(24, 5 * stopped_at))]
    stored = FeatureStore(tmp_path)
    stored.fill(KEYS, names, lambda batches: computing(batches, sizes), 5)
    assert sizes == [[*range(first, min(24, first + 5))] for first in range(0, 24, 5)]
    assert every_row(stored) == [*range(N)]


SLOW_FILL = """
import sys, time
from pathlib import Path
import numpy as np
from dcclip_cli.core import store
store._CLAIMED = 20
def compute(batches):
    for batch in batches:
        print(*batch, flush=True)
        time.sleep(0.02)
        yield {"x": np.asarray(batch, np.float32)[:, None]}
keys = store.digests("", (str(number).encode() for number in range(300)))
kept = store.FeatureStore(Path(sys.argv[1]))
kept.fill(keys, ["x"], compute, 10, start=float(sys.argv[2]))
assert np.array_equal(kept.read("x", keys)[:, 0], np.arange(300))
"""


def slow_fill(folder: Path, start: float = 0) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", SLOW_FILL, str(folder), str(start)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def batches_of(process: "subprocess.Popen[str]") -> list[str]:
    out, _ = process.communicate(timeout=60)
    return out.splitlines()


WHOLE = [" ".join(map(str, range(first, first + 10))) for first in range(0, 300, 10)]


@pytest.mark.parametrize("starts", [(0, 0), (0, 0.5), (0, 1 / 3, 2 / 3)])
def test_processes_that_fill_one_store_compute_no_batch_twice(starts: tuple[float, ...], tmp_path: Path) -> None:
    done = [batches_of(process) for process in [slow_fill(tmp_path, start) for start in starts]]
    assert sorted(line for lines in done for line in lines) == sorted(WHOLE)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".safetensors"]
