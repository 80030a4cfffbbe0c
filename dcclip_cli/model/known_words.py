"""Words that a model never learnt, and searches that nothing fits."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Self

import numpy as np

from dcclip_cli.core.text import HAN

_UNITS = re.compile(rf"[{HAN}]|[^\W{HAN}]+")  # a Chinese character, or a word of other letters
_MAX_UNITS = 16  # of a word: 彭布罗克威尔士柯基犬 has ten


@dataclass(frozen=True)
class KnownWords:
    """How a model's embeddings say what it knows; its dcclip.json has the three numbers as
    `known`.

    A text is unknown if more than `most` of its embedding is along `dimension`, in which no image
    has any part. A photograph whose cosine with a text is below `fits` most likely does not show
    it.
    """

    dimension: int
    most: float
    fits: float

    def within(self, dims: int | None) -> Self | None:
        """What embeddings that are cut to their first `dims` numbers say."""
        return self if dims is None or self.dimension < dims else None


def words_of(text: str, tokenize: Callable[[Sequence[str]], np.ndarray]) -> list[str]:
    """The words of a text in order: the longest parts that are one token, else Chinese characters
    and English words.
    """
    max_units = _MAX_UNITS * tokenize([text]).shape[1]  # the model ignores the rest of a long text
    units = [match.span() for match in islice(_UNITS.finditer(text), max_units)]
    parts = [
        (first, last)
        for first in range(len(units))
        for last in range(first + 1, min(first + _MAX_UNITS, len(units)))
    ]
    ids = tokenize(["", *(text[units[first][0] : units[last][1]] for first, last in parts)])
    token_counts = (ids != ids[0, -1]).sum(axis=1)  # the empty text ends in padding
    is_token = token_counts[1:] == token_counts[0] + 1
    ends = {
        first: last for (first, last), single in zip(parts, is_token, strict=True) if single
    }  # the longest last
    words = []
    first = 0
    while first < len(units):
        last = ends.get(first, first)
        words.append(text[units[first][0] : units[last][1]])
        first = last + 1
    return words
