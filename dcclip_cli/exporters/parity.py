"""Does the exported model say the same as the model that it came from?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from pydantic import Field

from dcclip_cli.data.pair import Language
from dcclip_cli.errors import DcclipError
from dcclip_cli.exporters.rounding import LARGEST_PAIR_SUM
from dcclip_cli.exporters.samples import Samples
from dcclip_cli.options import Options
from dcclip_cli.predict.encoder import Encoder
from dcclip_cli.predict.images import embed
from dcclip_cli.predict.zero_shot import class_embeddings, fill
from dcclip_cli.progress import Progress, Silent

_TIE = 1e-6  # of cosines: the model can't tell such texts apart, some are of the same pieces
BATCH_SIZES = (1, 3, 16)  # taken in turn, so that a batch size or a text length frozen into a graph shows


class Thresholds(Options):
    """How far an export may be from its model; below that it fails. Defaults depend on the precision."""

    max_difference: float | None = Field(
        None, ge=0, description="Of any number in an embedding of length 1; default: fp32 1e-4, fp16 0.02, int8 none"
    )
    min_centred_cosine: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="Of embeddings less their mean; default: fp32 0.9999, fp16 0.999, int8 0.9",
    )
    min_agreement: float | None = Field(
        None, ge=0, le=1, description="Share of images whose best text stays; default: fp32 0.99, fp16 0.98, int8 0.95"
    )
    max_accuracy_loss: float | None = Field(
        None, ge=0, description="Points of top-1 on the recipe's test sets, in any language; default: 0.5"
    )
    images: int = Field(1000, ge=1, description="At most so many images of each of the recipe's test sets")


@dataclass(frozen=True)
class Limits:
    """Thresholds with nothing left open."""

    max_difference: float
    min_centred_cosine: float
    min_agreement: float
    max_accuracy_loss: float


# fp32, measured over 26 image and 9 text towers: differences below 1e-5.
DEFAULTS = {
    "fp32": Limits(1e-4, 0.9999, 0.99, 0.5),
    "fp16": Limits(0.02, 0.999, 0.98, 0.5),
    "int8": Limits(2.0, 0.9, 0.95, 0.5),
}


@dataclass(frozen=True)
class Classes:
    """What a test set's images may be in one language: names (C,), templates for them, the images' labels (N,)."""

    names: Sequence[str]
    templates: Sequence[str]
    labels: np.ndarray


@dataclass(frozen=True)
class HeldOutImages:
    """A test set of `count` images; `picture(i)` reads one."""

    name: str
    count: int
    picture: Callable[[int], Image.Image]
    classes: Mapping[Language, Classes]


@dataclass(frozen=True)
class Accuracy:
    """Top-1 (0..1) on a test set in one language before and after the export, and how often both say the same class."""

    dataset: str
    language: Language
    images: int
    before: float
    after: float
    agreement: float


@dataclass(frozen=True)
class Parity:
    """How far two models are apart.

    `*_max_difference`: of any number in an embedding of length 1. `*_centred_cosine`: mean over samples, after the mean
    embedding is taken away, since raw cosines look good even between unlike models. `agreement`: the share of images
    for which both find the same label the most fitting, mean over the languages; `image_agreement` and
    `text_agreement`: on samples and test sets, if only the one tower were exchanged. `int8_largest_pair_sum`: what two
    products of an int8 graph can add up to, which CPUs without VNNI do in 16 bits; None without int8 graphs.
    """

    source: str
    images: int
    texts: int
    image_max_difference: float
    text_max_difference: float
    image_centred_cosine: float
    text_centred_cosine: float
    agreement: float
    image_agreement: float
    text_agreement: float
    accuracy: tuple[Accuracy, ...] = ()
    int8_largest_pair_sum: int | None = None

    @property
    def overflows(self) -> bool:
        """Whether an int8 graph can be wrong on CPUs without VNNI: a mistake that looser rounding would only hide."""
        return (self.int8_largest_pair_sum or 0) > LARGEST_PAIR_SUM

    def by_language(self) -> dict[Language, Accuracy]:
        """All test sets of a language taken as one."""
        found = {}
        for language in dict.fromkeys(one.language for one in self.accuracy):
            several = [one for one in self.accuracy if one.language == language]
            images = sum(one.images for one in several)
            before, after, agreement = (
                sum(getattr(one, figure) * one.images for one in several) / images
                for figure in ("before", "after", "agreement")
            )
            found[language] = Accuracy("all test sets", language, images, before, after, agreement)
        return found

    def shortfalls(self, limits: Limits) -> list[str]:
        """A sentence for each threshold that is not held."""
        found = []
        for tower in ("image", "text"):
            difference = getattr(self, f"{tower}_max_difference")
            if not difference <= limits.max_difference:
                found.append(f"{tower} embeddings differ by {difference:.2g}, more than {limits.max_difference:g}")
            cosine = getattr(self, f"{tower}_centred_cosine")
            if not cosine >= limits.min_centred_cosine:
                found.append(f"the {tower} towers' centred cosine is {cosine:.4f}, under {limits.min_centred_cosine:g}")
        if not self.agreement >= limits.min_agreement:
            found.append(
                f"{self.agreement:.1%} of {self.images} images ({self.source}) keep their best text, "
                f"less than {limits.min_agreement:.1%}"
            )
        for language, one in self.by_language().items():
            if not one.agreement >= limits.min_agreement:
                found.append(
                    f"{one.agreement:.1%} of the test images keep their class in {language}, "
                    f"less than {limits.min_agreement:.1%}"
                )
            loss = 100 * (one.before - one.after)
            if not loss <= limits.max_accuracy_loss + 1e-9:
                found.append(f"top-1 in {language} falls by {loss:.2f} points, more than {limits.max_accuracy_loss:g}")
        if self.overflows:
            found.append(
                f"two int8 products can add up to {self.int8_largest_pair_sum}, which overflows on CPUs without VNNI "
                f"(at most {LARGEST_PAIR_SUM})"
            )
        return found


@dataclass(frozen=True)
class _Answers:
    """A model's embeddings: of the samples, and of each test set's images (N, D) and classes (C, D) by language."""

    images: np.ndarray
    texts: np.ndarray
    tests: list[tuple[np.ndarray, dict[Language, np.ndarray]]]


@dataclass
class Original:
    """A model's answers, asked once, that its exports are held against. Samples are taken in one batch of all."""

    model: Encoder
    samples: Samples
    tests: Sequence[HeldOutImages] = ()
    images: int = 1000
    progress: Progress = field(default_factory=Silent)

    def __post_init__(self) -> None:
        texts = {text for several in (*self.samples.labels, self.samples.texts) for text in several}
        self._texts = sorted(texts, key=lambda text: (len(text), text))
        self._chosen = [_choice(test.count, self.images) for test in self.tests]
        self._answers = self._ask(self.model, lambda encode, items: encode(items))

    def compare(self, exported: Encoder) -> Parity:
        """The parity of an exported model, run in batches of several sizes."""
        mine, theirs = self._answers, self._ask(exported, _in_batches)
        same: list[tuple[float, float, float, int]] = []  # both towers, image alone, text alone; images
        for several in self.samples.labels:
            rows = [self._texts.index(label) for label in several]
            same.append(_agreement(mine.images, theirs.images, mine.texts[rows], theirs.texts[rows]))
        samples = float(np.mean([one[0] for one in same]))
        accuracy = []
        for test, chosen, before, after in zip(self.tests, self._chosen, mine.tests, theirs.tests, strict=True):
            for language, classes in test.classes.items():
                same.append(_agreement(before[0], after[0], before[1][language], after[1][language]))
                was, became = (
                    float((best(images, texts[language]) == classes.labels[chosen]).mean())
                    for images, texts in (before, after)
                )
                accuracy.append(Accuracy(test.name, language, len(chosen), was, became, same[-1][0]))
        weights = [one[3] for one in same]
        return Parity(
            source=self.samples.source,
            images=len(mine.images),
            texts=len(mine.texts),
            image_max_difference=float(np.abs(mine.images - theirs.images).max()),
            text_max_difference=float(np.abs(mine.texts - theirs.texts).max()),
            image_centred_cosine=centred_cosine(mine.images, theirs.images),
            text_centred_cosine=centred_cosine(mine.texts, theirs.texts),
            agreement=samples,
            image_agreement=float(np.average([one[1] for one in same], weights=weights)),
            text_agreement=float(np.average([one[2] for one in same], weights=weights)),
            accuracy=tuple(accuracy),
        )

    def _ask(self, model: Encoder, batched: Callable[..., np.ndarray]) -> _Answers:
        pixels = np.stack([model.preprocess(image) for image in self.samples.images])
        tests = []
        for test, chosen in zip(self.tests, self._chosen, strict=True):
            rows = []
            with self.progress.task(f"parity on {test.name}", len(chosen)) as task:
                for index, found in embed(model, chosen, test.picture):
                    if isinstance(found, DcclipError):
                        raise DcclipError(f"data set {test.name}, image {index}: {found.what}", found.hint)
                    rows.append(found)
                    task.advance()
            tests.append((np.stack(rows), dict(_class_embeddings(model, test))))
        return _Answers(batched(model.encode_pixels, pixels), batched(model.encode_texts, self._texts), tests)


