"""Scorers that are dual encoders: agreement of caption and image, and zero-shot classification by prompts."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from dcclip_cli.curation.scores.base import Score, ScorerOptions, Scores, drop_pairs
from dcclip_cli.data.pair import LANGUAGES, Language, Pair
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.precision import torch_device
from dcclip_cli.model.reference import resolve
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.options import Options

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from PIL import Image

    from dcclip_cli.predict.encoder import Encoder

NO_DEVICE_HINT = "leave out the scorer's device, or set it to cpu"


class CachingEncoder:
    """A dual encoder that keeps the embeddings of the last images, for a second scorer with the same model."""

    def __init__(self, model: Encoder) -> None:
        self.model = model
        self._images: list[Image.Image] = []
        self._embeddings = np.empty((0, 0), np.float32)

    def images(self, images: Sequence[Image.Image], batch_size: int) -> np.ndarray:
        """(B, D) embeddings of length 1."""
        same = len(images) == len(self._images) and all(map(operator.is_, images, self._images))
        if not same:
            batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
            pixels = (np.stack([self.model.preprocess(image) for image in batch]) for batch in batches)
            self._embeddings = np.concatenate([self.model.encode_pixels(batch) for batch in pixels])
            self._images = list(images)
        return self._embeddings

    def texts(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        """(N, D) embeddings of length 1; N is at least 1."""
        from dcclip_cli.predict.zero_shot import class_embeddings

        return class_embeddings(self.model, [[text] for text in texts], batch_size)


def check_model(model: str | Teacher) -> None:
    """Raises DcclipError if `model` names a directory that does not exist or contains no model."""
    if isinstance(model, str):
        resolve(model)
    elif Path(model.model).is_absolute() and not Path(model.model).is_dir():
        raise DcclipError(
            f"teacher {model.model} is not a directory", "check the path, or give the name of a hub model"
        )


@functools.lru_cache(maxsize=4)
def open_encoder(model: str | Teacher, device: str) -> CachingEncoder:
    """The encoder for a model reference (see `model.reference`) or a teacher's options, loaded once in each process.

    An export bundle runs without torch. Raises DcclipError if the model cannot be loaded.
    """
    from dcclip_cli.predict.encoder import TorchEncoder, load_encoder

    if isinstance(model, str):
        return CachingEncoder(load_encoder(resolve(model), device, "auto"))
    device = torch_device(device, NO_DEVICE_HINT)
    towers = model.load(device)
    return CachingEncoder(TorchEncoder(towers, device, towers.precision))


class Fractions(Options):
    """Fraction of each language's captions to keep: 0.8 keeps the best 80 %. Equal scores share one fate."""

    zh: float | None = Field(None, gt=0, le=1, description="Fraction of Chinese captions to keep; null keeps all")
    en: float | None = Field(None, gt=0, le=1, description="Fraction of English captions to keep; null keeps all")


class Cosines(Options):
    """Minimum cosine of each language's captions. Each model has its own scale: see the histogram in report.html."""

    zh: float | None = Field(None, ge=-1, le=1, description="Minimum cosine of Chinese captions; null accepts any")
    en: float | None = Field(None, ge=-1, le=1, description="Minimum cosine of English captions; null accepts any")


class Agreement(ScorerOptions):
    """Drops captions that fit their images worst, by the cosine of the two embeddings of a dual encoder (CLIP score).

    Without `keep` and `threshold` the cosines are stored and nothing is dropped. If a language has both, a caption
    must pass both. `keep` counts the captions that passed the filters, before duplicates are removed.
    """

    kind: Literal["agreement"] = "agreement"
    model: str | Teacher = Field(description="Model reference as for --model, or the options of a teacher")
    keep: Fractions = Field(
        Fractions(), description="Fraction of each language's captions to keep, those with the highest cosines"
    )
    threshold: Cosines = Field(Cosines(), description="Captions with a lower cosine are dropped")

    def check(self) -> None:
        check_model(self.model)

    def open(self) -> Score:
        encoder = open_encoder(self.model, self.device)
        return lambda batch: [{self.stored: cosines} for cosines in _cosines(encoder, batch, self.batch_size)]

    def apply(self, connection: DuckDBPyConnection) -> None:
        """Reason: `agreement-low`."""
        for language in LANGUAGES:
            threshold, keep = getattr(self.threshold, language), getattr(self.keep, language)
            # The fraction is of all captions, so it is measured before the threshold drops any.
            best = _lowest_of_the_best(connection, self.stored, language, keep) if keep else None
            if threshold is not None:
                self._drop_below(connection, language, threshold, f"below {threshold:.3f}")
            if best is not None:
                label = f"the best {100 * keep:.3g} % begin at {best:.3f}"
                self._drop_below(connection, language, best, label)

    def _drop_below(self, connection: DuckDBPyConnection, language: Language, least: float, label: str) -> None:
        values = {"name": self.stored, "language": language, "least": least, "label": label}
        connection.execute(_DROP_BELOW, values | {"reason": f"{self.stored}-low"})


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


