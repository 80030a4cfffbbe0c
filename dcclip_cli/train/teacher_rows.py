"""Rows of the teacher cache: their keys, reading those of a batch, and which ones a part of training needs."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from dcclip_cli.blocks import Ragged
from dcclip_cli.data.collator import Batch, Collator
from dcclip_cli.data.pair import PairDataset
from dcclip_cli.data.samplers import Sample
from dcclip_cli.data.stored_features import StoredFeatures, StoredTexts
from dcclip_cli.store import FeatureStore, MissingRows, digests

IMAGE, TEXT, TOKENS = "image_embedding", "text_embedding", "text_tokens"


def image_keys(dataset: PairDataset, samples: Iterable[Sample]) -> np.ndarray:
    """The keys of augmented images, (sample, augmentation) each.

    They depend on the sample's number as well, because the augmentation's random numbers do.
    """
    return digests(
        "image", (dataset.image_digest(index) + struct.pack("<QQ", index, which) for index, which in samples)
    )


def text_keys(texts: Iterable[str]) -> np.ndarray:
    return digests("text", (text.encode() for text in texts))


@dataclass(frozen=True)
class NeededRows:
    """The rows of the cache that some steps need: augmented images in the order of the data, captions by length.

    `images_in_steps` and `captions_in_steps` are what a teacher that ran in each step would get.
    """

    samples: list[Sample]
    image_keys: np.ndarray
    captions: list[str]
    text_keys: np.ndarray
    images_in_steps: int = 0
    captions_in_steps: int = 0


def needed_rows(collator: Collator, batches: Iterable[Sequence[Sample]]) -> NeededRows:
    """The rows for these batches, each once: the same ones in the same order however many processes share them."""
    samples, captions, images_in_steps, captions_in_steps = set[Sample](), set[str](), 0, 0
    for batch in batches:
        own = {(i, epoch % collator.num_augmentations) for i, epoch in batch if i < collator.dataset.num_images}
        chosen = collator.chosen_captions(batch)
        samples |= own
        captions |= chosen
        images_in_steps += len(own)
        captions_in_steps += len(chosen)
    found = _rows(collator.dataset, samples, captions)
    return replace(found, images_in_steps=images_in_steps, captions_in_steps=captions_in_steps)


def rows_of(batch: Batch, dataset: PairDataset) -> NeededRows:
    """The rows of one batch."""
    samples = set(zip(batch.sample_index.tolist(), batch.augmentation_index.tolist(), strict=True))
    return _rows(dataset, samples, set(chain.from_iterable(texts.captions for texts in batch.texts.values())))


def _rows(dataset: PairDataset, samples: set[Sample], captions: set[str]) -> NeededRows:
    images, texts = sorted(samples), sorted(captions, key=lambda text: (len(text), text))
    return NeededRows(images, image_keys(dataset, images), texts, text_keys(texts))


@dataclass(frozen=True)
class FeatureReader:
    """Reads what a teacher's stores have of a batch, in the loader's workers.

    `image_arrays` and `text_arrays` are the names of the arrays that losses need.
    """

    dataset: PairDataset
    images: FeatureStore
    texts: FeatureStore
    image_arrays: tuple[str, ...]
    text_arrays: tuple[str, ...]

    def __call__(self, batch: Batch) -> StoredFeatures | None:
        """The features of a batch; None if a row is missing, or damaged, also after a look for new blocks."""
        for _ in range(2):
            try:
                return self.read(batch)
            except MissingRows:
                self.images.refresh()
                self.texts.refresh()
        return None

    def read(self, batch: Batch) -> StoredFeatures:
        """The features of a batch. Raises MissingRows."""
        samples = zip(batch.sample_index.tolist(), batch.augmentation_index.tolist(), strict=True)
        images = _read(self.images, self.image_arrays, image_keys(self.dataset, samples))
        texts = {}
        for name, given in batch.texts.items():
            found = _read(self.texts, self.text_arrays, text_keys(given.captions))
            texts[name] = StoredTexts(found[TEXT][0], *found.get(TOKENS, ()))
        return StoredFeatures({name: parts[0] for name, parts in images.items()}, texts)


def _read(store: FeatureStore, names: Sequence[str], keys: np.ndarray) -> dict[str, tuple[Tensor, ...]]:
    """Arrays of some rows as tensors; of ragged ones also which entries each row has (0: padding), and how many."""
    found: dict[str, tuple[Tensor, ...]] = {}
    for name, values in store.read_arrays(names, keys).items() if len(keys) else ():
        if not isinstance(values, Ragged):
            found[name] = (torch.from_numpy(values),)
            continue
        lengths = torch.from_numpy(values.lengths)
        firsts, columns = lengths.cumsum(0) - lengths, torch.arange(int(values.lengths.max(initial=0)))
        rows = (firsts[:, None] + columns) * (columns < lengths[:, None])
        found[name] = torch.from_numpy(values.values), rows, lengths
    return found
