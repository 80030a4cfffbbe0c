"""How is a slice kept between the passes? Its pairs, what is known of them, what was dropped and the figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dcclip_cli.curation.dedup.signatures import signature_schema, signatures_of
from dcclip_cli.curation.filter_pair import FilterResult
from dcclip_cli.curation.report.examples import Examples
from dcclip_cli.curation.report.statistics import Statistics
from dcclip_cli.curation.shards import DroppedTable
from dcclip_cli.curation.work import DROPPED, EXAMPLES, PAIRS, SIGNATURES, STATISTICS, write_json
from dcclip_cli.data.pair import LANGUAGES, Pair

if TYPE_CHECKING:
    import pyarrow as pa

_ROW_GROUP_PAIRS, _ROW_GROUP_BYTES = 256, 32_000_000  # what a reader of pairs has in memory at a time


@dataclass(frozen=True)
class Kept:
    """A pair that passed the rules, and its image's size."""

    pair: Pair
    size: tuple[int, int]


class PairsWriter:
    """Writes pairs as Parquet like `data.table.write_parquet`, with `width` and `height`, in small row groups."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        # Images don't get smaller, and what is written here is read once and thrown away.
        self._file = pq.ParquetWriter(path, _pairs_schema(), compression="none", use_dictionary=False)
        self._rows: list[Kept] = []
        self._bytes = 0

    def write(self, kept: Kept) -> None:
        """Add a pair."""
        self._rows.append(kept)
        self._bytes += len(kept.pair.image)
        if len(self._rows) >= _ROW_GROUP_PAIRS or self._bytes >= _ROW_GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa

        pairs = [kept.pair for kept in self._rows]
        columns: dict[str, list[Any]] = {
            "key": [pair.key for pair in pairs],
            "image": [pair.image for pair in pairs],
            **{name: [list(pair.captions(name)) for pair in pairs] for name in LANGUAGES},
            # In ASCII, so that half a surrogate pair survives.
            "meta": [json.dumps(pair.meta, sort_keys=True) for pair in pairs],
            "width": [kept.size[0] for kept in self._rows],
            "height": [kept.size[1] for kept in self._rows],
        }
        if pairs:
            self._file.write_table(pa.Table.from_pydict(columns, schema=_pairs_schema()))
        self._rows, self._bytes = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.flush()
        self._file.close()


def read_pairs(path: Path) -> Iterator[Kept]:
    """The pairs that a PairsWriter wrote, one row group in memory at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group).to_pylist():
                zh, en = (tuple(row[language]) for language in LANGUAGES)
                pair = Pair(row["key"], row["image"], zh, en, json.loads(row["meta"]))
                yield Kept(pair, (row["width"], row["height"]))


def find_pair(path: Path, key: str) -> Pair | None:
    """One pair of such a file."""
    import pyarrow.parquet as pq

    rows = pq.read_table(path, columns=["key", "image", *LANGUAGES], filters=[("key", "==", key)]).to_pylist()
    return next((Pair(key, row["image"], tuple(row["zh"]), tuple(row["en"])) for row in rows), None)


@dataclass
class Account:
    """The figures, examples and dropped rows of one slice, as both slice passes leave them."""

    statistics: Statistics
    examples: Examples
    dropped: DroppedTable = field(default_factory=DroppedTable)

    def write(self, folder: Path) -> None:
        """Put all three into a folder."""
        write_json(folder / STATISTICS, self.statistics.as_dict())
        self.examples.write(folder / EXAMPLES)
        self.dropped.write(folder / DROPPED)


def keep_slice(folder: Path, results: Iterable[FilterResult], examples: int) -> None:
    """Write what the read pass found out about a slice into a folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    account = Account(Statistics(), Examples(examples))
    signatures = []
    with PairsWriter(folder / PAIRS) as writer:
        for result in results:
            pair, decoded = result.pair, result.decoded
            image = decoded.image if decoded else None
            account.dropped.add_captions(pair, result.captions)
            if result.drop is not None:
                size = image.size if image else None
                account.statistics.add(pair, result.drop, size, result.captions)
                account.examples.add(pair, result.drop, image, result.captions)
                account.dropped.add_pair(pair, result.drop)
                continue
            assert decoded is not None and image is not None
            account.statistics.add_captions(result.captions)
            account.examples.add_captions(pair, result.captions, image)
            signatures.append(signatures_of(pair, decoded, str(pair.meta["source"])))
            writer.write(Kept(pair, image.size))
    pq.write_table(pa.Table.from_pylist(signatures, schema=signature_schema()), folder / SIGNATURES, compression="zstd")
    account.write(folder)


def _pairs_schema() -> pa.Schema:
    import pyarrow as pa

    texts = pa.list_(pa.string())
    fields = {"key": pa.string(), "image": pa.binary(), "zh": texts, "en": texts, "meta": pa.string()}
    return pa.schema(fields | {"width": pa.int32(), "height": pa.int32()})
