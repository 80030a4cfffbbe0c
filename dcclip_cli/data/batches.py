"""How samples become tensors: pictures augmented, captions chosen and tokenised."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

import numpy as np
from pydantic import Field, model_validator

from dcclip_cli.data.augment import Augment, generator
from dcclip_cli.data.kept_pictures import KeptPictures
from dcclip_cli.data.order import Sample
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
    """Where training data comes from. Pairs: a Parquet or tar file, a folder of shards, or `collect`."""

    train: str | None = Field(
        None, description="Pairs to train on; `collect`: what this recipe's collect stage leaves. align needs them"
    )
    validation: str | None = Field(
        None, description="Pairs to check an export on (default: the training pairs), and to validate training on"
    )
    images: str | None = Field(
        None,
        description="Pictures without captions, for the image tower's distillation: a folder, a Parquet or tar file",
    )
    texts: str | None = Field(
        None,
        description="Lines without pictures, for the text tower's distillation: .txt, .tsv, .csv or .jsonl, or pairs",
    )
    phrases: int = Field(
        0,
        ge=0,
        le=10_000_000,
        description="Lines to make of data.texts beside its own: two or three short ones joined, from which the text "
        "tower learns to read names that nobody gave it",
    )

    @model_validator(mode="after")
    def _some_data(self) -> Self:
        if not (self.train or self.images or self.texts):
            raise ValueError("name what to train on: train, images or texts")
        return self

    @model_validator(mode="after")
    def _texts_to_make_phrases_of(self) -> Self:
        if self.phrases and not self.texts:
            raise ValueError("phrases are made of texts: name these")
        return self


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
        1.0,
        gt=0,
        le=1,
        description="Of a batch's pairs, how many bring captions: texts are learnt sooner than pictures",
    )


@dataclass(frozen=True)
class Texts:
    """Captions of one language: `rows` (n,) says which image each belongs to; lines without one follow from B on.

    `numbers` (n,) and `of_image` (n, k), where asked for, name a caption, and all captions that its image has, by
    hashes, so that one step's processes can tell each other which captions an image shares with another pair.
    """

    rows: torch.Tensor
    captions: list[str]
    tokens: Tokens
    numbers: torch.Tensor | None = None
    of_image: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> Texts:
        numbers = None if self.numbers is None else self.numbers.to(device)
        of_image = None if self.of_image is None else self.of_image.to(device)
        return Texts(self.rows.to(device), self.captions, self.tokens.to(device), numbers, of_image)

    def places(self, number: int, parts: int, images: int, lines: int) -> torch.Tensor:
        """Which texts belong to the `number`-th of `parts` equal parts of the images, and of the lines after them."""
        size, length = max(1, images // parts), max(1, lines // parts)
        here = (self.rows < images) & (self.rows // size == number)
        here |= (self.rows >= images) & ((self.rows - images) // length == number)
        return here.nonzero()[:, 0]

    def part(self, number: int, parts: int, images: int, lines: int) -> Texts:
        """The texts at `places`, whose rows count within the part."""
        import torch

        from dcclip_cli.model.towers import Tokens

        size, length = images // parts, lines // parts
        places = self.places(number, parts, images, lines)
        rows = self.rows[places]
        moved = torch.where(rows < images, rows - number * size, rows - images - number * length + size)
        return Texts(
            moved,
            [self.captions[place] for place in places.tolist()],
            Tokens(self.tokens.ids[places], self.tokens.mask[places]),
            None if self.numbers is None else self.numbers[places],
            None if self.of_image is None else self.of_image[places],
        )


@dataclass(frozen=True)
class Batch:
    """One step's input. `indices` and `repeats` (B,) name the sample and its augmentation; pixels are (B, 3, H, W).

    Where the pairs hold embeddings in place of pictures, `pixels` are these, (B, D).
    `texts` has an entry for each language, and with `captions.also_other` a second one, `zh-other` and `en-other`.
    `lines` counts the texts that have no image. Each teacher that sees pictures here has its pixels in
    `teacher_pixels`.
    """

    indices: torch.Tensor
    repeats: torch.Tensor
    pixels: torch.Tensor
    teacher_pixels: tuple[torch.Tensor, ...]
    texts: dict[str, Texts]
    lines: int = 0

    def to(self, device: torch.device | str) -> Batch:
        return replace(
            self,
            pixels=self.pixels.to(device),
            teacher_pixels=tuple(pixels.to(device) for pixels in self.teacher_pixels),
            texts={language: texts.to(device) for language, texts in self.texts.items()},
        )

    def parts(self, parts: int) -> list[Batch]:
        """The batch in equal parts, images and their texts together."""
        images = len(self.pixels)
        size = images // parts
        return [
            Batch(
                self.indices[here],
                self.repeats[here],
                self.pixels[here],
                tuple(pixels[here] for pixels in self.teacher_pixels),
                {name: texts.part(number, parts, images, self.lines) for name, texts in self.texts.items()},
                self.lines // parts,
            )
            for number in range(parts)
            for here in [slice(number * size, (number + 1) * size)]
        ]


@dataclass(frozen=True)
class Reader:
    """Turns (sample, epoch) pairs into a Batch; runs in the loader's worker processes.

    `preprocess` makes the student's pixels, each of `for_teachers` a teacher's, of the same augmented picture.
    `repeats` bounds how many different augmentations a sample has (0: a new one each epoch). `find_shared` fills
    Texts.numbers and Texts.of_image.
    """

    table: PairTable
    seed: int
    augment: Augment
    captions: CaptionOptions
    preprocess: Callable[[Image.Image], np.ndarray]
    tokenize: Callable[[list[str]], Tokens]
    for_teachers: tuple[Callable[[Image.Image], np.ndarray], ...] = ()
    repeats: int = 0
    find_shared: bool = False
    kept: KeptPictures = field(default_factory=KeptPictures, compare=False, repr=False)

    def picture(self, index: int, repeat: int) -> Image.Image:
        """One sample's `repeat`-th augmented picture. Raises DcclipError where the image can't be read."""
        if self.repeats:  # the same augmentations come again, so they are what is worth keeping
            return self.kept.get((index, repeat), lambda: self._changed(self._decoded(index), index, repeat))
        return self._changed(self.kept.get(index, lambda: self._decoded(index)), index, repeat)

    def _changed(self, image: Image.Image, index: int, repeat: int) -> Image.Image:
        return self.augment(image, generator(self.seed, index, repeat))

    def _decoded(self, index: int) -> Image.Image:
        pair = self.table[index]
        try:
            return decode(pair.image)
        except DcclipError as error:
            raise DcclipError(f"{self.table.path}: pair {pair.key}: {error.what}", error.hint) from None

    def __getitems__(self, samples: list[Sample]) -> Batch | DcclipError:
        """The batch of these samples, or what is wrong with them: torch would lose the hint of an error raised here."""
        try:
            return self.batch(samples)
        except DcclipError as error:
            return error

    def batch(self, samples: list[Sample]) -> Batch:
        """The batch of these samples. Raises DcclipError where an image can't be read or a language is missing."""
        import torch

        seen = [sample for sample in samples if sample[0] < self.table.pictures]
        lines = [sample for sample in samples if sample[0] >= self.table.pictures]
        repeats = [epoch % self.repeats if self.repeats else epoch for _, epoch in seen]
        if self.table.embeddings is not None:
            numbers = torch.tensor([index for index, _ in seen])
            pixels = torch.from_numpy(self.table.embeddings[numbers.numpy()])
            return Batch(numbers, torch.tensor(repeats), pixels, (), self._all_texts(seen, lines))
        pictures = [self.picture(index, repeat) for (index, _), repeat in zip(seen, repeats, strict=True)]
        return Batch(
            indices=torch.tensor([index for index, _ in seen], dtype=torch.int64),
            repeats=torch.tensor(repeats, dtype=torch.int64),
            pixels=_pixels(pictures, self.preprocess),
            teacher_pixels=tuple(_pixels(pictures, preprocess) for preprocess in self.for_teachers),
            texts=self._all_texts(seen, lines),
            lines=len(lines),
        )

    def _all_texts(self, seen: list[Sample], lines: list[Sample]) -> dict[str, Texts]:
        first = 1.0 if self.captions.also_other else self.captions.first
        chosen: dict[str, tuple[Language, float]] = {
            language: (language, first) for language in self.captions.languages
        }
        if self.captions.also_other:
            chosen |= {language + OTHER: (language, 0.0) for language in self.captions.languages}
        texts = {name: self._texts(language, seen, lines, share) for name, (language, share) in chosen.items()}
        found = {name: one for name, one in texts.items() if one is not None}
        if len(found) < len(texts) and (found or not self.table.has_bare_pictures):
            language = next(name for name in texts if name not in found).removesuffix(OTHER)
            raise DcclipError(
                f"{self.table.path}: a whole batch has no '{language}' captions",
                f"train on other languages with captions.languages, or add {language} captions to the data",
            )
        return found

    def _texts(self, language: Language, seen: list[Sample], lines: list[Sample], first: float) -> Texts | None:
        import torch

        captions = self.table.captions(language)
        # The order is shuffled already, so the first are as good as any.
        sharing = max(1, round(self.captions.share * len(seen)))
        places = [*enumerate(seen[:sharing]), *enumerate(lines, len(seen))]
        places = [(row, sample) for row, sample in places if captions[sample[0]]]
        if not places:
            return None
        chosen = [
            _choose(captions[index], first, generator(self.seed ^ 0x7E97, index, epoch)) for _, (index, epoch) in places
        ]
        rows = torch.tensor([row for row, _ in places])
        if not self.find_shared:
            return Texts(rows, chosen, self.tokenize(chosen))
        if self.table.embeddings is not None:  # two pairs in one place are no negatives of each other
            numbers = torch.tensor([_number(self.table.embeddings[index].tobytes()) for _, (index, _) in places])
            return Texts(rows, chosen, self.tokenize(chosen), numbers, numbers[:, None])
        own = [captions[index] for _, (index, _) in places]
        most = max(map(len, own))
        # Filled up with the first caption of each, which changes nothing.
        filled = [(*several, *several[:1] * (most - len(several))) for several in own]
        of_image = [[_number(text.encode()) for text in several] for several in filled]
        numbers = torch.tensor([_number(text.encode()) for text in chosen])
        return Texts(rows, chosen, self.tokenize(chosen), numbers, torch.tensor(of_image))


def _pixels(pictures: list[Image.Image], preprocess: Callable[[Image.Image], np.ndarray]) -> torch.Tensor:
    import torch

    return (
        torch.from_numpy(np.stack([preprocess(picture) for picture in pictures]))
        if pictures
        else torch.zeros(0, 3, 1, 1)
    )


def _number(content: bytes) -> int:
    """A hash of 64 bits, the same in every process."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


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
