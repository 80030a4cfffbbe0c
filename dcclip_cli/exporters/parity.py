"""Parity of an export with its model: embeddings, best matches and accuracy, and the limits for
their differences.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from pydantic import Field

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.options import Options
from dcclip_cli.core.progress import Progress, Silent
from dcclip_cli.data.pair import Language
from dcclip_cli.eval.dataset import Classes, DataSet
from dcclip_cli.exporters import Precision, Preprocess
from dcclip_cli.exporters.samples import Samples
from dcclip_cli.inference.encoder import Encoder
from dcclip_cli.inference.images import embed
from dcclip_cli.inference.zero_shot import class_embeddings, fill

# Texts that a model cannot tell apart: a part of the range of an image's cosines, and what
# rounding alone makes.
_TIE = 0.01
_ROUNDING = 1e-6
TOWERS = ("image", "text")
BATCH_SIZES = (
    1,
    3,
    16,
)  # used in turn, so that a batch size or text length frozen into a graph is detected
# fp32, measured on 26 image and 9 text towers: differences below 1e-5. int8: any difference.
_DEFAULTS: Mapping[Precision, Mapping[str, float]] = {
    "fp32": {"max_difference": 1e-4, "min_centred_cosine": 0.9999, "min_agreement": 0.99},
    "fp16": {"max_difference": 0.02, "min_centred_cosine": 0.999, "min_agreement": 0.98},
    "int8": {"min_centred_cosine": 0.9, "min_agreement": 0.95},
}
_RESIZED = (
    0.01  # added to the difference where the graph preprocesses: single pixels differ by 1 of 255
)


class Thresholds(Options):
    """Maximum differences between an export and its model. Defaults depend on the precision."""

    min_centred_cosine: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="Minimum mean cosine of centred embeddings; default: fp32 0.9999, fp16 "
        "0.999, int8 0.9",
    )
    min_agreement: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Minimum fraction of images with the same best text as the model; default: "
        "fp32 0.99, fp16 0.98, "
        "int8 0.95",
    )
    max_accuracy_loss: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Maximum drop of top-1 on the recipe's test sets, in percentage points per "
        "language; default: 0.5",
    )
    images: int = Field(
        1000, ge=1, le=1_000_000, description="Maximum images per test set of the recipe"
    )

    def limits(self, precision: Precision, preprocess: Preprocess = "outside") -> dict[str, float]:
        """The thresholds that hold, by name, with the defaults for `precision`."""
        limits = {**_DEFAULTS[precision], "max_accuracy_loss": 0.5}
        if preprocess == "graph" and "max_difference" in limits:
            limits["max_difference"] += _RESIZED
        return limits | self.model_dump(exclude={"images"}, exclude_none=True)


@dataclass(frozen=True)
class Accuracy:
    """Top-1 (0..1) on a test set in one language, before and after the export, and how often the
    class is the same.
    """

    dataset: str
    language: Language
    images: int
    before: float
    after: float
    agreement: float


@dataclass(frozen=True)
class Parity:
    """How far an export differs from its model.

    `*_max_difference`: largest of any number in a unit-length embedding. `*_centred_cosine`: mean
    over samples, after the mean embedding is subtracted, since raw cosines look good even between
    unlike models. `agreement`: fraction of images with the same best label, or one as near to it
    as a hundredth of the range, mean over the languages; `image_agreement` and `text_agreement`:
    on samples and test sets, if only that tower were replaced. `int8_largest_pair_sum`: largest
    sum of two products in an int8 graph, which CPUs without VNNI compute in 16 bits; None without
    int8 graphs.
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

    def closeness(self, tower: str) -> tuple[float, float]:
        """How well the export's image or text tower does with the model's other one: higher is
        better.
        """
        return getattr(self, f"{tower}_agreement"), getattr(self, f"{tower}_centred_cosine")

    def by_language(self) -> dict[Language, Accuracy]:
        """The accuracy in each language over all test sets together."""
        accuracies = {}
        for language in dict.fromkeys(result.language for result in self.accuracy):
            sets = [result for result in self.accuracy if result.language == language]
            images = sum(result.images for result in sets)
            metrics = ("before", "after", "agreement")
            means = (
                sum(getattr(result, metric) * result.images for result in sets) / images
                for metric in metrics
            )
            accuracies[language] = Accuracy("all test sets", language, images, *means)
        return accuracies

    def shortfalls(self, limits: Mapping[str, float]) -> list[Message]:
        """One sentence for each of the `limits` (see Thresholds) that is exceeded."""
        shortfalls = []
        for tower in TOWERS:
            difference, cosine = (
                getattr(self, f"{tower}_{name}") for name in ("max_difference", "centred_cosine")
            )
            if difference > (limit := limits.get("max_difference", np.inf)):
                shortfalls.append(
                    Message(
                        "{} embeddings differ by {:.2g}, more than {:g}", tower, difference, limit
                    )
                )
            if cosine < (limit := limits["min_centred_cosine"]):
                shortfalls.append(
                    Message(
                        "the centred cosine of the {} towers is {:.4f}, below {:g}",
                        tower,
                        cosine,
                        limit,
                    )
                )
        min_agreement = limits["min_agreement"]
        max_loss = limits["max_accuracy_loss"]
        agreements = [
            (
                Message("{} images ({}) keep their best text", self.images, self.source),
                self.agreement,
            )
        ]
        for language, accuracy in self.by_language().items():
            agreements.append(
                (Message("the test images keep their class in {}", language), accuracy.agreement)
            )
            if (loss := 100 * (accuracy.before - accuracy.after)) > max_loss + 1e-9:
                shortfalls.append(
                    Message(
                        "top-1 in {} drops by {:.2f} points, more than {:g}",
                        language,
                        loss,
                        max_loss,
                    )
                )
        shortfalls += [
            Message("{:.1%} of {}, less than {:.1%}", share, subject, min_agreement)
            for subject, share in agreements
            if share < min_agreement
        ]
        return shortfalls


