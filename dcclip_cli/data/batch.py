"""Batch: the input of a training step as tensors, moved to a device, and split into parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

from dcclip_cli.data.pair import LANGUAGES

if TYPE_CHECKING:
    import torch

    from dcclip_cli.model.towers import Tokens

OTHER = "-other"  # `zh-other`: the second captions of the images whose first captions are `zh`
ENTRIES = (
    *LANGUAGES,
    *(language + OTHER for language in LANGUAGES),
)  # that a batch's texts may have
IMAGES = "images"


def copy_to(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor on a device. Only CUDA copies without waiting: it reads the source before its
    memory is used again.
    """
    return tensor.to(device, non_blocking=str(device).startswith("cuda"))


# ---- what a teacher's cache has of a batch: fp16, token features without padding


@dataclass(frozen=True)
class StoredTexts:
    """Features of n texts: `embedding` (n, D), and the `tokens` (T, W) of all, one text after the
    other.

    `rows` (n, L) are the tokens of each text, 0 in padding, and `lengths` (n,) their number. All
    three are None where no loss needs tokens.
    """

    embedding: torch.Tensor
    tokens: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    lengths: torch.Tensor | None = None

    def take(self, texts: torch.Tensor) -> StoredTexts:
        if self.rows is None or self.lengths is None:
            return StoredTexts(self.embedding[texts])
        return StoredTexts(
            self.embedding[texts], self.tokens, self.rows[texts], self.lengths[texts]
        )

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> StoredTexts:
        tensors = (self.embedding, self.tokens, self.rows, self.lengths)
        return StoredTexts(*(None if tensor is None else change(tensor) for tensor in tensors))  # type: ignore[arg-type]


@dataclass(frozen=True)
class StoredFeatures:
    """Features of a batch: those of its images, (B, ...) by name of the array, and those of its
    texts by language.
    """

    images: dict[str, torch.Tensor]
    texts: dict[str, StoredTexts]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> StoredFeatures:
        """The same with every tensor changed: moved to a device, pinned."""
        texts = {name: stored.map(change) for name, stored in self.texts.items()}
        return StoredFeatures({name: change(values) for name, values in self.images.items()}, texts)


class TextCounts(NamedTuple):
    """How many texts of a language there are, with an image, with a translation of the same image
    or line; tokens.
    """

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
        translated = image_index.get(
            ("en" if name.startswith("zh") else "zh") + name[2:], index[:0]
        )
        paired = int((index < images).sum())
        parallel = int(torch.isin(index, translated).sum())
        counts[name] = TextCounts(len(index), paired, parallel, tokens.get(name, 0) or len(index))
    return counts


