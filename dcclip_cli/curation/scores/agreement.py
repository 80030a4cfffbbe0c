"""How well does each caption fit its picture, by a dual encoder's own measure?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dcclip_cli.curation.scores.base import Device, Score, ScorerOptions
from dcclip_cli.curation.scores.encoder import CachingEncoder, check_model, open_encoder
from dcclip_cli.data.pair import LANGUAGES, Language
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.options import Options

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from PIL import Image

    from dcclip_cli.data.pair import Pair


class Fractions(Options):
    """How much of each language's captions stays: 0.8 are the best 80 %. Equal scores share one fate."""

    zh: float | None = Field(None, gt=0, le=1, description="Of the Chinese captions; none: all")
    en: float | None = Field(None, gt=0, le=1, description="Of the English captions; none: all")


class Cosines(Options):
    """The lowest cosine that a caption may have. Each model has a scale of its own: see the report's histogram."""

    zh: float | None = Field(None, ge=-1, le=1, description="For Chinese captions; none: any")
    en: float | None = Field(None, ge=-1, le=1, description="For English captions; none: any")


class Agreement(ScorerOptions):
    """Drops the captions that fit their pictures worst, by the cosine between the two embeddings of a dual encoder.

    Without `keep` and `threshold` the cosines are stored and nothing is dropped. A language may have both: a caption
    has to pass both. What `keep` keeps is a part of what has passed the filters, duplicates still among it.
    """

    kind: Literal["agreement"] = "agreement"
    model: str | Teacher = Field(description="A reference as for --model, or the options of a teacher")
    keep: Fractions = Field(Fractions(), description="The best part of each language's captions stays")
    threshold: Cosines = Field(Cosines(), description="Captions with a cosine below it go")

    def check(self) -> None:
        check_model(self.model)

    def open(self, device: Device | None = None) -> Score:
        encoder = open_encoder(self.model, device or self.device)
        return lambda batch: [{self.stored: cosines} for cosines in _cosines(encoder, batch, self.batch_size)]

    def apply(self, connection: DuckDBPyConnection) -> None:
        """`agreement-low`."""
        for language in LANGUAGES:
            threshold, keep = getattr(self.threshold, language), getattr(self.keep, language)
            # The fraction is of all captions, so it is measured before the threshold takes any.
            best = _lowest_of_the_best(connection, self.stored, language, keep) if keep else None
            if threshold is not None:
                self._drop_below(connection, language, threshold, f"below {threshold:.3f}")
            if best is not None:
                said = f"the best {100 * keep:.3g} % begin at {best:.3f}"
                self._drop_below(connection, language, best, said)

    def _drop_below(self, connection: DuckDBPyConnection, language: Language, least: float, said: str) -> None:
        values = {"name": self.stored, "language": language, "least": least, "said": said}
        connection.execute(_DROP_BELOW, values | {"reason": f"{self.stored}-low"})


# A caption that may have been merged into another pair meanwhile keeps the score that it got with its own picture.
_SCORED = """
    live_captions JOIN scores ON scores.name = $name AND scores.language = $language AND scores.number = origin
    AND scores.place = origin_place AND live_captions.language = $language
"""

# A model that has gone astray gives no number: NULL.
_DROP_BELOW = f"""
INSERT INTO caption_drops
    SELECT live_captions.number, live_captions.language, live_captions.place, $reason,
        coalesce(format('{{:.3f}}, ', value), 'no score, ') || $said
    FROM {_SCORED} WHERE value IS NULL OR value < $least
"""


def _lowest_of_the_best(connection: DuckDBPyConnection, name: str, language: Language, fraction: float) -> float | None:
    """The score of the last caption that stays when the best `fraction` stays; None where none has a score."""
    values: dict[str, Any] = {"name": name, "language": language}
    counted = connection.execute(f"SELECT count(value) FROM {_SCORED}", values).fetchone()
    count = counted[0] if counted else 0
    if not count:
        return None
    last = max(math.ceil(fraction * count - 1e-9), 1) - 1  # 0.8 * 5 is a little more than 4 in floating point
    ordered = f"SELECT value FROM {_SCORED} WHERE value IS NOT NULL ORDER BY value DESC LIMIT 1 OFFSET {last}"
    found = connection.execute(ordered, values).fetchone()
    return float(found[0]) if found else None


_OfPair = dict[Language, list[float]]


def _cosines(encoder: CachingEncoder, batch: Sequence[tuple[Pair, Image.Image]], batch_size: int) -> list[_OfPair]:
    captions = [pair.captions(language) for pair, _ in batch for language in LANGUAGES]
    texts = [text for several in captions for text in several]
    if not texts:
        return [{language: [] for language in LANGUAGES} for _ in batch]
    images = encoder.images([picture for _, picture in batch], batch_size)
    owners = [at for at, (pair, _) in enumerate(batch) for language in LANGUAGES for _ in pair.captions(language)]
    cosines = iter((images[owners] * encoder.texts(texts, batch_size)).sum(axis=1).tolist())
    return [{language: [next(cosines) for _ in pair.captions(language)] for language in LANGUAGES} for pair, _ in batch]
