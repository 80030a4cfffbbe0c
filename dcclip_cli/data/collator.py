"""Collator: turns samples into a batch of tensors, with images augmented and captions chosen and
tokenised.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from dcclip_cli.data.batch import OTHER, Batch, StoredFeatures, Texts, part_rows
from dcclip_cli.data.options import Augment, CaptionOptions
from dcclip_cli.data.pair import Language, PairDataset
from dcclip_cli.data.pixels import ImageCache, Preprocess, draft_side, stacked
from dcclip_cli.data.samplers import Sample

if TYPE_CHECKING:
    from dcclip_cli.model.towers import Tokens

Choice = tuple[str, tuple[str, ...]]  # a caption, and all that an epoch may choose in its place


def generator(seed: int, index: int, augmentation: int) -> np.random.Generator:
    """The random numbers of one augmentation of one sample: the same in every process and every
    run.
    """
    return np.random.Generator(
        np.random.Philox(key=np.array([seed, (augmentation << 40) | index], np.uint64))
    )


@dataclass(frozen=True)
class Collator:
    """Makes a Batch of (index, epoch) samples, in the loader's worker processes.

    `preprocess` makes the student's pixels, and each of `teacher_preprocess` a teacher's, from the
    same augmented image: uint8, or float32 where a library's own preprocessing makes them; equal
    ones make one tensor. Each of `read_features` reads what a teacher's cache has of a batch. A
    sample has `num_augmentations` different augmentations, 0: a new one each epoch.
    `with_caption_ids` fills Texts.caption_ids and Texts.image_caption_ids. An image without
    captions that cannot be decoded is white, so that a damaged photograph ends no run;
    Batch.unreadable names it.
    """

    dataset: PairDataset
    seed: int
    augment: Augment
    captions: CaptionOptions
    preprocess: Preprocess
    tokenize: Callable[[list[str]], Tokens]
    teacher_preprocess: tuple[Preprocess, ...] = ()
    num_augmentations: int = 0
    with_caption_ids: bool = False
    image_cache: ImageCache = field(default_factory=ImageCache, compare=False, repr=False)
    read_features: tuple[Callable[[Batch], StoredFeatures], ...] = ()

    def batch(self, samples: Sequence[Sample], process: int = 0, processes: int = 1) -> Batch:
        """The batch of a step's samples, or the part of one of `processes`. Raises DcclipError for
        a bad image.
        """
        rows = self._rows(samples, process, processes)
        unreadable = self.image_cache.unreadable
        samples_with_image = rows["captioned"] + rows["images"]
        count = self.num_augmentations
        indices = [index for index, _ in samples_with_image]
        augmentations = [epoch % count if count else epoch for _, epoch in samples_with_image]
        if self.dataset.embeddings is not None:
            inputs = [torch.from_numpy(self.dataset.embeddings[indices])]
        else:  # pixels of every preprocessing, from the cache as far as these, or the images, are used again
            preprocess = list(dict.fromkeys((self.preprocess, *self.teacher_preprocess)))
            side = draft_side(self.augment, preprocess)
            cache = self.image_cache
            images = self.dataset.num_images
            pixels: list[tuple[np.ndarray, ...]] = [()] * len(indices)
            for row in np.argsort(indices).tolist():  # in the order of the files
                index = indices[row]
                augmentation = augmentations[row]
                if count:
                    make = partial(self.pixels, index, augmentation, *preprocess)
                    pixels[row] = cache.get((index, augmentation), make, images * count)
                else:
                    image = cache.get(
                        index, partial(self.dataset.decoded, index, side, unreadable), images
                    )
                    pixels[row] = self._augmented(image, index, augmentation, preprocess)
            tensors = [
                stacked([arrays[number] for arrays in pixels]) for number in range(len(preprocess))
            ]
            inputs = [
                tensors[preprocess.index(function)]
                for function in (self.preprocess, *self.teacher_preprocess)
            ]
        sample_index, augmentation_index = (
            torch.tensor(ids, dtype=torch.int64) for ids in (indices, augmentations)
        )
        texts = {}
        for name, (captioned, chosen) in self._chosen(rows).items():
            numbers = torch.tensor([row.number for row in captioned])
            ids = None
            image_ids = None
            if self.with_caption_ids and self.dataset.embeddings is not None:
                # Two pairs with equal embeddings are no negatives of each other.
                ids = _hashes(self.dataset.embeddings[row.sample[0]].tobytes() for row in captioned)
                image_ids = ids[:, None]
            elif self.with_caption_ids:
                width = max(len(row.captions) for row in captioned)
                # Padded with the first caption of each image, which changes nothing.
                padded = (
                    row.captions + row.captions[:1] * (width - len(row.captions))
                    for row in captioned
                )
                ids = _hashes(map(str.encode, chosen))
                image_ids = _hashes(map(str.encode, chain.from_iterable(padded))).reshape(-1, width)
            texts[name] = Texts(numbers, chosen, self.tokenize(chosen).sorted(), ids, image_ids)
        batch = Batch(
            sample_index,
            augmentation_index,
            inputs[0],
            tuple(inputs[1:]),
            texts,
            len(rows["texts"]),
        )
        features = tuple(read_stored(batch) for read_stored in self.read_features)
        num_captioned = len(rows["captioned"])
        problems = tuple(unreadable[index] for index in indices if index in unreadable)
        return replace(
            batch, teacher_features=features, num_captioned=num_captioned, unreadable=problems
        )

    def pixels(
        self, index: int, augmentation: int, *preprocess: Preprocess
    ) -> tuple[np.ndarray, ...]:
        """The pixels (3, H, W) of one sample's augmented image, by each of `preprocess`.

        Raises DcclipError where the image cannot be read.
        """
        image = self.dataset.decoded(
            index, draft_side(self.augment, preprocess), self.image_cache.unreadable
        )
        return self._augmented(image, index, augmentation, preprocess)

    def _augmented(
        self, image: Image.Image, index: int, augmentation: int, preprocess: Sequence[Preprocess]
    ) -> tuple[np.ndarray, ...]:
        image = self.augment(image, generator(self.seed, index, augmentation))
        return tuple(transform(image) for transform in preprocess)

    def chosen_captions(
        self, samples: Sequence[Sample], pending: Container[Sample]
    ) -> dict[Sample, list[Choice]]:
        """The captions of `pending` samples that a step's batch has, over all processes; with what
        others may have.
        """
        rows = {
            kind: [row for row in of_kind if row in pending]
            for kind, of_kind in self._rows(samples).items()
        }
        choices = {sample: list[Choice]() for sample in rows["captioned"] + rows["texts"]}
        limit = 1 if self.captions.first == 1 and not self.captions.second_caption else None
        for captioned, chosen in self._chosen(rows).values():
            for row, caption in zip(captioned, chosen, strict=True):
                choices[row.sample].append((caption, row.captions[:limit]))
        return choices

    def _rows(
        self, samples: Sequence[Sample], process: int = 0, processes: int = 1
    ) -> dict[str, list[Sample]]:
        """The samples of a process by kind: images with captions, other images, texts without
        images.
        """
        ends = self.dataset.num_pairs, self.dataset.num_images
        ordered = sorted(samples, key=lambda sample: bisect_right(ends, sample[0]))
        pairs, images = (sum(index < end for index, _ in samples) for end in ends)
        # The order is shuffled already, so the first are as good as any.
        captioned = max(1, round(self.captions.caption_fraction * pairs)) if pairs else 0
        rows = part_rows(captioned, images, len(samples) - images, process, processes)
        return {kind: ordered[rows_of_kind] for kind, rows_of_kind in rows.items()}

    def _chosen(
        self, rows: dict[str, list[Sample]]
    ) -> dict[str, tuple[list[_Captioned], list[str]]]:
        """For each entry of a batch's texts the rows that have captions in its language, and one
        caption of each.
        """
        options = self.captions
        # probability of the first caption
        first = 1.0 if options.second_caption else options.first
        choices: dict[str, tuple[Language, float]] = {
            language: (language, first) for language in options.languages
        }
        if options.second_caption:
            choices |= {language + OTHER: (language, 0.0) for language in options.languages}
        images = len(rows["captioned"]) + len(rows["images"])
        numbered = [*enumerate(rows["captioned"]), *enumerate(rows["texts"], images)]
        captioned = dict[Language, list[_Captioned]]()
        for language in options.languages:
            captions = self.dataset.captions(language)
            rows_with_captions = (
                (number, sample, captions[sample[0]]) for number, sample in numbered
            )
            captioned[language] = [_Captioned(*row) for row in rows_with_captions if row[2]]

        def choose(row: _Captioned, first: float) -> str:
            if len(row.captions) == 1 or first == 1:
                return row.captions[0]
            random = generator(self.seed ^ 0x7E97, *row.sample)
            return row.captions[
                0 if random.random() < first else 1 + int(random.integers(len(row.captions) - 1))
            ]

        return {
            name: (captioned[language], [choose(row, first) for row in captioned[language]])
            for name, (language, first) in choices.items()
            if captioned[language]
        }


@dataclass(frozen=True)
class _Captioned:
    """A row of a batch, its sample, and the captions that it has in a language."""

    number: int
    sample: Sample
    captions: tuple[str, ...]


def _hashes(contents: Iterable[bytes]) -> torch.Tensor:
    """64-bit hashes, the same in every process."""
    digests = b"".join(hashlib.blake2b(content, digest_size=8).digest() for content in contents)
    return torch.from_numpy(np.frombuffer(digests, "<i8").astype(np.int64))
