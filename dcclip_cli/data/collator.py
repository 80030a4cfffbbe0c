"""Collator: turns samples into a batch of tensors, with images augmented and captions chosen and tokenised."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from dcclip_cli.data.options import Augment, CaptionOptions
from dcclip_cli.data.pair import Language, PairDataset
from dcclip_cli.data.pixels import ImageCache, Preprocess, draft_side, stacked
from dcclip_cli.data.samplers import Sample
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.model.preprocess import decode, flatten

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from dcclip_cli.model.towers import Tokens

OTHER = "-other"  # `zh-other`: the second captions of the images whose first captions are `zh`


def generator(seed: int, index: int, augmentation: int) -> np.random.Generator:
    """The random numbers of one augmentation of one sample: the same in every process and every run."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, (augmentation << 40) | index], np.uint64)))


# ---- what a teacher's cache has of a batch: fp16, token features without padding


@dataclass(frozen=True)
class StoredTexts:
    """Features of n texts: `embedding` (n, D), and the `tokens` (T, W) of all, one text after the other.

    `rows` (n, L) are the tokens of each text, 0 in padding, and `lengths` (n,) their number. All three are None where
    no loss needs tokens.
    """

    embedding: torch.Tensor
    tokens: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    lengths: torch.Tensor | None = None

    def take(self, texts: torch.Tensor) -> StoredTexts:
        """The features of some of the texts."""
        if self.rows is None or self.lengths is None:
            return StoredTexts(self.embedding[texts])
        return StoredTexts(self.embedding[texts], self.tokens, self.rows[texts], self.lengths[texts])

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> StoredTexts:
        own = (self.embedding, self.tokens, self.rows, self.lengths)
        return StoredTexts(*(None if one is None else change(one) for one in own))  # type: ignore[arg-type]


@dataclass(frozen=True)
class StoredFeatures:
    """Features of a batch: those of its images, (B, ...) by name of the array, and those of its texts by language."""

    images: dict[str, torch.Tensor]
    texts: dict[str, StoredTexts]

    def take(self, images: slice, texts: Mapping[str, torch.Tensor]) -> StoredFeatures:
        """The features of a part of the batch."""
        taken = {name: self.texts[name].take(rows) for name, rows in texts.items()}
        return StoredFeatures({name: values[images] for name, values in self.images.items()}, taken)

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> StoredFeatures:
        """The same with every tensor changed: moved to a device, pinned."""
        texts = {name: one.map(change) for name, one in self.texts.items()}
        return StoredFeatures({name: change(values) for name, values in self.images.items()}, texts)


# ---- batches


@dataclass(frozen=True)
class Texts:
    """n captions of one language, tokenised.

    `image_index` (n,) is the image of the batch that a caption belongs to; captions without an image have numbers from
    B on. `caption_ids` (n,) and `image_caption_ids` (n, k) are hashes of the caption and of all captions of its image:
    by these the processes of a step find out which captions an image shares with another pair.
    """

    image_index: torch.Tensor
    captions: list[str]
    tokens: Tokens
    caption_ids: torch.Tensor | None = None
    image_caption_ids: torch.Tensor | None = None

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Texts:
        """The same with every tensor changed: moved to a device, pinned."""
        ids = (None if one is None else change(one) for one in (self.caption_ids, self.image_caption_ids))
        return Texts(change(self.image_index), self.captions, self.tokens.map(change), *ids)

    def take(self, rows: torch.Tensor, image_index: torch.Tensor) -> Texts:
        """The texts at `rows`, which belong to the images `image_index` of another batch."""
        from dcclip_cli.model.towers import Tokens

        taken, captions = self.map(lambda tensor: tensor[rows]), [self.captions[row] for row in rows.tolist()]
        tokens = Tokens(taken.tokens.ids, taken.tokens.mask).sorted()
        return replace(taken, image_index=image_index, captions=captions, tokens=tokens)


