"""The index of a shard: keys, captions and the place of each image, in an Arrow file that is mapped into memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcclip_cli.checksums import FORMAT
from dcclip_cli.data.pair import LANGUAGES, caption_id
from dcclip_cli.data.shards import Columns, Row, rows_of
from dcclip_cli.data.storage import DataFile, shown
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import atomic_file, cache_folder
from dcclip_cli.text import encodable

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIX = ".index.arrow"
_BATCH_ROWS = 65_536
_BATCH_CHARACTERS = 1 << 28  # offsets in an Arrow array have 31 bits
_ABOUT = b"dcclip.index"


class Damaged(Exception):
    """An index that cannot be used, and why."""


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
    format: int = FORMAT


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
        self._sink = path.open("wb")
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
    except UnicodeEncodeError:  # keys, from names of members in another encoding
        return pa.array(list(map(encodable, values)), kind.type)


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
    """The index in a file; None where there is none. Raises Damaged where it cannot be used."""
    import pyarrow as pa

    if not os.path.lexists(path):
        return None
    if not path.is_file():
        raise Damaged("is not a file")
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            last = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
            content = json.loads(last.custom_metadata[_ABOUT])
            about = About(**content)
            if about.format != FORMAT or not reader.schema.equals(_schema()):
                raise Damaged(f"has format {about.format}, and this version reads {FORMAT}")
    except (OSError, pa.ArrowException, LookupError, RecursionError, TypeError, ValueError) as error:
        raise Damaged(f"cannot be read: {error.strerror}" if isinstance(error, OSError) else "is damaged") from None
    return Index(file, path, about)


def read_batch(index: Index, number: int) -> pa.RecordBatch:
    """One of an index's record batches, mapped into memory. Raises DcclipError where it cannot be read."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(index.path)) as source:
            batch = pa.ipc.open_file(source).get_batch(number)
        batch.validate(full=True)  # it may come from elsewhere, and Arrow trusts the offsets in it
        if (batch.num_rows, batch["captioned"].true_count) != (index.about.rows[number], index.about.captioned[number]):
            raise ValueError("other rows than it says")
    except (OSError, pa.ArrowException, TypeError, ValueError) as error:
        what = Message("{} is damaged: {}", index.path, error)
        raise DcclipError(what, Message("index the data again: dcclip index --fresh {}", index.file)) from None
    return batch


def beside(file: DataFile) -> Path:
    """The place of a local file's index next to it."""
    return Path(file.location + SUFFIX)


def cached(file: DataFile, columns: Columns) -> Path:
    """The place of a file's index in the cache folder."""
    version = file.version if file.is_remote else ""
    about = json.dumps([shown(file.location), version, columns.named], sort_keys=True)
    return cache_folder() / "index" / f"{hashlib.sha256(about.encode()).hexdigest()[:24]}{SUFFIX}"


def find_index(
    file: DataFile, columns: Columns, damaged: Callable[[Path, Damaged], None] = lambda *_: None
) -> Index | None:
    """The index of a data file that is newer than the file and states its size; None if there is none.

    `damaged` is called for one that would be, but cannot be used.
    """
    for path in ([] if file.is_remote else [beside(file)]) + [cached(file, columns)]:
        try:
            if not (file.is_remote or path.stat().st_mtime_ns >= int(file.version)):
                continue
            index = read_index(file, path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (Damaged, OSError) as error:
            damaged(path, error if isinstance(error, Damaged) else Damaged(f"cannot be read: {error.strerror}"))
            continue
        if index and (index.about.size, index.about.columns) == (file.size, columns.named):
            return index
    return None
