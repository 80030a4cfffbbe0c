"""What do the scorers give to the pairs of one slice?"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcclip_cli.curation.scores.base import DECIMALS, Device, ScorerOptions, Scores
from dcclip_cli.data.pair import LANGUAGES, Pair
from dcclip_cli.model.preprocess import decode

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

MAX_PIXELS = 32_000_000  # of decoded pictures in memory, 4 bytes each; a single larger one is taken by itself
_READ = 16  # pairs at a time, the bytes of whose images are in memory twice
_ROWS = 50_000  # in memory before they are written

Row = tuple[str, str, str | None, int | None, float | None]


def score_slice(pairs: Path, scorers: Sequence[ScorerOptions], out: Path, device: Device | None = None) -> None:
    """Write to the Parquet file `out` what `scorers` give to the pairs in the Parquet file `pairs`, in their order.

    Columns: `key`, `name` (what the score is stored under), `language` and `place` (of the caption scored; null for a
    score of the pair), `value` (null where the model gave no number). Torch is kept to one thread: several slices are
    scored at a time, and sums come out the same whatever their number. Raises DcclipError where a model can't be
    loaded.
    """
    import pyarrow.parquet as pq

    opened = [scorer.open(device) for scorer in scorers]
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    rows: list[Row] = []
    with pq.ParquetWriter(out, _schema(), compression="zstd") as file:
        for batch in _batches(pairs, max((scorer.batch_size for scorer in scorers), default=1)):
            for score in opened:
                for (pair, _), scores in zip(batch, score(batch), strict=True):
                    rows.extend(_rows(pair.key, scores))
            if len(rows) >= _ROWS:
                file.write_table(_table(rows))
                rows.clear()
        file.write_table(_table(rows))


def _batches(pairs: Path, size: int) -> Iterator[list[tuple[Pair, Image.Image]]]:
    """The pairs with their pictures, `size` at a time, or fewer where the pictures are large."""
    import pyarrow.parquet as pq

    batch: list[tuple[Pair, Image.Image]] = []
    pixels = 0
    for rows in pq.ParquetFile(pairs).iter_batches(_READ):
        for row in rows.to_pylist():
            picture = decode(row["image"])
            area = picture.width * picture.height
            if batch and (len(batch) == size or pixels + area > MAX_PIXELS):
                yield batch
                batch, pixels = [], 0
            captions = {language: tuple(row[language]) for language in LANGUAGES}
            batch.append((Pair(row["key"], row["image"], meta=json.loads(row["meta"]), **captions), picture))
            pixels += area
    if batch:
        yield batch


def _rows(key: str, scores: Scores) -> Iterator[Row]:
    for name, value in scores.items():
        if isinstance(value, Mapping):
            for language, values in value.items():
                yield from ((key, name, language, place, _stored(one)) for place, one in enumerate(values))
        else:
            yield key, name, None, None, _stored(value)


def _stored(value: float) -> float | None:
    return round(value, DECIMALS) if math.isfinite(value) else None


def _schema() -> pa.Schema:
    import pyarrow as pa

    texts = {"key": pa.string(), "name": pa.string(), "language": pa.string()}
    return pa.schema({**texts, "place": pa.int32(), "value": pa.float64()})


def _table(rows: list[Row]) -> pa.Table:
    import pyarrow as pa

    schema = _schema()
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema)