def _lowest_of_the_best(connection: DuckDBPyConnection, name: str, language: Language, fraction: float) -> float | None:
    """The lowest score among the best `fraction` of captions; None if no caption has a score."""
    values: dict[str, Any] = {"name": name, "language": language}
    counted = connection.execute(f"SELECT count(value) FROM {_SCORED}", values).fetchone()
    count = counted[0] if counted else 0
    if not count:
        return None
    last = max(math.ceil(fraction * count - 1e-9), 1) - 1  # 0.8 * 5 is a little more than 4 in floating point
    ordered = f"SELECT value FROM {_SCORED} WHERE value IS NOT NULL ORDER BY value DESC LIMIT 1 OFFSET {last}"
    found = connection.execute(ordered, values).fetchone()
    return float(found[0]) if found else None


def _cosines(
    encoder: CachingEncoder, batch: Sequence[tuple[Pair, Image.Image]], batch_size: int
) -> list[dict[Language, list[float]]]:
    captions = [pair.captions(language) for pair, _ in batch for language in LANGUAGES]
    texts = [text for several in captions for text in several]
    if not texts:
        return [{language: [] for language in LANGUAGES} for _ in batch]
    images = encoder.images([image for _, image in batch], batch_size)
    owners = [at for at, (pair, _) in enumerate(batch) for language in LANGUAGES for _ in pair.captions(language)]
    cosines = iter((images[owners] * encoder.texts(texts, batch_size)).sum(axis=1).tolist())
    return [{language: [next(cosines) for _ in pair.captions(language)] for language in LANGUAGES} for pair, _ in batch]


class Prompts(ScorerOptions):
    """Drops images by zero-shot classification: the probability that one of the texts `reject` fits best.

    The softmax is over the texts of both lists, so the result depends on `against` as well: use similar texts in both
    lists, in each language that the model knows.
    """

    kind: Literal["prompts"] = "prompts"
    model: str | Teacher = Field(description="Model reference as for --model, or the options of a teacher")
    reject: tuple[str, ...] = Field(
        min_length=1, description="Texts that describe unwanted images, in Chinese or English"
    )
    against: tuple[str, ...] = Field(
        ("a photo", "an illustration", "一张照片", "一幅插图"),
        min_length=1,
        description="Texts that describe wanted images",
    )
    threshold: float = Field(0.5, gt=0, le=1, description="Probability of `reject` at which a pair is dropped")

    def check(self) -> None:
        check_model(self.model)

    def open(self) -> Score:
        from dcclip_cli.predict.zero_shot import softmax

        encoder = open_encoder(self.model, self.device)
        classes = encoder.texts([*self.reject, *self.against], self.batch_size)
        rejected = len(self.reject)

        def score(batch: Sequence[tuple[Pair, Image.Image]]) -> list[Scores]:
            images = encoder.images([image for _, image in batch], self.batch_size)
            sums = softmax(images, classes, encoder.model.logit_scale)[:, :rejected].sum(axis=1)
            return [{self.stored: value} for value in sums.tolist()]

        return score

    def apply(self, connection: DuckDBPyConnection) -> None:
        """Reason: `prompts-reject`."""
        drop_pairs(connection, self.stored, f"{self.stored}-reject", self.threshold)
