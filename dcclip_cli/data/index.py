"""The index of a shard: keys, captions and the place of each image, in an Arrow file that is mapped into memory."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dcclip_cli.data.pair import LANGUAGES, caption_id
from dcclip_cli.data.shards import Columns, Row, rows_of
from dcclip_cli.data.storage import DataFile, list_files, shown, with_suffix
from dcclip_cli.errors import DcclipError
from dcclip_cli.files import atomic_file, cache_folder, lock
from dcclip_cli.machine import cores
from dcclip_cli.progress import Progress, Silent, Task

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIX = ".index.arrow"
_FORMAT = 1
_BATCH_ROWS = 65_536
_BATCH_CHARACTERS = 1 << 28  # offsets in an Arrow array have 31 bits
_FEW_BYTES = 1 << 26  # so much data is indexed faster than a process starts
_ABOUT = b"dcclip.index"
_CONNECTIONS = 16
_AGAIN = "dcclip index --fresh"


@dataclass(frozen=True)
class About:
    """What an index says about its data file: its size in bytes, a hash of all columns, the column names used.

    `rows` and `captioned` count the rows of each record batch, and those of them that have captions; `groups` has the
    number of rows and the bytes of all images of each row group of a Parquet file.
    """

    size: int
    sha256: str
    rows: list[int]
    captioned: list[int]
    groups: list[list[int]] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    format: int = _FORMAT


@dataclass(frozen=True)
class Index:
    """The index of a data file."""

    file: DataFile  # the data
    path: Path
    about: About


# ---- writing


class IndexWriter:
    """Writes the index of one data file: the same bytes for the same rows."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._schema = _schema()
        self._sink = pa.OSFile(str(path), "wb")
        self._file = pa.ipc.new_file(self._sink, self._schema)
        self._hash = hashlib.sha256()
        self._rows: list[int] = []
        self._captioned: list[int] = []
        self._waiting: list[tuple[Any, ...]] = []
        self._characters = 0
        self._groups: list[list[int]] = []

    def add(self, row: Row) -> None:
        if row.group is not None:
            self._groups += [[0, 0] for _ in range(len(self._groups), row.group + 1)]
            self._groups[-1][0] += 1
            self._groups[-1][1] += max(0, row.size)
        ids = (caption_id(texts[0]) if texts else 0 for texts in (row.zh, row.en))
        self._waiting.append((*row[:-1], *ids))
        self._characters += len(row.meta) + sum(map(len, row.zh)) + sum(map(len, row.en))
        if len(self._waiting) == _BATCH_ROWS or self._characters >= _BATCH_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        columns = zip(*self._waiting, strict=True) if self._waiting else ([] for _ in self._schema)
        arrays = [_array(list(values), kind) for values, kind in zip(columns, self._schema, strict=True)]
        batch = pa.record_batch(arrays, self._schema)
        for array in arrays:
            _update(self._hash, array)
        self._file.write_batch(batch)
        self._rows.append(batch.num_rows)
        self._captioned.append(sum(row[4] for row in self._waiting))
        self._waiting, self._characters = [], 0

    def finish(self, size: int, columns: Columns | None = None) -> About:
        """Close the file; `size`: of the data file in bytes."""
        import pyarrow as pa

        if self._waiting:
            self._flush()
        self._hash.update(json.dumps(self._groups).encode())  # they decide the order of training
        named = columns.named if columns else {}
        about = About(size, self._hash.hexdigest(), self._rows, self._captioned, self._groups, named)
        # In an empty last batch: the head of the file was written before any of this was known.
        last = pa.RecordBatch.from_pylist([], self._schema)
        self._file.write_batch(last, custom_metadata={_ABOUT: json.dumps(asdict(about), sort_keys=True)})
        self._file.close()
        self.close()
        return about

    def close(self) -> None:
        self._sink.close()


def _schema() -> pa.Schema:
    import pyarrow as pa

    texts = pa.list_(pa.field("item", pa.string(), nullable=False))
    fields = {"key": pa.string(), "zh": texts, "en": texts, "meta": pa.string(), "captioned": pa.bool_()}
    fields |= {"offset": pa.int64(), "size": pa.int32(), "digest": pa.binary(16)}
    fields |= {f"{language}_id": pa.uint64() for language in LANGUAGES}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields.items()])