@dataclass(frozen=True)
class TowerEmbeddings:
    """A tower's embeddings of the samples (N, D), and per test set of its images or its classes by
    language.
    """

    samples: np.ndarray
    tests: list[Any]


class ParityTest:
    """What exports are compared on: samples, and up to `images` of each test set, which have one
    class per image.
    """

    def __init__(
        self,
        samples: Samples,
        tests: Sequence[DataSet] = (),
        images: int = 1000,
        progress: Progress | None = None,
    ) -> None:
        self._samples = samples
        self._tests = tests
        self._progress = progress or Silent()
        self._texts = sorted(
            set(chain(*samples.labels, samples.texts)), key=lambda text: (len(text), text)
        )
        shuffled = (np.random.default_rng(0).permutation(len(test.images)) for test in tests)
        self._chosen = [sorted(numbers[:images].tolist()) for numbers in shuffled]

    def parity(
        self, before: Mapping[str, TowerEmbeddings], after: Mapping[str, TowerEmbeddings]
    ) -> Parity:
        (images, texts), (new_images, new_texts) = (
            [embeddings[tower] for tower in TOWERS] for embeddings in (before, after)
        )
        row_of = {text: row for row, text in enumerate(self._texts)}
        agreements = []
        accuracy = []
        for names in self._samples.labels:
            rows = [row_of[name] for name in names]
            was = (images.samples, texts.samples[rows])
            now = (new_images.samples, new_texts.samples[rows])
            agreements.append(_agreement(was, now))
        agreement = float(np.mean([both for both, _, _ in agreements]))
        for number, (test, chosen) in enumerate(zip(self._tests, self._chosen, strict=True)):
            for language, classes in _classes(test).items():
                was = images.tests[number], texts.tests[number][language]
                now = new_images.tests[number], new_texts.tests[number][language]
                agreements.append(_agreement(was, now))
                old, new = (
                    float((best_texts(*pair) == classes.labels[chosen]).mean())
                    for pair in (was, now)
                )
                accuracy.append(
                    Accuracy(test.name, language, len(chosen), old, new, agreements[-1][0])
                )
        weights = [len(images.samples)] * len(self._samples.labels) + [
            result.images for result in accuracy
        ]
        _, image, text = (
            float(np.average(column, weights=weights)) for column in zip(*agreements, strict=True)
        )
        return Parity(
            source=self._samples.source,
            images=len(images.samples),
            texts=len(texts.samples),
            image_max_difference=float(np.abs(images.samples - new_images.samples).max()),
            text_max_difference=float(np.abs(texts.samples - new_texts.samples).max()),
            image_centred_cosine=centred_cosine(images.samples, new_images.samples),
            text_centred_cosine=centred_cosine(texts.samples, new_texts.samples),
            agreement=agreement,
            image_agreement=image,
            text_agreement=text,
            accuracy=tuple(accuracy),
        )

    def embed(
        self, model: Encoder, tower: str, sizes: Sequence[int] = BATCH_SIZES
    ) -> TowerEmbeddings:
        """One tower's embeddings, those of the samples in batches of these sizes. Raises
        NotFiniteError.
        """
        tests: list[Any] = []
        if tower == "text":
            for test in self._tests:
                prompts = {
                    language: [fill(classes.templates, name) for name in classes.names]
                    for language, classes in _classes(test).items()
                }
                tests.append(
                    {
                        language: class_embeddings(model, texts)
                        for language, texts in prompts.items()
                    }
                )
            return TowerEmbeddings(_in_batches(model.encode_texts, self._texts, sizes), tests)
        pixels = np.stack([model.preprocess(image) for image in self._samples.images])
        for test, chosen in zip(self._tests, self._chosen, strict=True):
            rows = []
            with self._progress.task(Message("parity on {}", test.name), len(chosen)) as task:
                for index, embedding in embed(model, chosen, test.images.load):
                    if isinstance(embedding, DcclipError):
                        raise DcclipError(
                            "data set {}, image {}: {}",
                            embedding.hint,
                            test.name,
                            index,
                            embedding.what,
                        )
                    rows.append(embedding)
                    task.advance()
            tests.append(np.stack(rows))
        return TowerEmbeddings(_in_batches(model.encode_pixels, pixels, sizes), tests)


