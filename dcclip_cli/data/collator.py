"""Collator: turns samples into a batch of tensors, with images augmented and captions chosen and tokenised."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dcclip_cli.data.options import Augment, CaptionOptions
from dcclip_cli.data.pair import LANGUAGES, Language, PairDataset
from dcclip_cli.data.pixels import ImageCache, Preprocess, draft_side, stacked
from dcclip_cli.data.samplers import Sample
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.preprocess import decode, flatten

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from dcclip_cli.model.towers import Tokens

OTHER = "-other"  # `zh-other`: the second captions of the images whose first captions are `zh`
ENTRIES = (*LANGUAGES, *(language + OTHER for language in LANGUAGES))  # that a batch's texts may have
IMAGES = "images"


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
        tensors = (self.embedding, self.tokens, self.rows, self.lengths)
        return StoredTexts(*(None if tensor is None else change(tensor) for tensor in tensors))  # type: ignore[arg-type]


@dataclass(frozen=True)
class StoredFeatures:
    """Features of a batch: those of its images, (B, ...) by name of the array, and those of its texts by language."""

    images: dict[str, torch.Tensor]
    texts: dict[str, StoredTexts]

    def take(
        self, select: Callable[[torch.Tensor], torch.Tensor], text_rows: Mapping[str, torch.Tensor]
    ) -> StoredFeatures:
        """The features of a part of the batch, whose images `select` selects."""
        texts = {name: self.texts[name].take(rows) for name, rows in text_rows.items()}
        return StoredFeatures({name: select(values) for name, values in self.images.items()}, texts)

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> StoredFeatures:
        """The same with every tensor changed: moved to a device, pinned."""
        texts = {name: stored.map(change) for name, stored in self.texts.items()}
        return StoredFeatures({name: change(values) for name, values in self.images.items()}, texts)


# ---- batches


class TextCounts(NamedTuple):
    """How many texts of a language there are, with an image, with a translation of the same image or line; tokens."""

    texts: float
    paired: float
    parallel: float
    tokens: float


def count_texts(
    image_index: Mapping[str, torch.Tensor], images: int, tokens: Mapping[str, int]
) -> dict[str, TextCounts]:
    """The counts of a batch's texts by language. Reads from the device of `image_index`."""
    import torch

    counts = {}
    for name, index in image_index.items():
        translated = image_index.get(("en" if name.startswith("zh") else "zh") + name[2:], index[:0])
        paired, parallel = int((index < images).sum()), int(torch.isin(index, translated).sum())
        counts[name] = TextCounts(len(index), paired, parallel, tokens.get(name, 0) or len(index))
    return counts


