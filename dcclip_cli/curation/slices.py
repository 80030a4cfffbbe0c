"""What the steps store for each slice: its pairs and their signatures, dropped rows, statistics and examples."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcclip_cli.curation.dedup.dedup import signature_schema, signatures_of
from dcclip_cli.curation.filter_pair import FilterResult
from dcclip_cli.curation.report.examples import Examples
from dcclip_cli.curation.report.statistics import Statistics
from dcclip_cli.curation.shards import DroppedTable
from dcclip_cli.curation.work import DROPPED, EXAMPLES, PAIRS, SIGNATURES, STATISTICS, write_json
from dcclip_cli.data.pair import LANGUAGES, Pair

_GROUP_PAIRS, _GROUP_BYTES = 256, 32_000_000  # of a row group, which readers have in memory as a whole


@dataclass(frozen=True)
class Kept:
    """A pair that passed the filters, and its image's (width, height)."""

    pair: Pair
    size: tuple[int, int]


def write_pairs(path: Path, pairs: Iterable[Kept]) -> None:
    """Write pairs as Parquet like `data.dataset.write_parquet`, with `width` and `height`, in small row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pa.list_(pa.string())
    fields = {"key": pa.string(), "image": pa.binary(), "zh": texts, "en": texts, "meta": pa.string()}
    schema = pa.schema(fields | {"width": pa.int32(), "height": pa.int32()})
    # Images do not compress, and this file is read once and deleted.
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as file:
        rows: list[dict[str, Any]] = []
        for kept in pairs:
            meta = json.dumps(kept.pair.meta, sort_keys=True)  # in ASCII, so that lone surrogates survive
            rows.append(vars(kept.pair) | {"meta": meta, "width": kept.size[0], "height": kept.size[1]})
            if len(rows) >= _GROUP_PAIRS or sum(len(row["image"]) for row in rows) >= _GROUP_BYTES:
                file.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            file.write_table(pa.Table.from_pylist(rows, schema))


def read_pairs(path: Path) -> Iterator[Kept]:
    """The pairs that `write_pairs` wrote, one row group in memory at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group).to_pylist():
                zh, en = (tuple(row[language]) for language in LANGUAGES)
                pair = Pair(row["key"], row["image"], zh, en, json.loads(row["meta"]))
                yield Kept(pair, (row["width"], row["height"]))


def find_pair(path: Path, key: str) -> Pair | None:
    """One pair of a file of `write_pairs`, without its metadata; None if there is none."""
    import pyarrow.parquet as pq

    rows = pq.read_table(path, columns=["key", "image", *LANGUAGES], filters=[("key", "==", key)]).to_pylist()
    return next((Pair(key, row["image"], tuple(row["zh"]), tuple(row["en"])) for row in rows), None)


@dataclass
class Account:
    """Statistics, examples and dropped rows of one slice, written by the read step and by the write step."""

    statistics: Statistics
    examples: Examples
    dropped: DroppedTable = field(default_factory=DroppedTable)

    def write(self, folder: Path) -> None:
        write_json(folder / STATISTICS, self.statistics.as_dict())
        self.examples.write(folder / EXAMPLES)
        self.dropped.write(folder / DROPPED)


def keep_slice(folder: Path, results: Iterable[FilterResult], examples: int) -> None:
    """Write the result of the read step for a slice into a folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    account = Account(Statistics(), Examples(examples))
    signatures: list[dict[str, Any]] = []

    def kept() -> Iterator[Kept]:
        for result in results:
            pair, decoded = result.pair, result.decoded
            image = decoded.image if decoded else None
            account.dropped.add_captions(pair, result.captions)
            if result.drop is not None:
                account.statistics.add(pair, result.drop, image.size if image else None, result.captions)
                account.examples.add(pair, result.drop, image, result.captions)
                account.dropped.add_pair(pair, result.drop)
                continue
            assert decoded is not None and image is not None
            account.statistics.add_captions(result.captions)
            account.examples.add_captions(pair, result.captions, image)
            signatures.append(signatures_of(pair, decoded, str(pair.meta["source"])))
            yield Kept(pair, image.size)

    write_pairs(folder / PAIRS, kept())
    pq.write_table(pa.Table.from_pylist(signatures, schema=signature_schema()), folder / SIGNATURES, compression="zstd")
    account.write(folder)