@dataclass(frozen=True)
class Batch:
    """One step's input: B images and their texts by language.

    `sample_index` (B,) and `augmentation_index` (B,) identify the sample and which of its augmentations this is.
    `pixels` are (B, 3, H, W), or embeddings (B, D) where the pairs have these in place of images; `teacher_pixels` has
    the pixels for each teacher that processes images in this step, `teacher_features` what each teacher's cache has of
    the batch, None where a row is missing. `texts` has an entry for each language, and with second captions also
    `zh-other` and `en-other`; `num_unpaired_texts` of them have no image. `texts_on_cpu` are the texts of a batch that
    was moved to a device: by these it is split without waiting for the device.
    """

    sample_index: torch.Tensor
    augmentation_index: torch.Tensor
    pixels: torch.Tensor
    teacher_pixels: tuple[torch.Tensor, ...]
    texts: dict[str, Texts]
    num_unpaired_texts: int = 0
    teacher_features: tuple[StoredFeatures, ...] = ()
    texts_on_cpu: dict[str, Texts] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device, without waiting for the copy; sample and augmentation indices stay on the CPU."""
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, texts_on_cpu=self.texts)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from which it is copied to a GPU while that computes."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return replace(
            self,
            pixels=change(self.pixels),
            teacher_pixels=tuple(map(change, self.teacher_pixels)),
            texts={language: texts.map(change) for language, texts in self.texts.items()},
            teacher_features=tuple(one.map(change) for one in self.teacher_features),
        )

    def rows_of_parts(self, name: str, parts: int) -> list[torch.Tensor]:
        """For each of `parts` equal parts of the batch, the rows of the texts `name` of its images, on the CPU."""
        import torch

        index, images = (self.texts_on_cpu or self.texts)[name].image_index, len(self.pixels)
        size, unpaired = max(1, images // parts), max(1, self.num_unpaired_texts // parts)
        part = torch.where(index < images, index // size, (index - images) // unpaired)
        return [(part == number).nonzero()[:, 0] for number in range(parts)]

    def parts(self, parts: int) -> list[Batch]:
        """The batch in equal parts, images together with their texts."""
        import torch

        images = len(self.pixels)
        size, unpaired = images // parts, self.num_unpaired_texts // parts
        found, move = [], partial(torch.Tensor.to, device=self.pixels.device, non_blocking=True)
        every = {name: self.rows_of_parts(name, parts) for name in self.texts}
        for number in range(parts):
            texts, rows = {}, {name: several[number] for name, several in every.items()}
            for name, whole in (self.texts_on_cpu or self.texts).items():
                index = whole.image_index[rows[name]]
                without_image = index - images - number * unpaired + size
                taken = whole.take(rows[name], torch.where(index < images, index - number * size, without_image))
                texts[name] = taken.map(move)
            here = slice(number * size, (number + 1) * size)
            teacher_pixels = tuple(pixels[here] for pixels in self.teacher_pixels)
            samples = self.sample_index[here], self.augmentation_index[here]
            moved = {name: move(one) for name, one in rows.items()}
            features = tuple(one.take(here, moved) for one in self.teacher_features)
            found.append(Batch(*samples, self.pixels[here], teacher_pixels, texts, unpaired, features))
        return found


@dataclass(frozen=True)
class Collator:
    """Makes a Batch of (index, epoch) samples, in the loader's worker processes.

    `preprocess` makes the student's pixels, and each of `teacher_preprocess` a teacher's, from the same augmented
    image: uint8, or float32 where a library's own preprocessing makes them. Each of `read_features` reads what a
    teacher's cache has of a batch. A sample has `num_augmentations` different augmentations, 0: a new one each epoch.
    `with_caption_ids` fills Texts.caption_ids and Texts.image_caption_ids.
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

    def __getitems__(self, samples: list[Sample]) -> Batch | DcclipError:
        """The batch, or the error in its data: a DataLoader would lose the hint of an error that is raised here."""
        try:
            return self.batch(samples)
        except DcclipError as error:
            return error

    def batch(self, samples: list[Sample]) -> Batch:
        """The batch of these samples. Raises DcclipError for an unreadable image or a language without captions."""
        import torch

        paired, unpaired = self._paired_and_unpaired(samples)
        indices = [index for index, _ in paired]
        augmentations = [epoch % self.num_augmentations if self.num_augmentations else epoch for _, epoch in paired]
        if self.dataset.embeddings is not None:
            pixels = torch.from_numpy(self.dataset.embeddings[indices])
            teacher_pixels: tuple[torch.Tensor, ...] = ()
        else:
            pixels, *teachers = self._all_pixels(indices, augmentations)
            teacher_pixels = tuple(teachers)
        rows, numbers = (torch.tensor(values, dtype=torch.int64) for values in (indices, augmentations))
        batch = Batch(rows, numbers, pixels, teacher_pixels, self._all_texts(paired, unpaired), len(unpaired))
        return replace(batch, teacher_features=tuple(read(batch) for read in self.read_features))

    def pixels(self, index: int, augmentation: int, *preprocess: Preprocess) -> tuple[np.ndarray, ...]:
        """The pixels (3, H, W) of one sample's augmented image, by each of `preprocess`.

        Raises DcclipError where the image cannot be read.
        """
        image = _decoded(self.dataset, index, draft_side(self.augment, preprocess))
        return self._augmented(image, index, augmentation, preprocess)

    def _augmented(
        self, image: Image.Image, index: int, augmentation: int, preprocess: Sequence[Preprocess]
    ) -> tuple[np.ndarray, ...]:
        image = self.augment(image, generator(self.seed, index, augmentation))
        return tuple(one(image) for one in preprocess)

    def _all_pixels(self, indices: list[int], augmentations: list[int]) -> list[torch.Tensor]:
        """(B, 3, H, W) pixels of every preprocessing; from the cache as far as these, or the images, are used again."""
        preprocess = (self.preprocess, *self.teacher_preprocess)
        side, cache, images = draft_side(self.augment, preprocess), self.image_cache, self.dataset.num_images
        found: list[tuple[np.ndarray, ...]] = [()] * len(indices)
        for row in np.argsort(indices).tolist():  # in the order of the files
            index, augmentation = indices[row], augmentations[row]
            if self.num_augmentations:
                make = partial(self.pixels, index, augmentation, *preprocess)
                found[row] = cache.get((index, augmentation), make, images * self.num_augmentations)
            else:
                image = cache.get(index, partial(_decoded, self.dataset, index, side), images)
                found[row] = self._augmented(image, index, augmentation, preprocess)
        return [stacked([one[number] for one in found]) for number in range(len(preprocess))]

    def chosen_captions(self, samples: Sequence[Sample]) -> set[str]:
        """The captions that the batch of these samples has."""
        chosen = self._chosen(*self._paired_and_unpaired(samples))
        return {caption for _, captions in chosen.values() for caption in captions}

    def _paired_and_unpaired(self, samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
        paired = [sample for sample in samples if sample[0] < self.dataset.num_images]
        return paired, [sample for sample in samples if sample[0] >= self.dataset.num_images]

    def _chosen(self, paired: list[Sample], unpaired: list[Sample]) -> dict[str, tuple[list[_Captioned], list[str]]]:
        """For each entry of a batch's texts the rows that have captions in its language, and one caption of each."""
        options = self.captions
        first = 1.0 if options.second_caption else options.first  # probability of the first caption
        choices: dict[str, tuple[Language, float]] = {language: (language, first) for language in options.languages}
        if options.second_caption:
            choices |= {language + OTHER: (language, 0.0) for language in options.languages}
        # The order is shuffled already, so the first are as good as any.
        captioned = max(1, round(options.caption_fraction * len(paired)))
        rows = [*enumerate(paired[:captioned]), *enumerate(unpaired, len(paired))]
        every = {language: self._captioned(language, rows) for language in options.languages}
        seed = self.seed ^ 0x7E97
        return {
            name: (every[language], [_choose(row, first, seed) for row in every[language]])
            for name, (language, first) in choices.items()
        }

    def _all_texts(self, paired: list[Sample], unpaired: list[Sample]) -> dict[str, Texts]:
        texts = {name: self._texts(*chosen) for name, chosen in self._chosen(paired, unpaired).items()}
        found = {name: one for name, one in texts.items() if one is not None}
        if len(found) < len(texts) and (found or not self.dataset.has_uncaptioned_images):
            language = next(name for name in texts if name not in found).removesuffix(OTHER)
            hint = Message("train on other languages with captions.languages, or add {} captions to the data", language)
            raise DcclipError("{}: a whole batch has no '{}' captions", hint, self.dataset.path, language)
        return found

    def _captioned(self, language: Language, rows: list[tuple[int, Sample]]) -> list[_Captioned]:
        """The rows that have captions in the language."""
        captions = self.dataset.captions(language)
        found = ((row, sample, captions[sample[0]]) for row, sample in rows)
        return [_Captioned(*one) for one in found if one[2]]

    def _texts(self, rows: list[_Captioned], chosen: list[str]) -> Texts | None:
        """The chosen caption of each row."""
        import torch

        if not rows:
            return None
        texts = Texts(torch.tensor([row.number for row in rows]), chosen, self.tokenize(chosen).sorted())
        if not self.with_caption_ids:
            return texts
        if self.dataset.embeddings is not None:  # two pairs with equal embeddings are no negatives of each other
            ids = _hashes(self.dataset.embeddings[row.sample[0]].tobytes() for row in rows)
            return replace(texts, caption_ids=ids, image_caption_ids=ids[:, None])
        most = max(len(row.captions) for row in rows)
        # Padded with the first caption of each image, which changes nothing.
        own = (row.captions + row.captions[:1] * (most - len(row.captions)) for row in rows)
        ids, of_images = (
            _hashes(caption.encode() for caption in every) for every in (chosen, chain.from_iterable(own))
        )
        return replace(texts, caption_ids=ids, image_caption_ids=of_images.reshape(-1, most))


@dataclass(frozen=True)
class _Captioned:
    """A row of a batch, its sample, and the captions that it has in a language."""

    number: int
    sample: Sample
    captions: tuple[str, ...]


def _hashes(contents: Iterable[bytes]) -> torch.Tensor:
    """64-bit hashes, the same in every process."""
    import torch

    digests = b"".join(hashlib.blake2b(content, digest_size=8).digest() for content in contents)
    return torch.from_numpy(np.frombuffer(digests, "<i8").astype(np.int64))


def _choose(row: _Captioned, first: float, seed: int) -> str:
    captions = row.captions
    if len(captions) == 1 or first == 1:
        return captions[0]
    random = generator(seed, *row.sample)
    return captions[0] if random.random() < first else captions[1 + int(random.integers(len(captions) - 1))]


def unaugmented(dataset: PairDataset, index: int) -> Image.Image:
    """One pair's image without augmentation, RGB on white. Raises DcclipError where it cannot be read."""
    return flatten(_decoded(dataset, index))


def _decoded(dataset: PairDataset, index: int, draft: int = 0) -> Image.Image:
    image = dataset.image(index)
    try:
        return decode(image, draft=draft)
    except DcclipError as error:
        key = dataset.keys()[index]
        raise DcclipError("{}: pair {}: {}", error.hint, dataset.path, key, error.what) from None
