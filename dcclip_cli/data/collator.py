"""Collator: turns samples into a batch of tensors, with images augmented and captions chosen and tokenised."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from dcclip_cli.data.options import Augment, CaptionOptions
from dcclip_cli.data.pair import Language, PairDataset
from dcclip_cli.data.samplers import Sample
from dcclip_cli.data.stored_features import StoredFeatures
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.preprocess import decode, flatten

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from dcclip_cli.model.towers import Tokens

OTHER = "-other"  # `zh-other`: the second captions of the images whose first captions are `zh`
CACHE_BYTES = 256_000_000  # of image pixels in each loader process


def generator(seed: int, index: int, augmentation: int) -> np.random.Generator:
    """The random numbers of one augmentation of one sample: the same in every process and every run."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, (augmentation << 40) | index], np.uint64)))


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

    def to(self, device: torch.device | str) -> Texts:
        return self._with(self.image_index.to(device), self.captions, lambda tensor: tensor.to(device))

    def take(self, rows: torch.Tensor, image_index: torch.Tensor) -> Texts:
        """The texts at `rows`, which belong to the images `image_index` of another batch."""
        return self._with(image_index, [self.captions[row] for row in rows.tolist()], lambda tensor: tensor[rows])

    def _with(
        self, image_index: torch.Tensor, captions: list[str], change: Callable[[torch.Tensor], torch.Tensor]
    ) -> Texts:
        from dcclip_cli.model.towers import Tokens

        tokens = Tokens(change(self.tokens.ids), change(self.tokens.mask))
        ids = (None if one is None else change(one) for one in (self.caption_ids, self.image_caption_ids))
        return Texts(image_index, captions, tokens, *ids)


