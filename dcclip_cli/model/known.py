"""Texts that a model never learnt, and searches that nothing fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Known:
    """How a model's embeddings say what it knows; its dcclip.json has the three numbers as `known`.

    A text is unknown if more than `most` of its embedding is along `dimension`, in which no image has any part. A
    photograph whose cosine with a text is below `fits` most likely does not show it.
    """

    dimension: int
    most: float
    fits: float

    def within(self, dims: int | None) -> Known | None:
        """What embeddings that are cut to their first `dims` numbers say."""
        return self if dims is None or self.dimension < dims else None


def unknown_of(known: Known | None, texts: Sequence[str], embeddings: np.ndarray) -> list[str]:
    """The texts, each with an embedding (D,), that the model never learnt; none for a model that cannot say."""
    if known is None:
        return []
    along = embeddings[:, known.dimension].tolist()
    return [text for text, value in zip(texts, along, strict=True) if value > known.most]
