"""A teacher's features of a batch as the teacher cache stores them: fp16, token features without padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class StoredTexts:
    """Features of n texts: `embedding` (n, D), and the `tokens` (T, W) of all, one text after the other.

    `rows` (n, L) are the tokens of each text, 0 in padding, and `lengths` (n,) their number. All three are None where
    no loss needs tokens.
    """

    embedding: Tensor
    tokens: Tensor | None = None
    rows: Tensor | None = None
    lengths: Tensor | None = None

    def take(self, texts: Tensor) -> StoredTexts:
        """The features of some of the texts."""
        if self.rows is None or self.lengths is None:
            return StoredTexts(self.embedding[texts])
        return StoredTexts(self.embedding[texts], self.tokens, self.rows[texts], self.lengths[texts])

    def map(self, change: Callable[[Tensor], Tensor]) -> StoredTexts:
        own = (self.embedding, self.tokens, self.rows, self.lengths)
        return StoredTexts(*(None if one is None else change(one) for one in own))  # type: ignore[arg-type]


@dataclass(frozen=True)
class StoredFeatures:
    """Features of a batch: those of its images, (B, ...) by name of the array, and those of its texts by language."""

    images: dict[str, Tensor]
    texts: dict[str, StoredTexts]

    def take(self, images: slice, texts: Mapping[str, Tensor]) -> StoredFeatures:
        """The features of a part of the batch."""
        taken = {name: self.texts[name].take(rows) for name, rows in texts.items()}
        return StoredFeatures({name: values[images] for name, values in self.images.items()}, taken)

    def map(self, change: Callable[[Tensor], Tensor]) -> StoredFeatures:
        """The same with every tensor changed: moved to a device, pinned."""
        texts = {name: one.map(change) for name, one in self.texts.items()}
        return StoredFeatures({name: change(values) for name, values in self.images.items()}, texts)