def _class_embeddings(model: Encoder, test: HeldOutImages) -> Iterator[tuple[Language, np.ndarray]]:
    for language, classes in test.classes.items():
        yield language, class_embeddings(model, [fill(classes.templates, name) for name in classes.names])


def best(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """(B,) the most fitting of texts (N, D) for each of images (B, D)."""
    return np.asarray((images @ texts.T).argmax(axis=1))


def _agreement(
    images: np.ndarray, other_images: np.ndarray, texts: np.ndarray, other_texts: np.ndarray
) -> tuple[float, float, float, int]:
    cosines = images @ texts.T
    highest = cosines.max(axis=1) - _TIE
    exchanged = ((other_images, other_texts), (other_images, texts), (images, other_texts))
    both, image, text = (
        float((cosines[np.arange(len(images)), best(*towers)] >= highest).mean()) for towers in exchanged
    )
    return both, image, text, len(images)


def _choice(count: int, limit: int) -> list[int]:
    """All of `count`, or a fixed random choice."""
    return sorted(np.random.default_rng(0).permutation(count)[:limit].tolist())


def centred_cosine(first: np.ndarray, second: np.ndarray) -> float:
    """The mean cosine of the rows of two (N, D), after the mean row of the first is taken from both."""
    mean = first.mean(axis=0)
    first, second = first - mean, second - mean
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(((first * second).sum(axis=1) / np.maximum(lengths, 1e-12)).mean())


def _in_batches(encode: Callable[..., np.ndarray], items: Sequence[str] | np.ndarray) -> np.ndarray:
    results: list[np.ndarray] = []
    start = 0
    while start < len(items):
        size = BATCH_SIZES[len(results) % len(BATCH_SIZES)]
        results.append(encode(items[start : start + size]))
        start += size
    return np.concatenate(results)