def _classes(test: DataSet) -> dict[Language, Classes]:
    return {
        language: classes
        for language, classes in test.truth.items()
        if isinstance(classes, Classes)
    }


def best_texts(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """(B,) the most similar of texts (N, D) for each of images (B, D)."""
    return np.asarray((images @ texts.T).argmax(axis=1))


def same_best(cosines: np.ndarray, chosen: np.ndarray) -> float:
    """The fraction of images (B,) whose chosen text is the best by cosines (B, N), or as good as
    that.
    """
    highest = cosines.max(axis=1)
    lowest = cosines.min(axis=1)
    tie = np.maximum(_TIE * (highest - lowest), _ROUNDING)
    return float((cosines[np.arange(len(cosines)), chosen] >= highest - tie).mean())


def _agreement(was: Sequence[np.ndarray], now: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Fractions of images with the same best text by both towers of the export `now`, its image,
    its text tower.
    """
    cosines = was[0] @ was[1].T
    replaced = (now, (now[0], was[1]), (was[0], now[1]))
    both, image, text = (same_best(cosines, best_texts(*towers)) for towers in replaced)
    return both, image, text


def centred_cosine(first: np.ndarray, second: np.ndarray) -> float:
    """The mean cosine of the rows of two (N, D), after the mean row of the first is subtracted
    from both.
    """
    mean = first.mean(axis=0)
    first = first - mean
    second = second - mean
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(((first * second).sum(axis=1) / np.maximum(lengths, 1e-12)).mean())


def _in_batches(
    encode: Callable[..., np.ndarray], items: Sequence[str] | np.ndarray, sizes: Sequence[int]
) -> np.ndarray:
    """What `encode` returns for all items, in batches of `sizes`, used in turn."""
    results: list[np.ndarray] = []
    start = 0
    while start < len(items):
        size = sizes[len(results) % len(sizes)]
        results.append(encode(items[start : start + size]))
        start += size
    return np.concatenate(results)
