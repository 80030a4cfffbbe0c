"""The base class of scorers, the scoring of a slice, and the drops that follow from stored scores.

A scorer is a model that gives each pair, or each of its captions, a number. The numbers are stored first; which pairs
they drop is decided once all slices are scored.
"""

from __future__ import annotations

import json
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field

from dcclip_cli.curation.dedup import GlobalFilter
from dcclip_cli.data.pair import LANGUAGES, Language, Pair
from dcclip_cli.model.preprocess import decode
from dcclip_cli.options import Options

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from PIL import Image

Scores = Mapping[str, "float | Mapping[Language, list[float]]"]
"""The scores of one pair by their stored names: one number, or one for each caption of each language."""

Score = Callable[[Sequence["tuple[Pair, Image.Image]"]], "list[Scores]"]
Device = Literal["auto", "cpu", "cuda", "mps"]

Some = TypeVar("Some", bound="ScorerOptions")

DECIMALS = 5  # of a stored score: finer differences depend on the machine
MAX_PIXELS = 32_000_000  # of decoded images in memory, 4 bytes each; a larger one is scored by itself
_PAIRS_AT_A_TIME = 16  # that are read: the bytes of their images are in memory twice
_ROWS_AT_A_TIME = 50_000  # that are written

Row = tuple[str, str, str | None, int | None, float | None]


class ScorerOptions(Options, ABC):
    """Base class of scorers: their options, how they score, and what is dropped for their scores."""

    kind: str
    name: str | None = Field(
        None,
        pattern=r"^\w[\w-]{0,39}$",
        description="Name in drop reasons and scores; tells scorers of a kind apart",
    )
    device: Device = Field("auto", description="Device that the model runs on")
    batch_size: int = Field(32, ge=1, le=4096, description="Images, or texts, in each batch of the model")

    @property
    def stored(self) -> str:
        """The name of its scores, unique in a recipe; its drop reasons begin with it."""
        return f"{self.kind}-{self.name}" if self.name else self.kind

    @abstractmethod
    def check(self) -> None:
        """Raises DcclipError if the model is absent, as far as that is known without loading or downloading it."""

    @abstractmethod
    def open(self) -> Score:
        """A function from pairs with their decoded images to the scores of each pair.

        A model is loaded once in each process. Raises DcclipError if it cannot be loaded.
        """

    @abstractmethod
    def apply(self, connection: DuckDBPyConnection) -> None:
        """Add the drops that follow from the stored scores of all pairs to the tables of `dedup.tables`."""


# NaN scores are stored as NULL, and drop the pair.
_DROP_PAIRS = """
INSERT INTO pair_drops
    SELECT number, $reason, coalesce(format('{{:.3f}}', value), 'no score') || $label
    FROM live_pairs JOIN scores USING (number)
    WHERE scores.name = $name AND (value IS NULL OR value {sign} $threshold)
"""


def drop_pairs(connection: DuckDBPyConnection, stored: str, reason: str, threshold: float, below: bool = False) -> None:
    """Drop pairs whose score named `stored` is at least the threshold, or is `below` it."""
    label = f", rejected {'below' if below else 'from'} {threshold:.3f}"
    values = {"name": stored, "reason": reason, "threshold": threshold, "label": label}
    connection.execute(_DROP_PAIRS.format(sign="<" if below else ">="), values)


def unique_names(scorers: tuple[Some, ...]) -> tuple[Some, ...]:
    """The scorers unchanged. Raises ValueError if two of them would store their scores under one name."""
    names = [scorer.stored for scorer in scorers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two scorers are both called {twice[0]}: give each a name of its own")
    return scorers


class ScoreFilter(GlobalFilter):
    """Applies the scorers' thresholds and fractions one after the other; each sees what the earlier ones left."""

    scorers: tuple[ScorerOptions, ...] = Field(description="The recipe's scorers")

    def apply(self, connection: DuckDBPyConnection) -> None:
        """Reasons: those of the scorers, each beginning with the scorer's kind."""
        for scorer in self.scorers:
            scorer.apply(connection)


def score_slice(pairs: Path, scorers: Sequence[ScorerOptions], out: Path) -> None:
    """Write the scores of the pairs in the Parquet file `pairs` to the Parquet file `out`, in the order of the pairs.

    Columns: `key`, `name` (of the score), `language` and `place` (of the scored caption; null for a score of the pair),
    `value` (null for NaN). Torch uses one thread: several slices are scored at a time, and sums are the same however
    many. Raises DcclipError if a model cannot be loaded.
    """
    import pyarrow.parquet as pq

    opened = [scorer.open() for scorer in scorers]
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    rows: list[Row] = []
    with pq.ParquetWriter(out, _schema(), compression="zstd") as file:
        for batch in _batches(pairs, max((scorer.batch_size for scorer in scorers), default=1)):
            for score in opened:
                for (pair, _), scores in zip(batch, score(batch), strict=True):
                    rows.extend(_rows(pair.key, scores))
            if len(rows) >= _ROWS_AT_A_TIME:
                file.write_table(_table(rows))
                rows.clear()
        file.write_table(_table(rows))


def _batches(pairs: Path, size: int) -> Iterator[list[tuple[Pair, Image.Image]]]:
    """Batches of `size` pairs with their decoded images, or fewer if the images are large."""
    import pyarrow.parquet as pq

    batch: list[tuple[Pair, Image.Image]] = []
    pixels = 0
    for rows in pq.ParquetFile(pairs).iter_batches(_PAIRS_AT_A_TIME):
        for row in rows.to_pylist():
            image = decode(row["image"])
            area = image.width * image.height
            if batch and (len(batch) == size or pixels + area > MAX_PIXELS):
                yield batch
                batch, pixels = [], 0
            captions = {language: tuple(row[language]) for language in LANGUAGES}
            batch.append((Pair(row["key"], row["image"], meta=json.loads(row["meta"]), **captions), image))
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
