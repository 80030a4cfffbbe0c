"""Opening datasets of image-text pairs by their place; pairs with embeddings; several datasets as
one.
"""

import json
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain, groupby
from pathlib import Path
from typing import Literal, Self

import numpy as np

from dcclip_cli.core.errors import DcclipError, Message, joined
from dcclip_cli.core.files import several
from dcclip_cli.core.progress import Progress
from dcclip_cli.core.text import encodable
from dcclip_cli.data.class_folders import no_pairs
from dcclip_cli.data.index import find_indexes
from dcclip_cli.data.indexed import IndexedDataset
from dcclip_cli.data.options import DataOptions
from dcclip_cli.data.pair import (
    LANGUAGES,
    ROW_GROUP,
    ConcatDataset,
    FileDataset,
    Lazy,
    Pair,
    PairDataset,
    Rows,
    captions_in_memory,
    check_once,
)
from dcclip_cli.data.remote import CACHE_BYTES, DataFile, is_url, list_files, local_copies, shown
from dcclip_cli.data.shards import (
    DROPPED,
    SUFFIXES,
    Columns,
    columns_in,
    open_parquet,
    parquet_errors,
)

_LAYOUT = Message("a .parquet file, a .tar file or a folder of such files")


class EmbeddingDataset(FileDataset):
    """Pairs in a Parquet file with vectors of one length in the column `embedding` in place of
    images.

    They are a locked image tower's embeddings of images, or points in its space that stand for
    many images. The whole file is read into memory.
    """

    layout = Message("embeddings in a .parquet file")
    path: Path

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self.path = path
        with parquet_errors(path):
            table = pq.read_table(path, memory_map=True)
        names = table.column_names
        if "key" not in names:
            hint = Message("add the column: every embedding needs a key")
            raise DcclipError(
                "{} has no column {} (found: {})", hint, path, "key", ", ".join(names)
            )
        check_once(("key", "embedding", *LANGUAGES), names, path)
        self._keys = table["key"].combine_chunks()
        rows = table["embedding"].to_pylist()
        widths = {len(row) if isinstance(row, list) else 0 for row in rows}
        self.embeddings = np.asarray(rows, np.float32) if len(widths) == 1 else np.full(1, np.nan)
        if rows and (0 in widths or not np.isfinite(self.embeddings).all()):
            raise DcclipError(
                "{}: the embeddings are not vectors of the same length",
                "write vectors of the same length",
                path,
            )
        with parquet_errors(path):
            records = table.select([name for name in LANGUAGES if name in names]).to_pylist()
        self._captions = captions_in_memory(
            Columns().captions(record, f"{path}: pair {row}") for row, record in enumerate(records)
        )

    @classmethod
    def find(cls, path: Path, uncaptioned: bool) -> Self | None:
        if path.suffix != ".parquet" or not path.is_file():
            return None
        with open_parquet(list_files(path)[0]) as parquet:
            has_embeddings = "embedding" in parquet.schema_arrow.names
        return cls(path) if has_embeddings else None

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        # another process reads the file, rather than being sent it
        return type(self), (self.path,)

    def keys(self) -> Sequence[str]:
        return Lazy(len(self), lambda row: str(self._keys[row]), lambda: map(str, self._keys))

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Pair:
        raise DcclipError(
            "{} contains embeddings instead of images",
            "use them for align with lock: image",
            self.path,
        )


LAYOUTS: tuple[type[FileDataset], ...] = (EmbeddingDataset,)
Source = str | Path | Sequence[str | Path]


