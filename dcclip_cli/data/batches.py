"""Which pairs, captions and augmentations make up a training step, and how they become tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from dcclip_cli.data.augment import Augment, generator
from dcclip_cli.data.pair import LANGUAGES, Language
from dcclip_cli.data.table import PairTable
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.preprocess import decode, flatten
from dcclip_cli.options import Options

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from dcclip_cli.model.towers import Tokens

OTHER = "-other"  # `zh-other`: an image's second caption, beside `zh`, its first
COLLECTED = "collect"  # `train: collect` means the recipe's own collect stage


class DataOptions(Options):
    """Where training and validation pairs come from: a Parquet or tar file, a folder of shards, or `collect`."""

    train: str = Field(description="Pairs to train on; `collect`: what this recipe's collect stage leaves")
    validation: str | None = Field(None, description="Pairs to check an export on; default: the training pairs")


class CaptionOptions(Options):
    """Which of a pair's captions a step sees."""

    languages: tuple[Language, ...] = Field(LANGUAGES, description="Those of the captions")
    first: float = Field(
        0.5, ge=0, le=1, description="Probability of a pair's first caption; the others share the rest"
    )
    also_other: bool = Field(
        False, description="Beside the first caption, always, one of the others as a second positive"
    )
    share: float = Field(
        1.0, gt=0, le=1, description="Of a batch's pairs, how many bring captions: texts are learnt sooner than pictures"
    )


@dataclass(frozen=True)
class Texts:
    """One caption an image in one language: `rows` (n,) says which image each belongs to.

    `shared` (n, n), where asked for, is true at [i, j] if the j-th caption is another pair's that image i has as well.
    """

    rows: torch.Tensor
    captions: list[str]
    tokens: Tokens
    shared: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> Texts:
        shared = None if self.shared is None else self.shared.to(device)
        return Texts(self.rows.to(device), self.captions, self.tokens.to(device), shared)


@dataclass(frozen=True)
class Batch:
    """One step's input. `indices` and `repeats` (B,) name the sample and its augmentation; pixels are (B, 3, H, W).

    `texts` has an entry for each language, and with `captions.also_other` a second one, `zh-other` and `en-other`.
    """

    indices: torch.Tensor
    repeats: torch.Tensor
    pixels: torch.Tensor
    teacher_pixels: torch.Tensor | None
    texts: dict[str, Texts]

    def to(self, device: torch.device | str) -> Batch:
        return Batch(
            self.indices,
            self.repeats,
            self.pixels.to(device),
            None if self.teacher_pixels is None else self.teacher_pixels.to(device),
            {language: texts.to(device) for language, texts in self.texts.items()},
        )


