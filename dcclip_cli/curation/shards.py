"""How are pairs written down? As tar shards, the same bytes for the same pairs, and a table of what was dropped.

`data.table.open_pairs` reads the shards back.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dcclip_cli.curation.candidate import Drop
from dcclip_cli.curation.decode_image import image_suffix
from dcclip_cli.data.pair import LANGUAGES, Language, Pair

if TYPE_CHECKING:
    import pyarrow as pa

_DROPPED_CHARACTERS = 1_000  # of any text in the table of what was dropped
_ROWS_AT_A_TIME = 20_000


@dataclass(frozen=True)
class Shard:
    """A finished shard; `sha256` is that of the file."""

    name: str
    pairs: int
    sha256: str


def record(pair: Pair) -> bytes:
    """KEY.json: the captions and the metadata in UTF-8, keys sorted."""
    content = {**pair.meta, "zh": pair.zh, "en": pair.en}
    # "replace": a metadata text may hold half a surrogate pair, which has no UTF-8.
    return json.dumps(content, ensure_ascii=False, sort_keys=True).encode("utf-8", "replace")


class ShardWriter:
    """Writes one tar: KEY.jpg|png|webp, then KEY.json of each pair; hashed as it is written.

    Owner, mode and time are fixed, so that equal pairs give equal files.
    """

    def __init__(self, path: Path) -> None:
        self.pairs = 0
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self._tar = tarfile.open(fileobj=self, mode="w")  # type: ignore[call-overload]  # noqa: SIM115

    def add(self, pair: Pair) -> None:
        """Add a pair, whose image must be a JPEG, PNG or WebP file."""
        suffix = image_suffix(pair.image)
        assert suffix is not None, pair.key
        for name, content in ((f"{pair.key}.{suffix}", pair.image), (f"{pair.key}.json", record(pair))):
            member = tarfile.TarInfo(name)  # its defaults: mode 644, time 0, owner 0 without a name
            member.size = len(content)
            self._tar.addfile(member, io.BytesIO(content))
        self.pairs += 1

    def finish(self, name: str) -> Shard:
        """Close the file and say what it holds; `name` is what it will be called."""
        self._tar.close()
        self._file.close()
        return Shard(name, self.pairs, self._hash.hexdigest())

    def write(self, content: bytes) -> int:
        """For tarfile only, which takes this for the file."""
        self._hash.update(content)
        return self._file.write(content)

    def tell(self) -> int:
        return self._file.tell()


class DroppedTable:
    """What was dropped of one slice, in order of keys: one row for each pair or single caption.

    Columns: `key` and `origin` (where in which source) of the pair, `reason`, `detail`, `language` (of a single
    caption; null for a whole pair), and the dropped captions `zh` and `en`, cut to 1,000 characters each.
    """

    def __init__(self, rows: Iterable[dict[str, Any]] = ()) -> None:
        self._rows = list(rows)

    def add_pair(self, pair: Pair, drop: Drop) -> None:
        """Add a whole pair, with the captions that go with it."""
        self._add(pair, drop, None, {"zh": pair.zh, "en": pair.en})

    def add_captions(self, pair: Pair, captions: Iterable[tuple[Language, str, Drop]]) -> None:
        """Add single captions of a pair."""
        for language, caption, drop in captions:
            self._add(pair, drop, language, {language: (caption,)})

    def _add(
        self, pair: Pair, drop: Drop, language: Language | None, captions: Mapping[Language, Iterable[str]]
    ) -> None:
        origin = f"{pair.meta.get('source', '')}:{pair.meta.get('origin', '')}"
        said = {"key": pair.key, "origin": origin, "reason": drop.reason, "detail": drop.detail}
        row: dict[str, Any] = {name: printable(text) for name, text in said.items()}
        row["language"] = language
        self._rows.append(row | {name: [printable(text) for text in captions.get(name, ())] for name in LANGUAGES})

    def write(self, path: Path) -> None:
        """Write the table as a Parquet file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = sorted(self._rows, key=lambda row: str(row["key"]))
        pq.write_table(pa.Table.from_pylist(rows, schema=_schema()), path, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> DroppedTable:
        """The table in a file."""
        import pyarrow.parquet as pq

        return cls(pq.read_table(path).to_pylist())


class TableWriter:
    """Joins tables into one Parquet file, a few of them in memory at a time."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self._file = pq.ParquetWriter(path, _schema(), compression="zstd")
        self._tables: list[pa.Table] = []

    def append(self, path: Path) -> None:
        """Add the rows of another file."""
        import pyarrow.parquet as pq

        self._tables.append(pq.read_table(path, schema=_schema()))
        if sum(table.num_rows for table in self._tables) >= _ROWS_AT_A_TIME:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._tables:
            self._file.write_table(pa.concat_tables(self._tables))
        self._tables = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._flush()
        self._file.close()


def _schema() -> pa.Schema:
    import pyarrow as pa

    texts = ("key", "origin", "reason", "detail", "language")
    return pa.schema({**dict.fromkeys(texts, pa.string()), **dict.fromkeys(LANGUAGES, pa.list_(pa.string()))})


def printable(text: str) -> str:
    """The text's beginning as something that UTF-8 can hold: file names and captions need not be."""
    return text[:_DROPPED_CHARACTERS].encode("utf-8", "replace").decode()