def open_pairs(
    source: Source,
    columns: Columns | None = None,
    progress: Progress | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> PairDataset:
    """The pairs in files, folders or globs, of tars, Parquet files or one of the LAYOUTS.

    Files at URLs are downloaded, files without an index indexed first. `cache_bytes` is the limit
    of what is downloaded, and of what is unpacked. Raises DcclipError where there are no pairs.
    """
    dataset = find_dataset(source, False, columns, progress, cache_bytes)
    if not dataset:
        if dataset is None:
            hint = Message(
                "use {}", joined(", ", [_LAYOUT, *(layout.layout for layout in LAYOUTS)])
            )
            raise no_pairs(named(source), hint)
        raise DcclipError(
            "{} contains no pairs", "collect or download the data again", named(source)
        )
    return dataset


def recipe_pairs(
    data: DataOptions, kind: Literal["train", "validation"], progress: Progress | None = None
) -> PairDataset | None:
    """A recipe's pairs to train on, or to validate on; None if it has none. Raises DcclipError as
    `open_pairs`.
    """
    source = data.train if kind == "train" or data.hold_out else data.validation
    if source is None:
        return None
    return split(open_pairs(source, data.columns, progress, data.cache_bytes), data, kind)


def split(
    dataset: PairDataset, data: DataOptions, kind: Literal["train", "validation"]
) -> PairDataset:
    """The samples of `data.train`, or else `data.images`, that `hold_out` leaves or takes; all of
    them without it.
    """
    if not data.hold_out:
        return dataset
    check_hold_out(data, len(dataset))
    held = np.linspace(0, len(dataset) - 1, data.hold_out).astype(np.int64)
    return Rows(
        dataset, held if kind == "validation" else np.setdiff1d(np.arange(len(dataset)), held)
    )


def check_hold_out(data: DataOptions, samples: int) -> None:
    """Raise DcclipError unless samples to train on remain."""
    if (source := data.train or data.images) and data.hold_out >= samples:
        counts = data.hold_out, named(source), samples
        message = Message("data.hold_out is {:,}, but {} has only {:,} samples", *counts)
        raise DcclipError(message, "reduce data.hold_out to about 5 % of the samples")


def find_dataset(
    source: Source,
    uncaptioned: bool = False,
    columns: Columns | None = None,
    progress: Progress | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> PairDataset | None:
    """The dataset in files, folders or globs; None where one of them has none of the LAYOUTS.

    `uncaptioned`: also images without captions. Raises DcclipError where nothing is there or it
    cannot be read.
    """
    columns = columns or Columns()
    opened: list[PairDataset | list[DataFile] | None] = []
    for location in several(source):
        may_be_other = columns.image is None and not is_url(location) and Path(location).exists()
        layouts = LAYOUTS if may_be_other else ()
        datasets_by_layout = (layout.find(Path(location), uncaptioned) for layout in layouts)
        dataset = next((dataset for dataset in datasets_by_layout if dataset is not None), None)
        if dataset is None:
            opened.append(local_copies(shards_at(location), cache_bytes, progress) or None)
        else:
            opened.append(dataset)
    if None in opened or not opened:
        return None
    # Shards that follow each other are one dataset.
    datasets: list[PairDataset] = []
    for shards, parts in groupby(
        opened, lambda part: isinstance(part, list) and columns_in(part[0], columns)
    ):
        if isinstance(shards, Columns):
            files = [part for part in parts if isinstance(part, list)]
            indexes = find_indexes([*chain.from_iterable(files)], shards, progress)
            indexed = IndexedDataset(named(source), indexes, uncaptioned, cache_bytes)
            indexed.sources = [
                indexed.first_of(shard) for shard in accumulate(map(len, files[:-1]), initial=0)
            ]
            datasets.append(indexed)
        else:
            datasets += [part for part in parts if isinstance(part, PairDataset)]
    if len(datasets) == 1:
        return datasets[0]
    joined = ConcatDataset(datasets)
    at = zip(datasets, joined.firsts, strict=False)
    joined.sources = [first + source for dataset, first in at for source in dataset.sources]
    return joined


def shards_at(source: Source) -> list[DataFile]:
    """The tars at a path, URL or glob, or where there are none its Parquet files, sorted by name;
    of a list, of each.

    Raises DcclipError where nothing is there.
    """
    shards: list[DataFile] = []
    for location in several(source):
        files = [
            file
            for file in list_files(location)
            if not file.name.startswith(".") and file.name != DROPPED
        ]
        by_suffix = ([file for file in files if file.name.endswith(suffix)] for suffix in SUFFIXES)
        shards += next(filter(None, by_suffix), [])
    return shards


def named(source: Source) -> str | Path:
    """The place of data in messages: the path or URL, or the first of several."""
    first = next(iter(several(source)))
    return shown(first) if is_url(first) else Path(first)


def write_parquet(path: Path, pairs: Iterable[Pair]) -> int:
    """Write pairs as one Parquet file, the same bytes for the same pairs; images are stored as
    they are.

    Returns the number of pairs.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    as_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode
    rows = [{**vars(pair), "meta": encodable(as_json(pair.meta))} for pair in pairs]
    strings = pa.list_(pa.string())
    fields = {
        "key": pa.string(),
        "image": pa.binary(),
        "zh": strings,
        "en": strings,
        "meta": pa.string(),
    }
    table = pa.Table.from_pylist(rows, schema=pa.schema(fields))
    pq.write_table(table, path, compression="zstd", row_group_size=ROW_GROUP)
    return len(rows)
