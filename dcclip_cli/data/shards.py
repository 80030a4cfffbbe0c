"""How are pairs written down? As tar shards, the same bytes for the same pairs, and a table of what was dropped.

`data.table.open_pairs` reads the shards back.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dcclip_cli.data.filters import Drop, image_suffix
from dcclip_cli.data.pair import LANGUAGES, Language, Pair

_DROPPED_CHARACTERS = 1_000  # of any text in the table of what was dropped
_ROWS_AT_A_TIME = 1_000


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
    """Writes 000000.tar, 000001.tar, ... of `shard_size` pairs each into `folder`; `shards` lists the finished ones.

    In a tar KEY.jpg|png|webp precedes KEY.json. Owner, mode and time are fixed, so that equal pairs give equal files.
    """

    def __init__(self, folder: Path, shard_size: int) -> None:
        self.shards: list[Shard] = []
        self._folder = folder
        self._shard_size = shard_size
        self._pairs = 0
        self._tar: tarfile.TarFile | None = None

    def write(self, pair: Pair) -> None:
        """Add a pair, whose image must be a JPEG, PNG or WebP file."""
        suffix = image_suffix(pair.image)
        assert suffix is not None, pair.key
        if self._tar is None:
            self._tar = tarfile.open(self._folder / f"{len(self.shards):06d}.tar", "w")  # noqa: SIM115
        for name, content in ((f"{pair.key}.{suffix}", pair.image), (f"{pair.key}.json", record(pair))):
            member = tarfile.TarInfo(name)  # its defaults: mode 644, time 0, owner 0 without a name
            member.size = len(content)
            self._tar.addfile(member, io.BytesIO(content))
        self._pairs += 1
        if self._pairs == self._shard_size:
            self._finish()

    def _finish(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        path = Path(str(self._tar.name))
        with path.open("rb") as stream:
            self.shards.append(Shard(path.name, self._pairs, hashlib.file_digest(stream, "sha256").hexdigest()))
        self._tar, self._pairs = None, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._finish()


class DroppedWriter:
    """Writes what was dropped, one row for each pair or single caption, into a Parquet file.

    Columns: `key` and `origin` (where in which source) of the pair, `reason`, `detail`, `language` (of a single
    caption; null for a whole pair), and the dropped captions `zh` and `en`, cut to 1,000 characters each.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        text = ("key", "origin", "reason", "detail", "language")
        captions = pa.list_(pa.string())
        self._schema = pa.schema({**dict.fromkeys(text, pa.string()), "zh": captions, "en": captions})
        self._file = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def write_pair(self, pair: Pair, origin: str, drop: Drop) -> None:
        """Add a whole pair, with the captions that go with it."""
        self._write(pair.key, origin, drop, None, {"zh": pair.zh, "en": pair.en})

    def write_caption(self, key: str, origin: str, drop: Drop, language: Language, caption: str) -> None:
        """Add one caption of a pair."""
        self._write(key, origin, drop, language, {language: (caption,)})

    def _write(
        self,
        key: str,
        origin: str,
        drop: Drop,
        language: Language | None,
        captions: Mapping[Language, tuple[str, ...]],
    ) -> None:
        said = {"key": key, "origin": origin, "reason": drop.reason, "detail": drop.detail}
        row: dict[str, Any] = {name: printable(text) for name, text in said.items()}
        row["language"] = language
        row |= {name: [printable(text) for text in captions.get(name, ())] for name in LANGUAGES}
        self._rows.append(row)
        if len(self._rows) == _ROWS_AT_A_TIME:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._rows:
            self._flush()
        self._file.close()


def printable(text: str) -> str:
    """The text's beginning as something that UTF-8 can hold: file names and captions need not be."""
    return text[:_DROPPED_CHARACTERS].encode("utf-8", "replace").decode()
