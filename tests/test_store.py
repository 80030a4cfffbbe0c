"""The feature store: rows by key, from any number of processes, and never damaged ones."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dcclip_cli import blocks, store, store_rows
from dcclip_cli.blocks import Ragged, Values
from dcclip_cli.errors import DcclipError
from dcclip_cli.store import FeatureStore, MissingRows, digests
from dcclip_cli.store_index import Index

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
    kept = FeatureStore(folder)
    for places in np.split(np.arange(N), cuts):
        kept.write([(KEYS[places], values(places))])
    return kept


def assert_right(kept: FeatureStore, places: np.ndarray) -> None:
    for name, rows in ROWS.items():
        assert np.array_equal(kept.read(name, KEYS[places]), rows[places])
    tokens = kept.read_arrays(["tokens"], KEYS[places])["tokens"]
    assert isinstance(tokens, Ragged)
    assert tokens.lengths.tolist() == LENGTHS[places].tolist()
    for row, place in zip(tokens.padded(), places, strict=True):
        assert np.array_equal(row[: LENGTHS[place]], TOKENS[place, : LENGTHS[place]])
        assert not row[LENGTHS[place] :].any()


@pytest.mark.parametrize("in_memory", [False, True])
def test_rows_come_back_by_key_in_the_order_asked_for(in_memory: bool, tmp_path: Path) -> None:
    kept = filled(None if in_memory else tmp_path, 5, 6, 20)
    again = kept if in_memory else FeatureStore(tmp_path)
    for one in (kept, again):
        assert_right(one, np.asarray([23, 0, 7, 7, 5, 19, 20]))
    stranger = digests("row 狗", [b"0"])
    assert again.missing(np.concatenate([KEYS[:2], stranger]), ["embedding", "tokens"]).tolist() == [False, False, True]
    assert again.missing(KEYS[:1], ["embedding", "other"]).tolist() == [True]
    with pytest.raises(MissingRows, match="1 of 2 rows"):
        again.read("map", np.concatenate([KEYS[:1], stranger]))


def test_rows_of_other_arrays_are_told_apart_and_keys_may_end_in_zeros(tmp_path: Path) -> None:
    keys = np.asarray([b"7", b"7\0\0b", b"7\0\0c", b"8"], "S16")
    kept = FeatureStore(tmp_path)
    kept.write([(keys[[2, 0]], {"x": np.asarray([[3.0], [1.0]])})])
    kept.write([(keys[:2], {"y": np.asarray([[10.0], [20.0]])})])
    kept.write([(keys[:1], {"x": np.asarray([[99.0]])})])  # what was first written counts
    assert kept.missing(keys, ["x"]).tolist() == [False, True, False, True]
    assert kept.missing(keys, ["x", "y"]).tolist() == [False, True, True, True]
    assert kept.read("x", keys[[0, 2]]).tolist() == [[1], [3]]
    assert kept.read("y", keys[[1, 0]]).tolist() == [[20], [10]]


@pytest.mark.parametrize("name", ["embedding", "tokens"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_not_stored(name: str, bad: float, tmp_path: Path) -> None:
    given = values(np.arange(N))
    array = given[name]
    (array.values if isinstance(array, Ragged) else array)[1, 0] = bad
    with pytest.raises(ValueError, match=f"{name} is not finite"):
        FeatureStore(tmp_path).write([(KEYS, given)])
    assert not list(tmp_path.iterdir())


# ---- damage


def every_row(kept: FeatureStore) -> list[int]:
    """Read all rows of all arrays, one by one; the places of those that are there."""
    there = []
    for place in range(N):
        try:
            assert_right(kept, np.asarray([place]))
            there.append(place)
        except MissingRows:
            continue
    return there


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_bit_anywhere_is_noticed_and_costs_its_block_alone(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    filled(tmp_path, 8, 16)
    file = sorted(tmp_path.glob("*.block"))[1]
    content = bytearray(file.read_bytes())
    content[int(random.integers(len(content)))] ^= 1 << int(random.integers(8))
    file.write_bytes(content)
    said: list[str] = []
    kept = FeatureStore(tmp_path, said.append)
    there = every_row(kept)
    # Rows before the damaged one may have been read already: they were right.
    assert set(there) >= {*range(8), *range(16, 24)} and set(there) < set(range(24))
    assert len(said) == 1 and said[0].startswith(f"warning: {file} ") and said[0].endswith("rows are computed again")
    assert not file.exists()
    missing = np.flatnonzero(kept.missing(KEYS, list(ROWS)))
    assert missing.tolist() == [*range(8, 16)]
    kept.write([(KEYS[missing], values(missing))])
    assert every_row(FeatureStore(tmp_path, said.append)) == [*range(N)] and len(said) == 1


@pytest.mark.parametrize("seed", range(20))
def test_a_file_that_is_cut_lengthened_or_none_of_ours_is_dropped_when_it_is_opened(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    filled(tmp_path, 8, 16)
    file = sorted(tmp_path.glob("*.block"))[seed % 3]
    content = file.read_bytes()
    cut = content[: int(random.integers(len(content)))]
    file.write_bytes([cut, cut + bytes(len(content) - len(cut)), content + b"\0", random.bytes(500)][seed % 4])
    said: list[str] = []
    kept = FeatureStore(tmp_path, said.append)
    every_row(kept)
    assert len(said) == 1 and "rows are computed again" in said[0]
    assert kept.missing(KEYS, list(ROWS)).tolist() == [place // 8 == seed % 3 for place in range(N)]


def test_a_file_that_is_cut_or_removed_after_it_was_opened_is_missing(tmp_path: Path) -> None:
    filled(tmp_path, 8, 16)
    kept = FeatureStore(tmp_path)
    first, second, _ = sorted(tmp_path.glob("*.block"))
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    assert every_row(kept) == [*range(7), *range(16, 24)]  # what is read before the cut is right


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "index folder"])
def test_what_is_no_file_in_the_place_of_a_block_is_removed_with_a_warning(kind: str, tmp_path: Path) -> None:
    filled(tmp_path, 8, 16)
    file = sorted(tmp_path.glob("*.block"))[1]
    if kind == "index folder":
        file = file.with_suffix(".index")
    else:
        file.unlink()
    {"pipe": os.mkfifo, "loop": lambda path: path.symlink_to(path)}.get(kind, Path.mkdir)(file)
    said: list[str] = []
    kept = FeatureStore(tmp_path, said.append)
    lost = [] if kind == "index folder" else [*range(8, 16)]
    assert every_row(kept) == [place for place in range(N) if place not in lost]
    kept.refresh()
    assert len(said) == 1 and said[0].startswith(f"warning: {file} is not a file") and not os.path.lexists(file)


def test_a_block_that_the_disk_does_not_give_back_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, 8, 16)
    said: list[str] = []
    kept = FeatureStore(tmp_path, said.append)

    def fails(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fails)
    with pytest.raises(MissingRows):
        kept.read("map", KEYS[:1])
    monkeypatch.undo()
    assert said == [f"warning: {said[0].split()[1]} cannot be read: Input/output error: its rows are computed again"]
    assert every_row(kept) == [*range(8, N)]


def test_a_file_of_another_format_and_one_with_another_kind_of_array_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(blocks, "FORMAT", 99)
    FeatureStore(tmp_path).write([(KEYS[:1], {"x": np.ones((1, 2))})])
    monkeypatch.undo()
    assert FeatureStore(tmp_path, said.append).missing(KEYS[:1], ["x"]).all()
    FeatureStore(tmp_path).write([(KEYS[:1], {"x": np.ones((1, 2))})])
    file = next(tmp_path.iterdir())
    FeatureStore(tmp_path / "other").write([(KEYS[1:2], {"x": np.ones((1, 3))})])
    next((tmp_path / "other").iterdir()).rename(tmp_path / "z.block")
    kept = FeatureStore(tmp_path, said.append)
    assert kept.missing(KEYS[:2], ["x"]).tolist() == [False, True] and list(tmp_path.glob("*.block")) == [file]
    assert ["format 99" in said[0], "another kind" in said[1], len(said)] == [True, True, 2]


# ---- index files


@pytest.fixture
def indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    """A store of 24 rows in blocks of 4, whose tables are in index files of 8 rows each."""
    monkeypatch.setattr(store_rows, "_INDEX_ROWS", 8)
    return filled(tmp_path, 4, 8, 12, 16, 20)


def test_tables_of_many_rows_are_in_index_files_that_others_map(indexed: FeatureStore, tmp_path: Path) -> None:
    assert len(list(tmp_path.glob("*.index"))) == 3
    again = FeatureStore(tmp_path)
    for one in (indexed, again):
        assert_right(one, np.asarray([23, 0, 7, 7, 5, 19, 20]))
        assert (one.blocks, one.rows) == (6, N)
        assert not one.missing(KEYS, [*ROWS, "tokens"]).any()
    assert len(list(tmp_path.glob("*.index"))) == 3


def test_blocks_without_an_index_file_get_one_when_they_are_opened(indexed: FeatureStore, tmp_path: Path) -> None:
    for file in tmp_path.glob("*.index"):
        file.unlink()
    assert every_row(FeatureStore(tmp_path)) == [*range(N)] and len(list(tmp_path.glob("*.index"))) == 3


def test_a_block_that_is_gone_or_damaged_is_missing_although_an_index_file_has_it(
    indexed: FeatureStore, tmp_path: Path
) -> None:
    first, second, *_, last = sorted(tmp_path.glob("*.block"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1] + b"?")
    said: list[str] = []
    kept = FeatureStore(tmp_path, said.append)
    assert set(every_row(kept)) >= {*range(8, N)} and len(said) == 1 and not second.exists()
    missing = np.flatnonzero(kept.missing(KEYS, list(ROWS)))
    assert missing.tolist() == [*range(8)]
    kept.write([(KEYS[missing], values(missing))])
    last.unlink()
    for _ in range(2):
        assert every_row(FeatureStore(tmp_path, said.append)) == [*range(20)] and len(said) == 1


def test_a_read_only_store_is_indexed_in_memory(
    indexed: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in tmp_path.glob("*.index"):
        file.unlink()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Index, "save", refuse)
    assert every_row(FeatureStore(tmp_path)) == [*range(N)] and not list(tmp_path.glob("*.index"))


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_index_file_never_gives_a_wrong_row(seed: int, indexed: FeatureStore, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    file = sorted(tmp_path.glob("*.index"))[seed % 3]
    content = bytearray(file.read_bytes())
    content[int(random.integers(len(content)))] ^= 1 << int(random.integers(8))
    file.write_bytes([content, content[: int(random.integers(len(content)))]][seed % 5 == 0])
    there = every_row(FeatureStore(tmp_path))  # rows that are there are right
    assert len(there) >= 8 and set(there) >= {*range(N)} - {*range(seed % 3 * 8, seed % 3 * 8 + 8)}


# ---- disks


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("optional", [False, True])
def test_a_disk_that_takes_nothing_is_an_error_that_names_the_file_and_leaves_none(
    code: int, optional: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    kept = FeatureStore(tmp_path, optional=optional)
    if optional:
        kept.write([(KEYS, values(np.arange(N)))])
        assert_right(kept, np.arange(N))  # in memory
    else:
        with pytest.raises(OSError, match=r"\.block") as raised:
            kept.write([(KEYS, values(np.arange(N)))])
        assert raised.value.errno == code and kept.missing(KEYS, ["map"]).all()
    assert not list(tmp_path.iterdir())


def test_a_read_only_store_is_read_and_what_is_damaged_in_it_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, 8)
    first, _ = sorted(tmp_path.glob("*.block"))
    first.write_bytes(first.read_bytes()[:-1] + b"?")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refuse)
    assert every_row(FeatureStore(tmp_path))[-16:] == [*range(8, 24)] and first.exists()


def test_compacting_leaves_one_block_with_the_rows_that_are_asked_for(tmp_path: Path) -> None:
    kept = filled(tmp_path, 3, 9, 15)
    kept.compact("embedding", KEYS[[20, 4]])
    for one in (kept, FeatureStore(tmp_path)):
        assert (one.blocks, one.rows) == (1, 2)
        assert np.array_equal(one.read("embedding", KEYS[[4, 20]]), ROWS["embedding"][[4, 20]])
    assert len(list(tmp_path.iterdir())) == 1


# ---- filling


def computing(batches: list[np.ndarray], seen: list[list[int]]) -> Iterator[Values]:
    for batch in batches:
        seen.append(batch.tolist())
        yield values(batch)


def test_batches_are_cut_from_the_missing_rows_in_order_and_one_new_row_is_a_batch(tmp_path: Path) -> None:
    seen: list[list[int]] = []
    kept = FeatureStore(tmp_path)
    keys = KEYS[[*range(9), *range(10, 24)]]
    kept.fill(keys, ["map"], lambda batches: computing(batches, seen), 10)
    assert seen == [[*range(10)], [*range(10, 20)], [20, 21, 22]]
    kept.fill(KEYS, ["map"], lambda batches: computing(batches, seen), 10)
    assert seen[3:] == [[9]]


@pytest.mark.parametrize("stopped_at", range(1, 6))
def test_an_interrupted_fill_computes_the_same_batches_in_the_end(
    stopped_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_CLAIMED", 2)
    seen: list[list[int]] = []

    def stops(batches: list[np.ndarray]) -> Iterator[Values]:
        for found in computing(batches, seen):
            if len(seen) == stopped_at:
                raise KeyboardInterrupt
            yield found

    names = ["embedding", "map", "tokens"]
    with pytest.raises(KeyboardInterrupt):
        FeatureStore(tmp_path).fill(KEYS, names, stops, 5)
    assert seen.pop() == [*range(5 * stopped_at - 5, min(24, 5 * stopped_at))]
    kept = FeatureStore(tmp_path)
    kept.fill(KEYS, names, lambda batches: computing(batches, seen), 5)
    assert seen == [[*range(first, min(24, first + 5))] for first in range(0, 24, 5)]
    assert every_row(kept) == [*range(N)]


SLOW_FILL = """
import sys, time
from pathlib import Path
import numpy as np
from dcclip_cli import store
store._CLAIMED = 2
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
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".block"]


