"""Scorers, models that give pairs or captions a number, and the scoring of a slice.

To add one, write its class and add it to the union at the foot.
"""

from __future__ import annotations

import functools
import math
import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.curation.dedup import GlobalFilter
from dcclip_cli.data.pair import LANGUAGES, Language, Pair
from dcclip_cli.model.precision import torch_device
from dcclip_cli.model.preprocess import decode
from dcclip_cli.model.reference import resolve
from dcclip_cli.model.teachers import Teacher

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from PIL import Image

    from dcclip_cli.inference.encoder import Encoder

Scores = Mapping[str, "float | Mapping[Language, list[float]]"]
"""The scores of one pair by their stored names: one number, or one for each caption of each language."""

Batch = Sequence["tuple[Pair, Image.Image]"]
Score = Callable[[Batch], "list[Scores]"]
Device = Literal["auto", "cpu", "cuda", "mps"]

DECIMALS = 5  # of a stored score: finer differences depend on the machine
MAX_PIXELS = (
    32_000_000  # of decoded images in memory, 4 bytes each; a larger one is scored by itself
)
BATCH = 32  # images, or texts, that a model gets at a time
_ROWS_AT_A_TIME = 50_000  # that are written
NO_DEVICE_HINT = "leave out the scorer's device, or set it to cpu"


class ScorerOptions(GlobalFilter):
    """Base class of scorers: their options, how they score, and what is dropped for their scores
    (`apply`).
    """

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
        """Raises DcclipError if the model is absent, as far as that is known without loading or
        downloading it.
        """

    @abstractmethod
    def open(self) -> Score:
        """A function from pairs and decoded images to scores; the model is loaded once per
        process, or DcclipError.
        """


# NaN scores are stored as NULL, and drop the pair.
_DROP_PAIRS = """
INSERT INTO pair_drops
    SELECT number, $reason, coalesce(format('{:.3f}', value), 'no score') || $label
    FROM live_pairs JOIN scores USING (number)
    WHERE scores.name = $name AND (value IS NULL OR value >= $threshold)
"""


def drop_pairs(connection: DuckDBPyConnection, stored: str, reason: str, threshold: float) -> None:
    """Drop pairs whose score named `stored` is at least the threshold."""
    label = f", rejected from {threshold:.3f}"
    values = {"name": stored, "reason": reason, "threshold": threshold, "label": label}
    connection.execute(_DROP_PAIRS, values)


def unique_names(scorers: tuple[ScorerOptions, ...]) -> tuple[ScorerOptions, ...]:
    """The scorers unchanged. Raises ValueError if two of them would store their scores under one
    name.
    """
    names = Counter(scorer.stored for scorer in scorers)
    if twice := sorted(name for name, count in names.items() if count > 1):
        raise ValueError(
            Message("two scorers have the name {}: give each a different name", twice[0])
        )
    return scorers


def score_slice(pairs: Iterable[Pair], scorers: Sequence[ScorerOptions], out: Path) -> None:
    """Write the scores of pairs to the Parquet file `out`, in the order of the pairs.

    Columns: `key`, `name` (of the score), `language` and `place` (of the scored caption; null for
    a score of the pair), `value` (null for NaN). Torch uses one thread: several slices are scored
    at a time, and sums are the same however many. Raises DcclipError if a model cannot be loaded.
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
            batch = []
            pixels = 0
        batch.append((pair, image))
        pixels += area
    if batch:
        yield batch


class CachingEncoder:
    """A dual encoder that keeps the embeddings of the last images, for a second scorer with the
    same model.
    """

    def __init__(self, model: Encoder) -> None:
        self.model = model
        self._batch: Batch = []
        self._embeddings = np.empty((0, 0), np.float32)

    def images(self, batch: Batch) -> np.ndarray:
        """(B, D) embeddings of length 1."""
        if batch is not self._batch:
            self._embeddings = self.model.encode_pixels(
                np.stack([self.model.preprocess(image) for _, image in batch])
            )
            self._batch = batch
        return self._embeddings

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) embeddings of length 1; N is at least 1."""
        from dcclip_cli.inference.zero_shot import class_embeddings

        return class_embeddings(self.model, [[text] for text in texts], BATCH)


@functools.lru_cache(maxsize=4)
def open_encoder(model: str | Teacher, device: str) -> CachingEncoder:
    """The encoder for a model reference or a teacher's options, loaded once in each process; a
    bundle without torch.
    """
    from dcclip_cli.inference.encoder import TorchEncoder, load_encoder

    if isinstance(model, str):
        return CachingEncoder(load_encoder(resolve(model), device, "auto"))
    device = torch_device(device, NO_DEVICE_HINT)
    towers = model.load(device)
    return CachingEncoder(TorchEncoder(towers, device, towers.precision))


class _DualEncoderScorer(ScorerOptions):
    model: str | Teacher = Field(
        description="Model reference as for --model, or the options of a teacher"
    )

    def check(self) -> None:
        if isinstance(self.model, str):
            resolve(self.model)
        elif Path(self.model.model).is_absolute() and not Path(self.model.model).is_dir():
            message = Message("teacher {} is not a directory", self.model.model)
            raise DcclipError(message, "check the path, or use the name of a hub model")


