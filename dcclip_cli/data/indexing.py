"""Indexing of many files: indexes are found, copied from object stores, written in parallel, or verified."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from dcclip_cli.data.index import (
    SUFFIX,
    Damaged,
    Index,
    beside,
    cached,
    find_index,
    read_batch,
    read_index,
    write_index,
)
from dcclip_cli.data.shards import Columns
from dcclip_cli.data.storage import DataFile, list_files, with_suffix
from dcclip_cli.errors import DcclipError, Message, joined
from dcclip_cli.files import atomic_file, cache_folder, lock, remove, temporary_folder
from dcclip_cli.machine import cores
from dcclip_cli.progress import Progress, Silent
from dcclip_cli.workers import calls, process_pool

_FEW_BYTES = 1 << 26  # so much data is indexed faster than a process starts
_CONNECTIONS = 16


def find_indexes(files: Sequence[DataFile], columns: Columns, progress: Progress | None = None) -> list[Index]:
    """The indexes of data files; those that are missing or too old are written to the cache folder first."""
    warn = _warning(progress)
    found = {file: find_index(file, columns, warn) for file in files}
    missing = [file for file, index in found.items() if index is None]
    if missing:
        (cache_folder() / "index").mkdir(parents=True, exist_ok=True)
        # Several processes of one run want the same indexes: the first writes them, the others find them.
        with lock(cached(missing[0], columns).with_suffix(".lock")):
            found |= {file: find_index(file, columns) for file in missing}
            jobs = [(file, cached(file, columns)) for file in missing if found[file] is None]
            copied = _copy_published(jobs, columns, warn)
            write_indexes([job for job in jobs if job not in copied], columns, progress)
            found |= _written(jobs)
    return [index for index in found.values() if index is not None]


def _warning(progress: Progress | None) -> Callable[[Path, Damaged], None]:
    """What is done about an index that cannot be used."""

    def warn(path: Path, why: Damaged) -> None:
        (progress or Silent()).say(Message("warning: {} {}: its data is indexed again", path, why))
        if path.parent == cache_folder() / "index" or not path.is_dir():  # a folder next to the data may be anybody's
            remove(path)

    return warn


def _copy_published(
    jobs: Sequence[tuple[DataFile, Path]], columns: Columns, warn: Callable[[Path, Damaged], None]
) -> set[tuple[DataFile, Path]]:
    """Copy indexes that are next to their files in an object store, if they state the file's size; which were."""

    def fits(job: tuple[DataFile, Path]) -> bool:
        file, path = job
        try:
            (published,) = list_files(with_suffix(file.location, SUFFIX))
            with atomic_file(path) as temporary, temporary.open("wb") as target:
                published.read_into(target.fileno(), 0, published.size)
        except DcclipError:
            return False  # the shard is read in its place, or raises the error
        return find_index(file, columns, warn) is not None

    remote = [job for job in jobs if job[0].is_remote]
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        return {job for job, fit in zip(remote, pool.map(fits, remote), strict=True) if fit}


def index_files(
    files: Sequence[DataFile], columns: Columns, fresh: bool = False, progress: Progress | None = None
) -> list[Index]:
    """Index data files that have no index or an old one, with `fresh` all of them.

    The index of a local file is written next to it, or where that is not allowed to the cache folder. That of a file in
    an object store is written to the cache folder, unless there is one next to it.
    """
    warn = _warning(progress)
    found = {file: None if fresh else find_index(file, columns, warn) for file in files}
    jobs = [(file, _place(file, columns)) for file, index in found.items() if index is None]
    copied = set() if fresh else _copy_published(jobs, columns, warn)
    write_indexes([job for job in jobs if job not in copied], columns, progress)
    found |= _written(jobs)
    return [index for index in found.values() if index is not None]


def _written(jobs: Sequence[tuple[DataFile, Path]]) -> dict[DataFile, Index]:
    found = {file: read_index(file, path) for file, path in jobs}
    assert all(found.values()), "an index that was just written cannot be read"
    return {file: index for file, index in found.items() if index is not None}


def _place(file: DataFile, columns: Columns) -> Path:
    if not file.is_remote and os.access(beside(file).parent, os.W_OK):
        return beside(file)
    path = cached(file, columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def verify_files(files: Sequence[DataFile], columns: Columns, progress: Progress | None = None) -> list[Index]:
    """Read data files as a whole and compare them with their indexes. Raises DcclipError where any differs."""
    indexes = [(file, find_index(file, columns)) for file in files]
    wrong = [f"{file} has no index, or has changed since" for file, index in indexes if index is None]
    known = [index for _, index in indexes if index is not None]
    with temporary_folder(Path(tempfile.gettempdir(), "dcclip-index")) as folder:
        jobs = [(index.file, folder / f"{number}{SUFFIX}") for number, index in enumerate(known)]
        write_indexes(jobs, columns, progress)
        again = [read_index(file, path) for file, path in jobs]
    wrong += [
        f"{one.file} differs from its index {one.path}"
        for one, found in zip(known, again, strict=True)
        if found is None or found.about != one.about
    ]
    for index in known:
        for number in range(len(index.about.rows)):
            read_batch(index, number)
    if wrong:
        raise DcclipError(joined("\n", wrong), "if the data is right, index it again: dcclip index --fresh PATH")
    return known


def write_indexes(jobs: Sequence[tuple[DataFile, Path]], columns: Columns, progress: Progress | None = None) -> None:
    """Write the indexes of many (data file, index) in parallel. Each is whole or missing, also after a kill."""
    workers = min(cores(), len(jobs))
    with (progress or Silent()).task(Message("index"), len(jobs)) as task:
        if workers < 2 or sum(file.size for file, _ in jobs) < _FEW_BYTES:
            for file, path in jobs:
                write_index(file, path, columns)
                task.advance()
            return
        hint = Message("run the same command again: it indexes what is missing")
        with process_pool(workers) as pool:
            for _ in calls(pool, partial(_write, columns), jobs, hint):
                task.advance()


def _write(columns: Columns, job: tuple[DataFile, Path]) -> None:
    write_index(*job, columns)