def _array(values: list[Any], kind: pa.Field) -> pa.Array:
    import pyarrow as pa

    try:
        return pa.array(values, kind.type)
    except UnicodeEncodeError:  # lone surrogates, from JSON or from names of members in another encoding
        return pa.array([_encodable(value) for value in values], kind.type)


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return [_encodable(text) for text in value]


def _update(digest: hashlib._Hash, array: pa.Array) -> None:
    """Hash the values of an array, which begins at its buffers' begin, not how Arrow stores them."""
    import numpy as np
    import pyarrow as pa

    kind, buffers = array.type, array.buffers()
    if pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
        buffers, kind = array.buffers(), array.type
    if pa.types.is_list(kind) or pa.types.is_string(kind):
        offsets = np.frombuffer(buffers[1], np.int32, len(array) + 1)
        digest.update(np.diff(offsets).astype("<i4").tobytes())
        if pa.types.is_list(kind):
            _update(digest, array.values)
        elif offsets[-1]:
            digest.update(memoryview(buffers[2])[: offsets[-1]])
    elif len(array):
        digest.update(memoryview(buffers[1])[: len(array) * kind.byte_width])


def write_index(file: DataFile, path: Path, columns: Columns) -> None:
    """Index a data file. Raises DcclipError where it cannot be read."""
    with atomic_file(path) as partial:
        writer = IndexWriter(partial)
        try:
            for row in rows_of(file, columns):
                writer.add(row)
            writer.finish(file.size, columns)
        finally:
            writer.close()


# ---- finding


def read_index(file: DataFile, path: Path) -> Index | None:
    """The index in a file; None where it is missing, damaged or of another format."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            last = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
            about = About(**json.loads(last.custom_metadata[_ABOUT]))
            usable = about.format == _FORMAT and reader.schema.equals(_schema())
        return Index(file, path, about) if usable else None
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError):
        return None


def read_batch(index: Index, number: int) -> pa.RecordBatch:
    """One of an index's record batches, mapped into memory. Raises DcclipError where the file is damaged."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(index.path)) as source:
            batch = pa.ipc.open_file(source).get_batch(number)
        batch.validate(full=True)  # it may come from elsewhere, and Arrow trusts the offsets in it
    except (OSError, pa.ArrowException) as error:
        raise DcclipError(f"{index.path} is damaged: {error}", f"index it again: {_AGAIN} {index.file}") from None
    return batch


def beside(file: DataFile) -> Path:
    """The place of a local file's index next to it."""
    return Path(file.location + SUFFIX)


def cached(file: DataFile, columns: Columns) -> Path:
    """The place of a file's index in the cache folder."""
    version = file.version if file.is_remote else ""
    about = json.dumps([shown(file.location), version, columns.named], sort_keys=True)
    return cache_folder() / "index" / f"{hashlib.sha256(about.encode()).hexdigest()[:24]}{SUFFIX}"


def find_index(file: DataFile, columns: Columns) -> Index | None:
    """The index of a data file that is newer than the file and states its size; None if there is none."""
    for path in ([] if file.is_remote else [beside(file)]) + [cached(file, columns)]:
        with suppress(OSError):
            newer = file.is_remote or path.stat().st_mtime_ns >= int(file.version)
            index = read_index(file, path) if newer else None
            if index and (index.about.size, index.about.columns) == (file.size, columns.named):
                return index
    return None


def find_indexes(files: Sequence[DataFile], columns: Columns, progress: Progress | None = None) -> list[Index]:
    """The indexes of data files; those that are missing or too old are written to the cache folder first."""
    found = {file: find_index(file, columns) for file in files}
    missing = [file for file, index in found.items() if index is None]
    if missing:
        (cache_folder() / "index").mkdir(parents=True, exist_ok=True)
        # Several processes of one run want the same indexes: the first writes them, the others find them.
        with lock(cached(missing[0], columns).with_suffix(".lock")):
            found |= {file: find_index(file, columns) for file in missing}
            jobs = [(file, cached(file, columns)) for file in missing if found[file] is None]
            copied = _copy_published(jobs, columns)
            write_indexes([job for job in jobs if job not in copied], columns, progress)
            found |= _written(jobs)
    return [index for index in found.values() if index is not None]