@dataclass(frozen=True)
class Order:
    """The order of samples, a pure function of the seed and the epoch, so that a position is just a step number.

    `groups` (N,) numbers the samples' captions: a batch holds no two samples of one group, which a contrastive loss
    would take for negatives of each other.
    """

    count: int
    batch_size: int
    seed: int
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not self.steps_per_epoch:
            raise DcclipError(
                f"batch_size {self.batch_size} is more than the {self.count} pairs there are", "make batch_size smaller"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.count // self.batch_size

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The batches of one epoch, each (batch_size,); samples left over come in another epoch."""
        key = np.array([self.seed, 1 << 63 | epoch], np.uint64)  # a plain list becomes float64 and loses the epoch
        shuffled = np.random.Generator(np.random.Philox(key=key)).permutation(self.count)
        if self.groups is None:
            used = self.steps_per_epoch * self.batch_size
            return list(shuffled[:used].reshape(-1, self.batch_size))
        return list(self._distinct(shuffled))

    def _distinct(self, shuffled: np.ndarray) -> Iterator[np.ndarray]:
        assert self.groups is not None
        waiting = shuffled.tolist()
        for _ in range(self.steps_per_epoch):
            taken: list[int] = []
            repeated: list[int] = []
            seen: set[int] = set()
            for position, sample in enumerate(waiting):
                if len(taken) == self.batch_size:
                    repeated += waiting[position:]
                    break
                group = int(self.groups[sample])
                (repeated if group in seen else taken).append(sample)
                seen.add(group)
            # Too few distinct captions left: fill up with repeats rather than change the batch size.
            missing = self.batch_size - len(taken)
            waiting = repeated[missing:]
            yield np.asarray(taken + repeated[:missing])

    def __call__(self, start_step: int, steps: int) -> Iterator[list[tuple[int, int]]]:
        """The (sample, epoch) pairs of each step in [start_step, steps)."""
        step = start_step
        while step < steps:
            epoch, within = divmod(step, self.steps_per_epoch)
            for batch in self.epoch(epoch)[within:]:
                if step < steps:
                    yield [(int(sample), epoch) for sample in batch]
                    step += 1


def caption_groups(table: PairTable) -> np.ndarray:
    """(N,) a number per pair, equal for pairs whose first captions are equal in any language."""
    parent = list(range(len(table)))

    def find(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for language in LANGUAGES:
        first_with: dict[str, int] = {}
        for index, captions in enumerate(table.captions(language)):
            if captions:
                other = first_with.setdefault(captions[0].casefold(), index)
                parent[find(index)] = find(other)
    return np.asarray([find(index) for index in range(len(table))])


@dataclass(frozen=True)
class Reader:
    """Turns (sample, epoch) pairs into a Batch; runs in the loader's worker processes.

    `preprocess` makes the student's pixels, `teacher_preprocess` the teacher's, of the same augmented picture.
    `repeats` bounds how many different augmentations a sample has (0: a new one each epoch). `find_shared` fills
    Texts.shared.
    """

    table: PairTable
    seed: int
    augment: Augment
    captions: CaptionOptions
    preprocess: Callable[[Image.Image], np.ndarray]
    tokenize: Callable[[list[str]], Tokens]
    teacher_preprocess: Callable[[Image.Image], np.ndarray] | None = None
    repeats: int = 0
    find_shared: bool = False

    def picture(self, index: int, repeat: int) -> Image.Image:
        """One sample's `repeat`-th augmented picture."""
        pair = self.table[index]
        try:
            image = decode(pair.image)
        except DcclipError as error:
            raise DcclipError(f"{self.table.path}: pair {pair.key}: {error.what}", error.hint) from None
        return self.augment(image, generator(self.seed, index, repeat))

    def __getitems__(self, samples: list[tuple[int, int]]) -> Batch | DcclipError:
        """The batch of these samples, or what is wrong with them: torch would lose the hint of an error raised here."""
        try:
            return self.batch(samples)
        except DcclipError as error:
            return error

    def batch(self, samples: list[tuple[int, int]]) -> Batch:
        """The batch of these samples. Raises DcclipError where an image can't be read or a language is missing."""
        import torch

        repeats = [epoch % self.repeats if self.repeats else epoch for _, epoch in samples]
        pictures = [self.picture(index, repeat) for (index, _), repeat in zip(samples, repeats, strict=True)]
        stacked = [self.preprocess(picture) for picture in pictures]
        for_teacher = self.teacher_preprocess and [self.teacher_preprocess(picture) for picture in pictures]
        return Batch(
            indices=torch.tensor([index for index, _ in samples]),
            repeats=torch.tensor(repeats),
            pixels=torch.from_numpy(np.stack(stacked)),
            teacher_pixels=torch.from_numpy(np.stack(for_teacher)) if for_teacher else None,
            texts=self._all_texts(samples),
        )

    def _all_texts(self, samples: list[tuple[int, int]]) -> dict[str, Texts]:
        first = 1.0 if self.captions.also_other else self.captions.first
        texts: dict[str, Texts] = {
            language: self._texts(language, samples, first) for language in self.captions.languages
        }
        if self.captions.also_other:
            texts |= {language + OTHER: self._texts(language, samples, 0.0) for language in self.captions.languages}
        return texts

    def _texts(self, language: Language, samples: list[tuple[int, int]], first: float) -> Texts:
        import torch

        rows, chosen = [], []
        # The order is shuffled already, so the first are as good as any.
        for row, (index, epoch) in enumerate(samples[: max(1, round(self.captions.share * len(samples)))]):
            captions = self.table.captions(language)[index]
            if captions:
                rows.append(row)
                chosen.append(_choose(captions, first, generator(self.seed ^ 0x7E97, index, epoch)))
        if not chosen:
            raise DcclipError(
                f"{self.table.path}: a whole batch has no '{language}' captions",
                f"train on other languages with captions.languages, or add {language} captions to the data",
            )
        shared = None
        if self.find_shared:
            own = [set(self.table.captions(language)[samples[row][0]]) for row in rows]
            shared = torch.tensor([[caption in captions for caption in chosen] for captions in own])
            shared.fill_diagonal_(False)
        return Texts(torch.tensor(rows), chosen, self.tokenize(chosen), shared)


def _choose(captions: tuple[str, ...], first: float, random: np.random.Generator) -> str:
    if len(captions) == 1 or random.random() < first:
        return captions[0]
    return captions[1 + int(random.integers(len(captions) - 1))]


def first_captions(table: PairTable, language: Language) -> list[str]:
    """The pairs' first captions in one language, '' where there is none."""
    return [captions[0] if captions else "" for captions in table.captions(language)]


def unaugmented(table: PairTable, index: int) -> Image.Image:
    """One pair's picture as it is, RGB on white."""
    return flatten(decode(table[index].image))
