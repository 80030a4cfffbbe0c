"""The index of a shard: keys, captions and the place of each image, in an Arrow file that is
mapped into memory.

Indexes are found next to their data or in the cache folder, written in parallel, verified.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from dcclip_cli.core.checksums import FORMAT
from dcclip_cli.core.errors import DcclipError, Message, joined
from dcclip_cli.core.files import atomic_file, cache_folder, lock
from dcclip_cli.core.machine import cores
from dcclip_cli.core.processes import calls, process_pool
from dcclip_cli.core.progress import Progress, Silent
from dcclip_cli.core.text import encodable
from dcclip_cli.data.pair import LANGUAGES, caption_id
from dcclip_cli.data.remote import DataFile
from dcclip_cli.data.shards import Columns, Row, parquet_rows, tar_rows

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIX = ".index.arrow"
_BATCH_ROWS = 65_536
_BATCH_CHARACTERS = 1 << 28  # offsets in an Arrow array have 31 bits
_ABOUT = b"dcclip.index"
_FEW_BYTES = 1 << 26  # so much data is indexed faster than a process starts


@dataclass(frozen=True)
class Metadata:
    """What an index says about its data file: its size in bytes, a hash of all rows, the column
    names used.

    `rows` and `captioned` count the rows of each record batch, and those of them that have
    captions; `groups` has the number of rows and the bytes of all images of each row group of a
    Parquet file.
    """

    size: int
    sha256: str
    rows: list[int]
    captioned: list[int]
    groups: list[list[int]] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT


@dataclass(frozen=True)
class Index:
    file: DataFile  # the data
    path: Path
    metadata: Metadata


def _schema() -> pa.Schema:
    import pyarrow as pa

    texts = pa.list_(pa.field("item", pa.string(), nullable=False))
    fields = {
        "key": pa.string(),
        "zh": texts,
        "en": texts,
        "meta": pa.string(),
        "captioned": pa.bool_(),
    }
    fields |= {"offset": pa.int64(), "size": pa.int32(), "digest": pa.binary(16)}
    fields |= {f"{language}_id": pa.uint64() for language in LANGUAGES}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields.items()])


def write_index(file: DataFile, path: Path, columns: Columns) -> None:
    """Index a data file: the same bytes for the same rows. Raises DcclipError where it cannot be
    read.
    """
    import pyarrow as pa

    digest = hashlib.sha256()
    schema = _schema()
    rows = list[int]()
    captioned = list[int]()
    groups = list[list[int]]()
    with (
        atomic_file(path) as temporary,
        pa.OSFile(str(temporary), "wb") as stream,  # which the writer would not close
        pa.ipc.new_file(stream, schema) as arrow,
    ):
        for batch in _batches(
            (parquet_rows if file.name.endswith(".parquet") else tar_rows)(file, columns)
        ):
            for row in batch:
                digest.update(json.dumps([*row[:-2], row.digest.hex(), row.group]).encode())
                if row.group is not None:
                    groups += [[0, 0] for _ in range(len(groups), row.group + 1)]
                    groups[-1] = [groups[-1][0] + 1, groups[-1][1] + max(0, row.size)]
            cells = []
            for row in batch:  # a member's name may be in another encoding
                ids = (caption_id(texts[0]) if texts else 0 for texts in (row.zh, row.en))
                cells.append((encodable(row.key), *row[1:-1], *ids))
            columns_of_batch = zip(*cells, strict=True)
            arrays = [
                pa.array(list(column), kind.type)
                for column, kind in zip(columns_of_batch, schema, strict=True)
            ]
            arrow.write_batch(pa.record_batch(arrays, schema))
            rows.append(len(batch))
            captioned.append(sum(row.captioned for row in batch))
        metadata = Metadata(file.size, digest.hexdigest(), rows, captioned, groups, columns.named)
        # In an empty last batch: the head of the file was written before any of this was known.
        last = pa.RecordBatch.from_pylist([], schema)
        arrow.write_batch(
            last, custom_metadata={_ABOUT: json.dumps(asdict(metadata), sort_keys=True)}
        )


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch = list[Row]()
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(row.meta) + sum(map(len, row.zh)) + sum(map(len, row.en))
        if len(batch) == _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch = []
            characters = 0
    if batch:
        yield batch


def write_indexes(
    jobs: Sequence[tuple[DataFile, Path]], columns: Columns, progress: Progress | None = None
) -> None:
    """Write the indexes of many (data file, index) in parallel. Each is whole or missing, also
    after a kill.
    """
    workers = min(cores(), len(jobs))
    with (progress or Silent()).task(Message("index"), len(jobs)) as task, ExitStack() as stack:
        writes = [partial(write_index, file, path, columns) for file, path in jobs]
        if workers < 2 or sum(file.size for file, _ in jobs) < _FEW_BYTES:
            written: Iterable[None] = map(operator.call, writes)
        else:
            hint = Message("run the same command again: it creates the missing index")
            pool = process_pool(workers, folders={path.parent for _, path in jobs})
            written = calls(stack.enter_context(pool), operator.call, writes, hint)
        for _ in written:
            task.advance()


def read_index(file: DataFile, path: Path) -> Index:
    """The index in a file. Raises DcclipError where it cannot be used."""
    import pyarrow as pa

    try:
        if not path.is_file():  # opening a pipe may never end
            raise ValueError
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            last = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
            metadata = Metadata(**json.loads(last.custom_metadata[_ABOUT]))
            if metadata.format != FORMAT or not reader.schema.equals(_schema()):
                raise ValueError
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError):
        raise _damaged(file, path) from None
    return Index(file, path, metadata)


def read_batch(index: Index, number: int) -> pa.RecordBatch:
    """One of an index's record batches, mapped into memory. Raises DcclipError where it cannot be
    read.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(index.path)) as source:
            batch = pa.ipc.open_file(source).get_batch(number)
        batch.validate(full=True)  # it may come from elsewhere, and Arrow trusts the offsets in it
    except (OSError, pa.ArrowException, ValueError):
        raise _damaged(index.file, index.path) from None
    return batch