def _copy_published(jobs: Sequence[tuple[DataFile, Path]], columns: Columns) -> set[tuple[DataFile, Path]]:
    """Copy indexes that are next to their files in an object store, if they state the file's size; which were."""

    def fits(job: tuple[DataFile, Path]) -> bool:
        file, path = job
        try:
            (published,) = list_files(with_suffix(file.location, SUFFIX))
            with atomic_file(path) as partial, partial.open("wb") as target:
                published.read_into(target.fileno(), 0, published.size)
        except DcclipError:
            return False  # the shard is read in its place, or raises the error
        return find_index(file, columns) is not None

    remote = [job for job in jobs if job[0].is_remote]
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        return {job for job, fit in zip(remote, pool.map(fits, remote), strict=True) if fit}


# ---- many files


def index_files(
    files: Sequence[DataFile], columns: Columns, fresh: bool = False, progress: Progress | None = None
) -> list[Index]:
    """Index data files that have no index or an old one, with `fresh` all of them.

    The index of a local file is written next to it, or where that is not allowed to the cache folder. That of a file in
    an object store is written to the cache folder, unless there is one next to it.
    """
    found = {file: None if fresh else find_index(file, columns) for file in files}
    jobs = [(file, _place(file, columns)) for file, index in found.items() if index is None]
    copied = set() if fresh else _copy_published(jobs, columns)
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
    with TemporaryDirectory(prefix="dcclip-index-") as folder:
        jobs = [(index.file, Path(folder, f"{number}{SUFFIX}")) for number, index in enumerate(known)]
        write_indexes(jobs, columns, progress)
        again = [read_index(file, path) for file, path in jobs]
    for index, found in zip(known, again, strict=True):
        if found is None or found.about != index.about:
            wrong.append(f"{index.file} differs from its index {index.path}")
    if wrong:
        raise DcclipError("\n".join(wrong), f"if the data is right, index it again: {_AGAIN} PATH")
    return known


def write_indexes(jobs: Sequence[tuple[DataFile, Path]], columns: Columns, progress: Progress | None = None) -> None:
    """Write the indexes of many (data file, index) in parallel. Each is whole or missing, also after a kill."""
    workers = min(cores(), len(jobs))
    with (progress or Silent()).task("index", len(jobs)) as task:
        if workers < 2 or sum(file.size for file, _ in jobs) < _FEW_BYTES:
            for file, path in jobs:
                write_index(file, path, columns)
                task.advance()
            return
        waiting: SimpleQueue[tuple[DataFile, Path]] = SimpleQueue()
        for job in jobs:
            waiting.put(job)
        processes = [_start_worker() for _ in range(workers)]
        try:
            with ThreadPoolExecutor(workers) as pool:
                for _ in pool.map(lambda process: _feed(process, waiting, columns, task), processes):
                    pass
        finally:
            for process in processes:
                process.terminate()
                process.communicate()


def _start_worker() -> subprocess.Popen[str]:
    """A process that indexes the files it is told; not of `multiprocessing`, which would import the caller's script."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "dcclip_cli.data.index"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _feed(
    process: subprocess.Popen[str], waiting: SimpleQueue[tuple[DataFile, Path]], columns: Columns, task: Task
) -> None:
    """Hand files to a worker until none is waiting. Raises what it raises."""
    assert process.stdin and process.stdout
    while True:
        try:
            file, path = waiting.get_nowait()
        except Empty:
            return
        process.stdin.write(json.dumps([asdict(file), str(path), columns.named]) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise DcclipError(f"{file}: the process that indexed it was killed", "run again; is there enough memory?")
        if error := json.loads(answer):
            while not waiting.empty():
                with suppress(Empty):
                    waiting.get_nowait()
            raise DcclipError(*error)
        task.advance()


def _serve(orders: Iterable[str]) -> None:
    """Index the files named on standard input, and answer each with an error or null."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command that started this process ends it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no partial file is left
    for order in orders:
        file, path, named = json.loads(order)
        error = None
        try:
            write_index(DataFile(**file), Path(path), Columns(**named))
        except DcclipError as raised:
            error = [raised.what, raised.hint]
        sys.stdout.write(json.dumps(error) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve(sys.stdin)