@dataclass(frozen=True)
class Batch:
    """One step's input: B images and their texts by language.

    `sample_index` (B,) and `augmentation_index` (B,) identify the sample and which of its augmentations this is.
    `pixels` are (B, 3, H, W), or embeddings (B, D) where the pairs have these in place of images; `teacher_pixels` has
    the pixels for each teacher that processes images in this step, `teacher_features` what each teacher's cache has of
    the batch, None where a row is missing. `texts` has an entry for each language, and with second captions also
    `zh-other` and `en-other`; `num_unpaired_texts` of them have no image.
    """

    sample_index: torch.Tensor
    augmentation_index: torch.Tensor
    pixels: torch.Tensor
    teacher_pixels: tuple[torch.Tensor, ...]
    texts: dict[str, Texts]
    num_unpaired_texts: int = 0
    teacher_features: tuple[StoredFeatures | None, ...] = ()

    def to(self, device: torch.device | str) -> Batch:
        return replace(
            self,
            pixels=self.pixels.to(device),
            teacher_pixels=tuple(pixels.to(device) for pixels in self.teacher_pixels),
            texts={language: texts.to(device) for language, texts in self.texts.items()},
            teacher_features=tuple(one and one.map(lambda tensor: tensor.to(device)) for one in self.teacher_features),
        )

    def rows_of_parts(self, name: str, parts: int) -> list[torch.Tensor]:
        """For each of `parts` equal parts of the batch, the rows of the texts `name` that belong to its images."""
        import torch

        index, images = self.texts[name].image_index, len(self.pixels)
        size, unpaired = max(1, images // parts), max(1, self.num_unpaired_texts // parts)
        part = torch.where(index < images, index // size, (index - images) // unpaired)
        return [(part == number).nonzero()[:, 0] for number in range(parts)]

    def parts(self, parts: int) -> list[Batch]:
        """The batch in equal parts, images together with their texts."""
        import torch

        images = len(self.pixels)
        size, unpaired = images // parts, self.num_unpaired_texts // parts
        found = []
        for number in range(parts):
            texts, rows = {}, {name: self.rows_of_parts(name, parts)[number] for name in self.texts}
            for name, whole in self.texts.items():
                index = whole.image_index[rows[name]]
                without_image = index - images - number * unpaired + size
                texts[name] = whole.take(rows[name], torch.where(index < images, index - number * size, without_image))
            here = slice(number * size, (number + 1) * size)
            teacher_pixels = tuple(pixels[here] for pixels in self.teacher_pixels)
            samples = self.sample_index[here], self.augmentation_index[here]
            features = tuple(one and one.take(here, rows) for one in self.teacher_features)
            found.append(Batch(*samples, self.pixels[here], teacher_pixels, texts, unpaired, features))
        return found


class ImageCache:
    """Keeps images until `limit` bytes of pixels are in memory; later images are made again each time.

    Nothing is evicted: an epoch asks for every image once, so the oldest is as good as any.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit, self._bytes = limit, 0
        self._images: dict[Hashable, Image.Image] = {}

    def get(self, key: Hashable, make: Callable[[], Image.Image]) -> Image.Image:
        """The image of this key, from `make` where it is not in the cache. Callers must not change it."""
        image = self._images.get(key)
        if image is None:
            image = make()
            size = image.width * image.height * len(image.getbands())
            if self._bytes + size <= self._limit:
                self._images[key] = image
                self._bytes += size
        return image


@dataclass(frozen=True)
class Collator:
    """Makes a Batch of (index, epoch) samples, in the loader's worker processes.

    `preprocess` makes the student's pixels, and each of `teacher_preprocess` a teacher's, from the same augmented
    image. Each of `read_features` reads what a teacher's cache has of a batch. A sample has `num_augmentations`
    different augmentations, 0: a new one each epoch. `with_caption_ids` fills Texts.caption_ids and
    Texts.image_caption_ids.
    """

    dataset: PairDataset
    seed: int
    augment: Augment
    captions: CaptionOptions
    preprocess: Callable[[Image.Image], np.ndarray]
    tokenize: Callable[[list[str]], Tokens]
    teacher_preprocess: tuple[Callable[[Image.Image], np.ndarray], ...] = ()
    num_augmentations: int = 0
    with_caption_ids: bool = False
    image_cache: ImageCache = field(default_factory=ImageCache, compare=False, repr=False)
    read_features: tuple[Callable[[Batch], StoredFeatures | None], ...] = ()

    def __getitems__(self, samples: list[Sample]) -> Batch | DcclipError:
        """The batch, or the error in its data: a DataLoader would lose the hint of an error that is raised here."""
        try:
            return self.batch(samples)
        except DcclipError as error:
            return error

    def batch(self, samples: list[Sample]) -> Batch:
        """The batch of these samples. Raises DcclipError for an unreadable image or a language without captions."""
        import torch

        paired = [sample for sample in samples if sample[0] < self.dataset.num_images]
        unpaired = [sample for sample in samples if sample[0] >= self.dataset.num_images]
        indices = [index for index, _ in paired]
        augmentations = [epoch % self.num_augmentations if self.num_augmentations else epoch for _, epoch in paired]
        if self.dataset.embeddings is not None:
            pixels = torch.from_numpy(self.dataset.embeddings[indices])
            teacher_pixels: tuple[torch.Tensor, ...] = ()
        else:
            images = [self.image(*sample) for sample in zip(indices, augmentations, strict=True)]
            pixels = _pixels(images, self.preprocess)
            teacher_pixels = tuple(_pixels(images, preprocess) for preprocess in self.teacher_preprocess)
        rows, numbers = (torch.tensor(values, dtype=torch.int64) for values in (indices, augmentations))
        batch = Batch(rows, numbers, pixels, teacher_pixels, self._all_texts(paired, unpaired), len(unpaired))
        return replace(batch, teacher_features=tuple(read(batch) for read in self.read_features))

    def image(self, index: int, augmentation: int) -> Image.Image:
        """One sample's augmented image. Raises DcclipError where the image cannot be read."""
        random = generator(self.seed, index, augmentation)
        if self.num_augmentations:  # the same augmentations are used again, so these are worth caching
            return self.image_cache.get((index, augmentation), lambda: self.augment(self._decoded(index), random))
        return self.augment(self.image_cache.get(index, lambda: self._decoded(index)), random)

    def _decoded(self, index: int) -> Image.Image:
        pair = self.dataset[index]
        try:
            return decode(pair.image)
        except DcclipError as error:
            raise DcclipError(f"{self.dataset.path}: pair {pair.key}: {error.what}", error.hint) from None

    def chosen_captions(self, samples: Sequence[Sample]) -> dict[str, list[str]]:
        """The captions that the batch of these samples has, by the names of its texts."""
        paired = [sample for sample in samples if sample[0] < self.dataset.num_images]
        unpaired = [sample for sample in samples if sample[0] >= self.dataset.num_images]
        rows = self._text_rows(paired, unpaired)
        return {
            name: [caption for _, _, caption in self._chosen(language, rows, first)]
            for name, (language, first) in self._choices().items()
        }

    def _choices(self) -> dict[str, tuple[Language, float]]:
        """The language of each entry of a batch's texts, and the probability of the first caption."""
        options = self.captions
        first = 1.0 if options.second_caption else options.first
        choices: dict[str, tuple[Language, float]] = {language: (language, first) for language in options.languages}
        if options.second_caption:
            choices |= {language + OTHER: (language, 0.0) for language in options.languages}
        return choices

    def _text_rows(self, paired: list[Sample], unpaired: list[Sample]) -> list[tuple[int, Sample]]:
        """The samples whose captions are used, and their places in the batch."""
        # The order is shuffled already, so the first are as good as any.
        captioned = max(1, round(self.captions.caption_fraction * len(paired)))
        return [*enumerate(paired[:captioned]), *enumerate(unpaired, len(paired))]

    def _all_texts(self, paired: list[Sample], unpaired: list[Sample]) -> dict[str, Texts]:
        rows, choices = self._text_rows(paired, unpaired), self._choices()
        texts = {name: self._texts(language, rows, first) for name, (language, first) in choices.items()}
        found = {name: one for name, one in texts.items() if one is not None}
        if len(found) < len(texts) and (found or not self.dataset.has_uncaptioned_images):
            language = next(name for name in texts if name not in found).removesuffix(OTHER)
            hint = f"train on other languages with captions.languages, or add {language} captions to the data"
            raise DcclipError(f"{self.dataset.path}: a whole batch has no '{language}' captions", hint)
        return found

    def _texts(self, language: Language, rows: list[tuple[int, Sample]], first: float) -> Texts | None:
        """One caption of each row that has any in the language; `first`: the probability of the first caption."""
        import torch

        chosen = self._chosen(language, rows, first)
        if not chosen:
            return None
        indices, texts_chosen = [index for _, index, _ in chosen], [caption for _, _, caption in chosen]
        texts = Texts(torch.tensor([row for row, _, _ in chosen]), texts_chosen, self.tokenize(texts_chosen))
        if not self.with_caption_ids:
            return texts
        if self.dataset.embeddings is not None:  # two pairs with equal embeddings are no negatives of each other
            ids = _hashes(self.dataset.embeddings[index].tobytes() for index in indices)
            return replace(texts, caption_ids=ids, image_caption_ids=ids[:, None])
        captions = self.dataset.captions(language)
        own = [captions[index] for index in indices]
        most = max(map(len, own))
        # Padded with the first caption of each image, which changes nothing.
        padded = [caption for several in own for caption in (*several, *several[:1] * (most - len(several)))]
        ids, of_images = (_hashes(caption.encode() for caption in every) for every in (texts_chosen, padded))
        return replace(texts, caption_ids=ids, image_caption_ids=of_images.reshape(-1, most))

    def _chosen(self, language: Language, rows: list[tuple[int, Sample]], first: float) -> list[tuple[int, int, str]]:
        """Place in the batch, index and chosen caption of each row that has captions in the language."""
        captions, seed = self.dataset.captions(language), self.seed ^ 0x7E97
        own = ((row, sample, captions[sample[0]]) for row, sample in rows)
        return [(row, sample[0], _choose(several, first, seed, sample)) for row, sample, several in own if several]


def _pixels(images: list[Image.Image], preprocess: Callable[[Image.Image], np.ndarray]) -> torch.Tensor:
    import torch

    pixels = [preprocess(image) for image in images]
    return torch.from_numpy(np.stack(pixels)) if pixels else torch.zeros(0, 3, 1, 1)


def _hashes(contents: Iterable[bytes]) -> torch.Tensor:
    """64-bit hashes, the same in every process."""
    import torch

    digests = (hashlib.blake2b(content, digest_size=8).digest() for content in contents)
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests])


def _choose(captions: tuple[str, ...], first: float, seed: int, sample: Sample) -> str:
    if len(captions) == 1 or first == 1:
        return captions[0]
    random = generator(seed, *sample)
    return captions[0] if random.random() < first else captions[1 + int(random.integers(len(captions) - 1))]


def first_captions(dataset: PairDataset, language: Language) -> list[str]:
    """The pairs' first captions in one language, '' where there is none."""
    return [captions[0] if captions else "" for captions in dataset.captions(language)]


def unaugmented(dataset: PairDataset, index: int) -> Image.Image:
    """One pair's image without augmentation, RGB on white."""
    return flatten(decode(dataset[index].image))