def part_rows(captioned: int, images: int, texts: int, part: int, parts: int) -> dict[str, slice]:
    """The rows of one of a batch's equal parts: of the first, captioned images, of all others, of
    texts after these.

    So is a batch split among processes, and into parts for accumulation.
    """
    first, last = (captioned * number // parts for number in (part, part + 1))
    begin, end = (captioned + images * number // parts for number in (part, part + 1))
    lines = images + part * (texts // parts)
    size = texts // parts
    uncaptioned = slice(begin - first, end - last)
    return {
        "captioned": slice(first, last),
        "images": uncaptioned,
        "texts": slice(lines, lines + size),
    }


@dataclass(frozen=True)
class Texts:
    """n captions of one language, tokenised.

    `image_index` (n,) is the image of the batch that a caption belongs to; captions without an
    image have numbers from B on. `caption_ids` (n,) and `image_caption_ids` (n, k) are hashes of
    the caption and of all captions of its image: by these the processes of a step find out which
    captions an image shares with another pair.
    """

    image_index: torch.Tensor
    captions: list[str]
    tokens: Tokens
    caption_ids: torch.Tensor | None = None
    image_caption_ids: torch.Tensor | None = None

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Texts:
        """The same with every tensor changed: moved to a device, pinned."""
        ids = (
            None if values is None else change(values)
            for values in (self.caption_ids, self.image_caption_ids)
        )
        return Texts(change(self.image_index), self.captions, self.tokens.map(change), *ids)

    def take(self, rows: torch.Tensor, image_index: torch.Tensor) -> Texts:
        """The texts at `rows`, which belong to the images `image_index` of another batch."""
        from dcclip_cli.model.towers import Tokens

        selected = self.map(lambda tensor: tensor[rows])
        captions = [self.captions[row] for row in rows.tolist()]
        tokens = Tokens(selected.tokens.ids, selected.tokens.mask).sorted()
        return replace(selected, image_index=image_index, captions=captions, tokens=tokens)


@dataclass(frozen=True)
class Batch:
    """One step's input, or a part of it: B images, the first `num_captioned` with captions, and
    texts by language.

    `sample_index` (B,) and `augmentation_index` (B,) identify the sample and which of its
    augmentations this is. `pixels` are (B, 3, H, W), or embeddings (B, D) where the pairs have
    these in place of images; `teacher_pixels` has the pixels for each teacher that processes
    images in this step, where they are equal in one tensor, and `teacher_features` what each
    teacher's cache has of the batch, None where a row is missing. `texts` has those of ENTRIES
    that have a text in the batch; `num_unpaired_texts` of them have no image. `texts_on_cpu` are
    the texts of a batch that was moved to a device: by these it is split without waiting for the
    device. A part has its `rows` of the whole batch, by language and IMAGES, and the `mean_counts`
    of the parts' texts. `unreadable` are the images that a white one replaces, with the reason.
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
    unreadable: tuple[str, ...] = ()

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device, without waiting for the copy; sample and augmentation indices
        stay on the CPU.
        """
        moved = self._map(lambda tensor: copy_to(tensor, device))
        return replace(moved, texts_on_cpu=self.texts)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from which it is copied to a GPU while that computes."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        tensors = {
            id(pixels): pixels for pixels in (self.pixels, *self.teacher_pixels)
        }  # some towers share one
        changed = {key: change(pixels) for key, pixels in tensors.items()}
        return replace(
            self,
            pixels=changed[id(self.pixels)],
            teacher_pixels=tuple(changed[id(pixels)] for pixels in self.teacher_pixels),
            texts={language: texts.map(change) for language, texts in self.texts.items()},
            teacher_features=tuple(features.map(change) for features in self.teacher_features),
        )

    @cached_property
    def counts(self) -> dict[str, TextCounts]:
        texts = self.texts_on_cpu or self.texts
        tokens = {name: sum(entry.tokens.lengths) for name, entry in texts.items()}
        return count_texts(
            {name: entry.image_index for name, entry in texts.items()}, len(self.pixels), tokens
        )

    def parts(self, parts: int) -> list[Batch]:
        """The batch in parts of equally many images and texts without images, with their shares of
        captions.
        """
        mean_counts = {
            name: TextCounts(*(count / parts for count in counts))
            for name, counts in self.counts.items()
        }
        sizes = self.num_captioned, len(self.pixels), self.num_unpaired_texts
        rows = (part_rows(*sizes, part, parts) for part in range(parts))
        return [replace(self.take(rows_of_part), mean_counts=mean_counts) for rows_of_part in rows]

    def take(self, rows_of_kind: Mapping[str, slice]) -> Batch:
        """These rows of the batch, by kind as in `part_rows`."""
        import torch

        def select(values: torch.Tensor) -> torch.Tensor:
            """The images, without a copy where one slice is empty."""
            first = values[rows_of_kind["captioned"]]
            second = values[rows_of_kind["images"]]
            return (
                torch.cat([first, second])
                if len(first) and len(second)
                else first
                if len(first)
                else second
            )

        all_rows = torch.arange(len(self.pixels) + self.num_unpaired_texts)
        on_cpu = self.texts_on_cpu or self.texts
        image_rows = select(all_rows)
        taken_rows = torch.cat([image_rows, all_rows[rows_of_kind["texts"]]])
        new_index = torch.full_like(all_rows, -1)
        new_index[taken_rows] = all_rows[: len(taken_rows)]
        indices = {name: new_index[entry.image_index] for name, entry in on_cpu.items()}
        rows = {
            name: (index >= 0).nonzero()[:, 0]
            for name, index in indices.items()
            if (index >= 0).any()
        }
        part_texts = {
            name: on_cpu[name].take(text_rows, indices[name][text_rows])
            for name, text_rows in rows.items()
        }
        move = partial(copy_to, device=self.pixels.device)
        on_device = {name: move(text_rows) for name, text_rows in rows.items()}
        features = (
            StoredFeatures(
                {name: select(values) for name, values in stored.images.items()},
                {name: stored.texts[name].take(text_rows) for name, text_rows in on_device.items()},
            )
            for stored in self.teacher_features
        )
        return Batch(
            select(self.sample_index),
            select(self.augmentation_index),
            select(self.pixels),
            tuple(map(select, self.teacher_pixels)),
            {name: entry.map(move) for name, entry in part_texts.items()},
            len(taken_rows) - len(image_rows),
            tuple(features),
            part_texts,
            len(all_rows[rows_of_kind["captioned"]]),
            {IMAGES: image_rows, **rows},
        )