def image_share(captioned: int, images: int, part: int, parts: int) -> tuple[slice, slice]:
    """The images of one of a batch's equal parts: its share of the first `captioned`, and of all others.

    So is a batch split among processes, and into parts for accumulation.
    """
    first, last = (captioned * number // parts for number in (part, part + 1))
    begin, end = (captioned + images * number // parts for number in (part, part + 1))
    return slice(first, last), slice(begin - first, end - last)


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
        ids = (None if values is None else change(values) for values in (self.caption_ids, self.image_caption_ids))
        return Texts(change(self.image_index), self.captions, self.tokens.map(change), *ids)

    def take(self, rows: torch.Tensor, image_index: torch.Tensor) -> Texts:
        """The texts at `rows`, which belong to the images `image_index` of another batch."""
        from dcclip_cli.model.towers import Tokens

        selected, captions = self.map(lambda tensor: tensor[rows]), [self.captions[row] for row in rows.tolist()]
        tokens = Tokens(selected.tokens.ids, selected.tokens.mask).sorted()
        return replace(selected, image_index=image_index, captions=captions, tokens=tokens)


@dataclass(frozen=True)
class Batch:
    """One step's input, or a part of it: B images, the first `num_captioned` with captions, and texts by language.

    `sample_index` (B,) and `augmentation_index` (B,) identify the sample and which of its augmentations this is.
    `pixels` are (B, 3, H, W), or embeddings (B, D) where the pairs have these in place of images; `teacher_pixels` has
    the pixels for each teacher that processes images in this step, `teacher_features` what each teacher's cache has of
    the batch, None where a row is missing. `texts` has those of ENTRIES that have a text in the batch;
    `num_unpaired_texts` of them have no image. `texts_on_cpu` are the texts of a batch that was moved to a device: by
    these it is split without waiting for the device. A part has its `rows` of the whole batch, by language and IMAGES,
    and the `mean_counts` of the parts' texts.
    """

    sample_index: torch.Tensor
    augmentation_index: torch.Tensor
    pixels: torch.Tensor
    teacher_pixels: tuple[torch.Tensor, ...]
    texts: dict[str, Texts]
    num_unpaired_texts: int = 0
    teacher_features: tuple[StoredFeatures, ...] = ()
    texts_on_cpu: dict[str, Texts] = field(default_factory=dict)
    num_captioned: int = 0
    rows: dict[str, torch.Tensor] = field(default_factory=dict)
    mean_counts: dict[str, TextCounts] = field(default_factory=dict)

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
            teacher_features=tuple(features.map(change) for features in self.teacher_features),
        )

    @cached_property
    def counts(self) -> dict[str, TextCounts]:
        """The counts of its texts by language."""
        texts = self.texts_on_cpu or self.texts
        tokens = {name: sum(entry.tokens.lengths) for name, entry in texts.items()}
        return count_texts({name: entry.image_index for name, entry in texts.items()}, len(self.pixels), tokens)

    def parts(self, parts: int) -> list[Batch]:
        """The batch in parts of equally many images and texts without images, with their shares of captions."""
        import torch

        images, on_cpu = len(self.pixels), self.texts_on_cpu or self.texts
        size, unpaired = max(1, images // parts), max(1, self.num_unpaired_texts // parts)
        shares = [image_share(self.num_captioned, images, number, parts) for number in range(parts)]
        image_rows = [_select(share, torch.arange(images)) for share in shares]
        places, lines = torch.cat(image_rows).argsort(), torch.arange(self.num_unpaired_texts)
        part_of_index = torch.cat([places // size, lines // unpaired])
        index_in_part = torch.cat([places % size, images // parts + lines % unpaired])
        mean_counts = {name: TextCounts(*(count / parts for count in counts)) for name, counts in self.counts.items()}
        batches, move = [], partial(torch.Tensor.to, device=self.pixels.device, non_blocking=True)
        for number, share in enumerate(shares):
            select = partial(_select, share)
            is_in_part = {name: part_of_index[entry.image_index] == number for name, entry in on_cpu.items()}
            rows = {name: mask.nonzero()[:, 0] for name, mask in is_in_part.items() if mask.any()}
            indices = {name: index_in_part[on_cpu[name].image_index[text_rows]] for name, text_rows in rows.items()}
            texts = {name: on_cpu[name].take(rows[name], index) for name, index in indices.items()}
            on_device = {name: move(text_rows) for name, text_rows in rows.items()}
            part = Batch(
                select(self.sample_index),
                select(self.augmentation_index),
                select(self.pixels),
                tuple(map(select, self.teacher_pixels)),
                {name: entry.map(move) for name, entry in texts.items()},
                self.num_unpaired_texts // parts,
                tuple(features.take(select, on_device) for features in self.teacher_features),
                texts,
                share[0].stop - share[0].start,
                {IMAGES: image_rows[number], **rows},
                mean_counts,
            )
            batches.append(part)
        return batches


def _select(slices: tuple[slice, slice], values: torch.Tensor) -> torch.Tensor:
    """The rows in two slices, without a copy where one is empty."""
    import torch

    first, second = (values[rows] for rows in slices)
    return torch.cat([first, second]) if len(first) and len(second) else first if len(first) else second


@dataclass(frozen=True)
class Collator:
    """Makes a Batch of (index, epoch) samples, in the loader's worker processes.

    `preprocess` makes the student's pixels, and each of `teacher_preprocess` a teacher's, from the same augmented
    image: uint8, or float32 where a library's own preprocessing makes them. Each of `read_features` reads what a
    teacher's cache has of a batch. A sample has `num_augmentations` different augmentations, 0: a new one each epoch.
    `with_caption_ids` fills Texts.caption_ids and Texts.image_caption_ids. The loader makes the part of a batch that
    `process`, of so many `processes`, trains on.
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
    process: int = 0
    processes: int = 1

    def __getitems__(self, samples: list[Sample]) -> Batch | DcclipError:
        """The batch, or the error in its data: a DataLoader would lose the hint of an error that is raised here."""
        try:
            return self.batch(samples, self.process, self.processes)
        except DcclipError as error:
            return error

    def batch(self, samples: Sequence[Sample], process: int = 0, processes: int = 1) -> Batch:
        """The batch of a step's samples, or the part of one of `processes`. Raises DcclipError for a bad image."""
        import torch

        rows = self._rows(samples, process, processes)
        indices, count = [index for index, _ in rows.images], self.num_augmentations
        augmentations = [epoch % count if count else epoch for _, epoch in rows.images]
        if self.dataset.embeddings is not None:
            inputs = [torch.from_numpy(self.dataset.embeddings[indices])]
        else:  # pixels of every preprocessing, from the cache as far as these, or the images, are used again
            preprocess = (self.preprocess, *self.teacher_preprocess)
            side, cache, images = draft_side(self.augment, preprocess), self.image_cache, self.dataset.num_images
            pixels: list[tuple[np.ndarray, ...]] = [()] * len(indices)
            for row in np.argsort(indices).tolist():  # in the order of the files
                index, augmentation = indices[row], augmentations[row]
                if count:
                    make = partial(self.pixels, index, augmentation, *preprocess)
                    pixels[row] = cache.get((index, augmentation), make, images * count)
                else:
                    image = cache.get(index, partial(_decoded, self.dataset, index, side), images)
                    pixels[row] = self._augmented(image, index, augmentation, preprocess)
            inputs = [stacked([arrays[number] for arrays in pixels]) for number in range(len(preprocess))]
        sample_index, augmentation_index = (torch.tensor(ids, dtype=torch.int64) for ids in (indices, augmentations))
        texts = {name: self._texts(*chosen) for name, chosen in self._chosen(rows).items()}
        batch = Batch(sample_index, augmentation_index, inputs[0], tuple(inputs[1:]), texts, len(rows.texts))
        features = tuple(read_stored(batch) for read_stored in self.read_features)
        return replace(batch, teacher_features=features, num_captioned=rows.num_captioned)

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
        return tuple(transform(image) for transform in preprocess)

    def chosen_captions(self, samples: Sequence[Sample]) -> set[str]:
        """The captions that the batch of a step's samples has, over all processes."""
        return {caption for _, captions in self._chosen(self._rows(samples)).values() for caption in captions}

    def _rows(self, samples: Sequence[Sample], process: int = 0, processes: int = 1) -> _Rows:
        """The samples of a process: pairs with captions, other images, texts without images."""
        data = self.dataset
        pairs, images, texts = (
            [sample for sample in samples if first <= sample[0] < end]
            for first, end in pairwise((0, data.num_pairs, data.num_images, len(data)))
        )
        # The order is shuffled already, so the first are as good as any.
        captioned = max(1, round(self.captions.caption_fraction * len(pairs))) if pairs else 0
        images, size = pairs + images, len(texts) // processes
        with_captions, without = image_share(captioned, len(images), process, processes)
        of_process = texts[process * size : (process + 1) * size]
        return _Rows(images[with_captions] + images[without], of_process, with_captions.stop - with_captions.start)

    def _chosen(self, rows: _Rows) -> dict[str, tuple[list[_Captioned], list[str]]]:
        """For each entry of a batch's texts the rows that have captions in its language, and one caption of each."""
        options = self.captions
        first = 1.0 if options.second_caption else options.first  # probability of the first caption
        choices: dict[str, tuple[Language, float]] = {language: (language, first) for language in options.languages}
        if options.second_caption:
            choices |= {language + OTHER: (language, 0.0) for language in options.languages}
        numbered = [*enumerate(rows.images[: rows.num_captioned]), *enumerate(rows.texts, len(rows.images))]
        captioned = dict[Language, list[_Captioned]]()
        for language in options.languages:
            captions = self.dataset.captions(language)
            rows_with_captions = ((number, sample, captions[sample[0]]) for number, sample in numbered)
            captioned[language] = [_Captioned(*row) for row in rows_with_captions if row[2]]
        seed = self.seed ^ 0x7E97
        return {
            name: (captioned[language], [_choose(row, first, seed) for row in captioned[language]])
            for name, (language, first) in choices.items()
            if captioned[language]
        }

    def _texts(self, rows: list[_Captioned], chosen: list[str]) -> Texts:
        """The chosen caption of each row."""
        import torch

        texts = Texts(torch.tensor([row.number for row in rows]), chosen, self.tokenize(chosen).sorted())
        if not self.with_caption_ids:
            return texts
        if self.dataset.embeddings is not None:  # two pairs with equal embeddings are no negatives of each other
            ids = _hashes(self.dataset.embeddings[row.sample[0]].tobytes() for row in rows)
            return replace(texts, caption_ids=ids, image_caption_ids=ids[:, None])
        width = max(len(row.captions) for row in rows)
        # Padded with the first caption of each image, which changes nothing.
        padded = (row.captions + row.captions[:1] * (width - len(row.captions)) for row in rows)
        ids, of_images = (_hashes(map(str.encode, captions)) for captions in (chosen, chain.from_iterable(padded)))
        return replace(texts, caption_ids=ids, image_caption_ids=of_images.reshape(-1, width))


@dataclass(frozen=True)
class _Rows:
    """The samples of a batch with images, the first `num_captioned` of them with captions, and those without."""

    images: list[Sample]
    texts: list[Sample]
    num_captioned: int


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