def test_a_fill_killed_with_signal_9_loses_one_block_and_one_beside_it_does_the_rest(tmp_path: Path) -> None:
    one, two = slow_fill(tmp_path), slow_fill(tmp_path, 0.5)
    assert one.stdout is not None
    lines = [one.stdout.readline().strip() for _ in range(6)]
    one.send_signal(signal.SIGKILL)
    lines += batches_of(one)
    rest = batches_of(two)
    assert two.returncode == 0
    again = [line for line in lines if line in rest]
    assert set(lines) | set(rest) == set(WHOLE) and len(again) <= 2


def test_forked_processes_read_what_was_opened_before(tmp_path: Path) -> None:
    kept = filled(tmp_path, 7)
    assert_right(kept, np.arange(3))
    context = multiprocessing.get_context("fork")
    readers = [context.Process(target=assert_right, args=(kept, np.arange(N))) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(30)
    assert [reader.exitcode for reader in readers] == [0, 0, 0]


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DcclipError, match="cannot be written: Not a directory") as raised:
        FeatureStore(tmp_path / "file/store").fill(KEYS, ["map"], lambda _: pytest.fail("computed"), 5)
    assert "DCCLIP_CACHE" in raised.value.hint


def test_room_is_asked_for_before_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 500}))
    with pytest.raises(DcclipError, match=rf"^{tmp_path} needs about 0\.0 GB more, and 0\.0 GB are free") as raised:
        FeatureStore(tmp_path).fill(KEYS, ["map"], lambda batches: computing(batches, []), 5)
    assert "DCCLIP_CACHE" in raised.value.hint
    FeatureStore(tmp_path).fill(KEYS[:5], ["map"], lambda batches: computing(batches, []), 5)  # 440 bytes
