"""The output of `collect`: shards, the same bytes for the same pairs, and dropped pairs.

`data.dataset.open_pairs` reads the shards.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcclip_cli.core.files import file_sha256
from dcclip_cli.curation.filters.image import image_suffix
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import LANGUAGES, Language, Pair
from dcclip_cli.data.reading import Drop, tar_header

if TYPE_CHECKING:
    import pyarrow as pa

_MAX_CHARACTERS = 1_000  # of each text in the table of dropped pairs
_ROWS_AT_A_TIME = 20_000
_as_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode


@dataclass(frozen=True)
class Shard:
    """A finished shard and the SHA-256 of its file."""

    name: str
    pairs: int
    sha256: str


def record(pair: Pair) -> bytes:
    """The content of KEY.json: captions and metadata in UTF-8, keys sorted."""
    # "replace": metadata may contain lone surrogates, which UTF-8 cannot encode.
    return _as_json({**pair.meta, "zh": pair.zh, "en": pair.en}).encode("utf-8", "replace")


def write_shard(path: Path, pairs: Iterable[Pair]) -> Shard:
    """Write a tar (KEY.jpg|png|webp, KEY.json) or Parquet shard: the same bytes for the same
    pairs.
    """
    if path.suffix == ".parquet":
        return Shard(path.name, write_parquet(path, pairs), file_sha256(path))
    count = size = 0
    with path.open("wb") as tar:
        for pair in pairs:
            count += 1
            suffix = image_suffix(pair.image)
            assert suffix is not None, pair.key
            for name, content in ((suffix, pair.image), ("json", record(pair))):
                head = tar_header(
                    f"{pair.key}.{name}", len(content)
                )  # with fixed owner, mode and time
                size += tar.write(
                    b"".join((head, content, bytes(-len(content) % tarfile.BLOCKSIZE)))
                )
        end = 2 * tarfile.BLOCKSIZE
        tar.write(bytes(end + -(size + end) % tarfile.RECORDSIZE))
    return Shard(path.name, count, file_sha256(path))


class DroppedTable:
    """The dropped pairs and single captions of one step of a slice, one row for each.

    Columns: `key` and `origin` (source and position there) of the pair, `reason`, `detail`,
    `language` (of a single caption; null for a whole pair), and the dropped captions `zh` and
    `en`, cut to 1,000 characters each.
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def add(
        self, pair: Pair, drop: Drop, language: Language | None = None, caption: str = ""
    ) -> None:
        captions = {language: (caption,)} if language else {"zh": pair.zh, "en": pair.en}
        origin = f"{pair.meta.get('source', '')}:{pair.meta.get('origin', '')}"
        texts = {"key": pair.key, "origin": origin, "reason": drop.reason, "detail": drop.detail}
        row: dict[str, Any] = {name: printable(text) for name, text in texts.items()} | {
            "language": language
        }
        self._rows.append(
            row | {name: [printable(text) for text in captions.get(name, ())] for name in LANGUAGES}
        )

    def write(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(self._rows, schema=_schema()), path, compression="zstd")


def join_dropped(slices: Iterable[Iterable[Path]], out: Path) -> None:
    """Join the tables of each slice, sorted by key, into one Parquet file; a few slices are in
    memory at a time.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(out, _schema(), compression="zstd") as joined:
        tables: list[pa.Table] = []
        for files in slices:
            tables.append(
                pa.concat_tables(pq.read_table(file, schema=_schema()) for file in files).sort_by(
                    "key"
                )
            )
            if sum(table.num_rows for table in tables) >= _ROWS_AT_A_TIME:
                joined.write_table(pa.concat_tables(tables))
                tables = []
        if tables:
            joined.write_table(pa.concat_tables(tables))


def _schema() -> pa.Schema:
    import pyarrow as pa

    texts = ("key", "origin", "reason", "detail", "language")
    return pa.schema(
        {**dict.fromkeys(texts, pa.string()), **dict.fromkeys(LANGUAGES, pa.list_(pa.string()))}
    )


def printable(text: str) -> str:
    """The beginning of a text, without what UTF-8 cannot encode (in file names, for example)."""
    return text[:_MAX_CHARACTERS].encode("utf-8", "replace").decode()