class Agreement(_DualEncoderScorer):
    """Drops captions that match their images worst, by the cosine of both embeddings of a dual
    encoder (CLIP score).

    Without `keep` and `threshold`, the cosines are stored and nothing is dropped. Each model has
    its own scale; see the histogram in report.html. If a language has both limits, a caption must
    pass both; captions with equal cosines are all kept or all dropped. `keep` counts the captions
    that passed the filters, before duplicates are removed.
    """

    kind: Literal["agreement"] = "agreement"
    keep: dict[Language, Annotated[float, Field(gt=0, le=1)] | None] = Field(
        {},
        description="Fraction of each language's captions to keep, those with the highest cosine "
        "similarity; "
        "null keeps all",
    )
    threshold: dict[Language, Annotated[float, Field(ge=-1, le=1)] | None] = Field(
        {},
        description="Minimum cosine similarity of image and caption for each language; null accepts any",
    )

    def open(self) -> Score:
        encoder = open_encoder(self.model, self.device)

        def score(batch: Batch) -> list[Scores]:
            pairs = [(row, pair) for row, (pair, _) in enumerate(batch)]
            captions = [
                (row, text)
                for row, pair in pairs
                for name in LANGUAGES
                for text in pair.captions(name)
            ]
            cosines: Iterator[float] = iter(())
            if captions:
                rows, texts = zip(*captions, strict=True)
                cosines = iter(
                    (encoder.images(batch)[list(rows)] * encoder.texts(texts)).sum(axis=1).tolist()
                )
            return [
                {
                    self.stored: {
                        name: [next(cosines) for _ in pair.captions(name)] for name in LANGUAGES
                    }
                }
                for pair, _ in batch
            ]

        return score

    def apply(self, connection: DuckDBPyConnection) -> None:
        for language in LANGUAGES:
            threshold = self.threshold.get(language)
            keep = self.keep.get(language)
            best = None
            # of all captions: the lowest score of the best is read before the threshold drops any
            if keep:
                values = {"name": self.stored, "language": language}
                [(count,)] = connection.execute(
                    f"SELECT count(value) FROM {_SCORED}", values
                ).fetchall()
                last = (
                    max(math.ceil(keep * count - 1e-9), 1) - 1
                )  # 0.8 * 5 is a little more than 4 in floating point
                ordered = f"SELECT value FROM {_SCORED} WHERE value IS NOT NULL ORDER BY value DESC"
                best = connection.execute(f"{ordered} LIMIT 1 OFFSET {last}", values).fetchone()
            limits = [] if threshold is None else [(threshold, f"below {threshold:.3f}")]
            if keep and best:
                limits.append((best[0], f"the best {100 * keep:.3g} % begin at {best[0]:.3f}"))
            for least, label in limits:
                parameters = {
                    "name": self.stored,
                    "reason": f"{self.stored}-low",
                    "language": language,
                }
                connection.execute(_DROP_BELOW, parameters | {"least": least, "label": label})


# A caption that was merged into another pair keeps the score with its own image.
_SCORED = """
    live_captions JOIN scores ON scores.name = $name AND scores.language = $language AND scores.number = origin
    AND scores.place = origin_place AND live_captions.language = $language
"""

# NaN scores are stored as NULL, and drop the caption.
_DROP_BELOW = f"""
INSERT INTO caption_drops
    SELECT live_captions.number, live_captions.language, live_captions.place, $reason,
        coalesce(format('{{:.3f}}, ', value), 'no score, ') || $label
    FROM {_SCORED} WHERE value IS NULL OR value < $least
"""


class Prompts(_DualEncoderScorer):
    """Drops images by zero-shot classification, if the texts in `reject` are too probable.

    The softmax is over the texts of both lists, so the result depends on `against` as well: use
    similarly worded texts in both lists, in each language that the model supports.
    """

    kind: Literal["prompts"] = "prompts"
    reject: tuple[str, ...] = Field(
        min_length=1, description="Descriptions of unwanted images, Chinese or English"
    )
    against: tuple[str, ...] = Field(
        ("a photo", "an illustration", "一张照片", "一幅插图"),
        min_length=1,
        description="Descriptions of wanted images",
    )
    threshold: float = Field(
        0.5, gt=0, le=1, description="Probability of `reject` at which a pair is dropped"
    )

    def open(self) -> Score:
        from dcclip_cli.inference.zero_shot import softmax

        encoder = open_encoder(self.model, self.device)
        classes = encoder.texts([*self.reject, *self.against])

        def score(batch: Batch) -> list[Scores]:
            probabilities = softmax(encoder.images(batch), classes, encoder.model.logit_scale)
            return [
                {self.stored: value}
                for value in probabilities[:, : len(self.reject)].sum(axis=1).tolist()
            ]

        return score

    def apply(self, connection: DuckDBPyConnection) -> None:
        drop_pairs(connection, self.stored, f"{self.stored}-reject", self.threshold)


Scorer = Annotated[Agreement | Prompts, Field(discriminator="kind")]
Scorers = Annotated[tuple[Scorer, ...], AfterValidator(unique_names)]
"""The scorers of a recipe, each with scores of its own name."""
