"""The base class of scorers, models that give pairs or captions a number, and the scoring of a slice."""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dcclip_cli.curation.dedup import GlobalFilter
from dcclip_cli.data.pair import Language, Pair
from dcclip_cli.errors import Message
from dcclip_cli.model.preprocess import decode

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from PIL import Image

Scores = Mapping[str, "float | Mapping[Language, list[float]]"]
"""The scores of one pair by their stored names: one number, or one for each caption of each language."""

Batch = Sequence["tuple[Pair, Image.Image]"]
Score = Callable[[Batch], "list[Scores]"]
Device = Literal["auto", "cpu", "cuda", "mps"]

DECIMALS = 5  # of a stored score: finer differences depend on the machine
MAX_PIXELS = 32_000_000  # of decoded images in memory, 4 bytes each; a larger one is scored by itself
BATCH = 32  # images, or texts, that a model gets at a time
_ROWS_AT_A_TIME = 50_000  # that are written


class ScorerOptions(GlobalFilter):
    """Base class of scorers: their options, how they score, and what is dropped for their scores (`apply`)."""

    kind: str
    name: str | None = Field(
        None, pattern=r"^\w[\w-]{0,39}$", description="Name to distinguish scorers of the same kind"
    )
    device: Device = Field("auto", description="Device that the model runs on")

    @property
    def stored(self) -> str:
        """The name of its scores, unique in a recipe; its drop reasons begin with it."""
        return f"{self.kind}-{self.name}" if self.name else self.kind

    @abstractmethod
    def check(self) -> None:
        """Raises DcclipError if the model is absent, as far as that is known without loading or downloading it."""

    @abstractmethod
    def open(self) -> Score:
        """A function from pairs and decoded images to scores; the model is loaded once per process, or DcclipError."""


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


def unique_names(scorers: tuple[ScorerOptions, ...]) -> tuple[ScorerOptions, ...]:
    """The scorers unchanged. Raises ValueError if two of them would store their scores under one name."""
    names = Counter(scorer.stored for scorer in scorers)
    if twice := sorted(name for name, count in names.items() if count > 1):
        raise ValueError(Message("two scorers have the name {}: give each a different name", twice[0]))
    return scorers


def score_slice(pairs: Iterable[Pair], scorers: Sequence[ScorerOptions], out: Path) -> None:
    """Write the scores of pairs to the Parquet file `out`, in the order of the pairs.

    Columns: `key`, `name` (of the score), `language` and `place` (of the scored caption; null for a score of the pair),
    `value` (null for NaN). Torch uses one thread: several slices are scored at a time, and sums are the same however
    many. Raises DcclipError if a model cannot be loaded.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    opened = [scorer.open() for scorer in scorers]
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    texts = {"key": pa.string(), "name": pa.string(), "language": pa.string()}
    schema = pa.schema({**texts, "place": pa.int32(), "value": pa.float64()})
    rows: list[dict[str, Any]] = []
    with pq.ParquetWriter(out, schema, compression="zstd") as file:
        for batch in _batches(pairs):
            for score in opened:
                for (pair, _), scores in zip(batch, score(batch), strict=True):
                    for name, value in scores.items():
                        by_language = value if isinstance(value, Mapping) else {None: [value]}
                        rows += [
                            {
                                "key": pair.key,
                                "name": name,
                                "language": language,
                                "place": place if language else None,
                                "value": round(number, DECIMALS) if math.isfinite(number) else None,
                            }
                            for language, numbers in by_language.items()
                            for place, number in enumerate(numbers)
                        ]
            if len(rows) >= _ROWS_AT_A_TIME:
                file.write_table(pa.Table.from_pylist(rows, schema))
                rows.clear()
        file.write_table(pa.Table.from_pylist(rows, schema))


def _batches(pairs: Iterable[Pair]) -> Iterator[list[tuple[Pair, Image.Image]]]:
    """Batches of pairs with their decoded images; smaller ones if the images are large."""
    batch: list[tuple[Pair, Image.Image]] = []
    pixels = 0
    for pair in pairs:
        image = decode(pair.image)
        area = image.width * image.height
        if batch and (len(batch) == BATCH or pixels + area > MAX_PIXELS):
            yield batch
            batch, pixels = [], 0
        batch.append((pair, image))
        pixels += area
    if batch:
        yield batch