def _damaged(file: DataFile, path: Path) -> DcclipError:
    hint = Message("index the data again: dcclip index --fresh {}", file)
    return DcclipError("{} is damaged, or was written by another version of dcclip", hint, path)


def beside(file: DataFile) -> Path:
    return Path(file.location + SUFFIX)


def cached(file: DataFile, columns: Columns) -> Path:
    identity = json.dumps([file.location, "", columns.named], sort_keys=True)
    return (
        cache_folder() / "index" / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}{SUFFIX}"
    )


def find_index(file: DataFile, columns: Columns) -> Index | None:
    """The index of a data file that is newer than the file and states its size; None if there is
    none.

    Raises DcclipError for one that would be, but cannot be used.
    """
    for path in (beside(file), cached(file, columns)):
        if os.path.lexists(path) and path.stat().st_mtime_ns >= int(file.version):
            index = read_index(file, path)
            if (index.metadata.size, index.metadata.columns) == (file.size, columns.named):
                return index
    return None


def find_indexes(
    files: Sequence[DataFile],
    columns: Columns,
    progress: Progress | None = None,
    fresh: bool = False,
    place: Callable[[DataFile, Columns], Path] = cached,
) -> list[Index]:
    """The indexes of data files; those that are missing or too old, with `fresh` all, are written
    to `place` first.
    """
    indexes = {file: None if fresh else find_index(file, columns) for file in files}
    if missing := [file for file, index in indexes.items() if index is None]:
        # Several processes of one run want the same indexes: the first writes them, the others
        # find them.
        with lock(cached(missing[0], columns).with_suffix(".lock")):
            if not fresh:
                indexes |= {file: find_index(file, columns) for file in missing}
            jobs = [(file, place(file, columns)) for file in missing if indexes[file] is None]
            write_indexes(jobs, columns, progress)
            indexes |= {file: read_index(file, path) for file, path in jobs}
    return [index for index in indexes.values() if index is not None]


def own_place(file: DataFile, columns: Columns) -> Path:
    """Where `dcclip index` writes an index: next to its file, or where that is not allowed to the
    cache folder.
    """
    writable = os.access(beside(file).parent, os.W_OK)
    return beside(file) if writable else cached(file, columns)


def verify_files(
    files: Sequence[DataFile], columns: Columns, progress: Progress | None = None
) -> list[Index]:
    """Read data files as a whole and compare them with their indexes. Raises DcclipError where any
    differs.
    """
    indexes = {file: find_index(file, columns) for file in files}
    indexed = [index for index in indexes.values() if index is not None]
    wrong = [
        Message("{} has no index, or changed after it was indexed", file)
        for file, index in indexes.items()
        if index is None
    ]
    with TemporaryDirectory() as folder:
        jobs = [
            (index.file, Path(folder, f"{number}{SUFFIX}")) for number, index in enumerate(indexed)
        ]
        write_indexes(jobs, columns, progress)
        for index, job in zip(indexed, jobs, strict=True):
            if read_index(*job).metadata != index.metadata:
                wrong.append(Message("{} differs from its index {}", index.file, index.path))
    if wrong:
        raise DcclipError(
            joined("\n", wrong), "if the data is correct, index it again: dcclip index --fresh PATH"
        )
    return indexed
