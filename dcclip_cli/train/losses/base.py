"""Base classes of losses, and what a loss gets: the outputs of the student and of the teachers for
a batch.

Shapes: B images, N texts of one language, D the shared width, C channels, h x w a map's grid, L
tokens, W a text width. Tensors given to a loss are in fp32, and embeddings not normalized. All
sums are means over the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.options import Options
from dcclip_cli.data.batch import IMAGES, TextCounts, count_texts
from dcclip_cli.data.pair import Language

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dcclip_cli.model.towers import ImageFeatures, TextFeatures

Needs = Literal["images", "texts", "pairs"]
Tower = Literal["image", "text"]
WeightNumber = Annotated[float, Field(ge=0, le=1e6)]
BOTH: frozenset[Tower] = frozenset({"image", "text"})


@dataclass(frozen=True)
class ClassOutputs:
    """The classes of a batch's images.

    `names` are the student's embeddings (C, D) of the class names in each language, `labels` (B,)
    the class of each image, -1 for one without, and `counts` (C,) the samples of each class in the
    data.
    """

    names: dict[Language, Tensor]
    labels: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Outputs:
    """What one model, student or teacher, computes for a batch; texts keyed as in Batch.

    Embeddings are those of all processes, maps and tokens this process's own. `image_index` (N,)
    is the image that each text belongs to; numbers from B on are texts without one. `logit_scale`
    is 1 / temperature, `logit_bias` the sigmoid loss's bias. `false_negatives`, where caption ids
    are known, are two masks (n, N) with rows for the n texts of this process: the first is true at
    [i, j] if text j belongs to another pair and is a caption of image i as well, the second if
    text i is one of image j. `counts` are those of all processes' texts, `process_counts` those of
    the texts of each process, of which the ones with an image come first, and `mean_counts` those
    of the mean part of a batch in parts. `classes` are the student's alone, where a loss needs
    them.
    """

    image: ImageFeatures
    texts: dict[str, TextFeatures]
    image_index: dict[str, Tensor]
    logit_scale: Tensor | None = None
    logit_bias: Tensor | None = None
    false_negatives: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    counts: Mapping[str, TextCounts] = field(default_factory=dict)
    process_counts: Mapping[str, Sequence[TextCounts]] = field(default_factory=dict)
    mean_counts: Mapping[str, TextCounts] = field(default_factory=dict)
    classes: ClassOutputs | None = None

    def cut(self, dims: int) -> Outputs:
        """The same with the first `dims` numbers of each embedding."""
        texts = {
            name: replace(features, embedding=features.embedding[:, :dims])
            for name, features in self.texts.items()
        }
        image = replace(self.image, embedding=self.image.embedding[:, :dims])
        classes = self.classes
        if classes is not None:
            names = {language: vectors[:, :dims] for language, vectors in classes.names.items()}
            classes = replace(classes, names=names)
        return replace(self, image=image, texts=texts, classes=classes)

    def in_fp32(self, features: bool) -> Outputs:
        """The same with embeddings in fp32, and with `features` maps and tokens as well."""
        image = replace(self.image, embedding=self.image.embedding.float())
        texts = {
            name: replace(text, embedding=text.embedding.float())
            for name, text in self.texts.items()
        }
        if features:
            maps = {layer: layer_map.float() for layer, layer_map in image.maps.items()}
            image = replace(image, map=image.map.float(), maps=maps)
            texts = {
                name: replace(text, tokens=text.tokens.float()) for name, text in texts.items()
            }
        return replace(self, image=image, texts=texts)

    def weights(self, of: Literal["texts", "paired", "parallel", "tokens"]) -> dict[str, float]:
        """The number of such texts in each language of the batch, divided by that in its mean
        part; 0: this has none.

        With these weights the mean over parts of a loss that is a mean over texts is the loss of
        the whole batch.
        """
        counts = self.text_counts
        means = ((name, getattr(mean, of)) for name, mean in (self.mean_counts or counts).items())
        return {
            name: getattr(counts[name], of) / mean if name in counts else 0.0
            for name, mean in means
            if mean
        }

    @property
    def text_counts(self) -> Mapping[str, TextCounts]:
        """`counts`, or as the tensors say."""
        return self.counts or count_texts(self.image_index, len(self.image.embedding), {})

    @property
    def embeddings(self) -> dict[str, Tensor]:
        """The embeddings of texts by language and of IMAGES."""
        return {
            IMAGES: self.image.embedding,
            **{name: features.embedding for name, features in self.texts.items()},
        }

    def paired(self, language: str) -> Tensor | None:
        """Positions of the texts that belong to an image; None where all do."""
        import torch

        counts = self.text_counts[language]
        index = self.image_index[language]
        if counts.paired == counts.texts:
            return None
        if language not in self.process_counts:
            return (index < len(self.image.embedding)).nonzero()[:, 0]
        # Of counts that the host has: no device is waited for.
        firsts = accumulate(
            (int(of_process.texts) for of_process in self.process_counts[language]), initial=0
        )
        ranges = (
            torch.arange(first, first + int(of_process.paired), device=index.device)
            for first, of_process in zip(firsts, self.process_counts[language], strict=False)
        )
        return torch.cat([*ranges])

    def local_rows(self, language: str, of: Literal["texts", "paired", "parallel"]) -> slice | None:
        """This process's rows of such texts, or of the images where `language` is IMAGES; None for
        a single process.
        """
        from dcclip_cli.train.distributed import process_count, process_index

        if (processes := process_count()) == 1:
            return None
        images = [len(self.image.embedding) // processes] * processes
        counts = [
            int(getattr(of_process, of)) for of_process in self.process_counts.get(language, ())
        ]
        first = sum((counts or images)[: process_index()])
        size = (counts or images)[process_index()]
        return slice(first, first + size)

    def in_both(self, zh: str, en: str) -> tuple[Tensor | None, Tensor | None]:
        """Positions of the texts in one language and in the other whose image has both; None where
        all images do.
        """
        import torch

        zh_index = self.image_index[zh]
        en_index = self.image_index[en]
        if self.paired(zh) is self.paired(en) is None and len(zh_index) == len(en_index) == len(
            self.image.embedding
        ):
            return None, None
        return torch.isin(zh_index, en_index).nonzero()[:, 0], torch.isin(
            en_index, zh_index
        ).nonzero()[:, 0]


@dataclass(frozen=True)
class Widths:
    """The widths that adapters join: shared space, channels of the last image map, text tower;
    maps by layer.
    """

    embedding: int
    image_map: int
    text_tokens: int
    other_maps: Mapping[int, int] = field(default_factory=dict)

    def layer(self, number: int) -> int:
        """Channels of an image layer's map, -1 the last."""
        return self.image_map if number == -1 else self.other_maps[number]


class Schedule(Options):
    """A weight that changes linearly over the run."""

    start: WeightNumber = Field(description="Weight at the start of the run")
    end: WeightNumber = Field(description="Weight at the end of the run")


# The discriminator keeps a wrong schedule from being reported as a wrong number as well.
Weight = Annotated[
    Annotated[WeightNumber, Tag("number")] | Annotated[Schedule, Tag("schedule")],
    Discriminator(lambda weight: "schedule" if isinstance(weight, dict | Schedule) else "number"),
]


class Loss(Options, ABC):
    """A loss: its options and its formula, with a weight."""

    kind: str
    weight: Weight = Field(
        1.0, description="Weight of this loss in the sum: a number or a schedule"
    )
    needs: ClassVar[frozenset[Needs]] = frozenset(
        {"pairs"}
    )  # any one of these kinds of data is enough
    joint: ClassVar[bool] = False  # whether images and texts together are enough, without pairs
    trains: ClassVar[frozenset[Tower]] = frozenset()  # `trained_towers`, if no option changes them
    reaches: ClassVar[frozenset[Tower]] = (
        BOTH  # with a gradient, if it trains neither in every parameter
    )
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    embeddings_only: ClassVar[bool] = (
        True  # whether it can be computed from the whole batch's embeddings alone
    )
    compares: ClassVar[bool] = (
        True  # the samples of a batch with each other, so that the parts of a batch are another
    )

    def problem(self, kinds: Collection[str], teachers: int) -> DcclipError | None:
        """What is wrong with this loss on data of these kinds, with so many teachers."""
        if self.needs & set(kinds) or (self.joint and {"images", "texts"} <= set(kinds)):
            return None
        keys = ["data.train" if kind == "pairs" else f"data.{kind}" for kind in sorted(self.needs)]
        hint = Message(
            "set {}, or remove the loss",
            " or ".join([*keys, *(["data.images and data.texts"] if self.joint else [])]),
        )
        return DcclipError("the data contains nothing that the loss {} can use", hint, self.kind)

    def weight_at(self, done: float) -> float:
        """The weight when a fraction `done` of the run, in 0..1, is over."""
        if isinstance(self.weight, Schedule):
            return self.weight.start + done * (self.weight.end - self.weight.start)
        return self.weight

    @property
    def trained_towers(self) -> frozenset[Tower]:
        """The towers that get a gradient in every parameter from a loss on their embeddings,
        whatever the batch.
        """
        return self.trains

    def reached_towers(self, languages: Collection[Language]) -> frozenset[Tower]:
        """The towers that a gradient of the loss may reach, with captions in these languages."""
        return self.trained_towers or self.reaches

    @property
    def uses_temperature(self) -> bool:
        """Whether the loss trains the model's own temperature."""
        return False

    @property
    def uses_bias(self) -> bool:
        """Whether the loss trains the bias of the logits."""
        return False

    @property
    def student_layers_needed(self) -> tuple[int, ...]:
        """The student's image layers whose maps the loss needs, without the last one."""
        return ()

    @property
    def teacher_layers_needed(self) -> tuple[int, ...]:
        """The teacher's image layers whose maps the loss needs, without the last one."""
        return ()

    def chance(self, student: Outputs) -> dict[str, float]:
        """Values of terms at chance level, before the weight, where they are known."""
        return {}

    @abstractmethod
    def terms(
        self, student: Outputs, teachers: Sequence[Outputs], adapters: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        """The loss before the weight: named scalars whose sum it is."""


class TeacherLoss(Loss):
    teacher: int = Field(
        0,
        ge=0,
        le=100,
        description="Number of the teacher: 0 is the recipe's `teacher`, 1 the first of `more_teachers`",
    )

    def problem(self, kinds: Collection[str], teachers: int) -> DcclipError | None:
        if self.teacher < teachers:
            return super().problem(kinds, teachers)
        count = (
            Message("the recipe has {}, numbered from 0", teachers)
            if teachers
            else Message("the recipe has none")
        )
        problem = Message("the loss {} uses teacher {}, but {}", self.kind, self.teacher, count)
        return DcclipError(
            problem, "add teachers to more_teachers, or use a smaller teacher number"
        )

    def adapters(self, student: Widths, teacher: Widths) -> dict[str, nn.Module]:
        """Layers that are trained with the student and discarded afterwards; losses share those of
        the same name.
        """
        return {}

    def terms(
        self, student: Outputs, teachers: Sequence[Outputs], adapters: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        return {self.kind.rpartition(":")[2]: self(student, teachers[self.teacher], adapters)}

    @abstractmethod
    def __call__(
        self, student: Outputs, teacher: Outputs, adapters: Mapping[str, nn.Module]
    ) -> Tensor:
        """The loss, a scalar, before the weight."""


def learns_from(losses: Sequence[Loss], teacher: int) -> list[Loss]:
    return [loss for loss in losses if not isinstance(loss, TeacherLoss) or loss.teacher == teacher]


def student_layers(losses: Sequence[Loss]) -> list[int]:
    """The student's image layers, without the last one, whose maps some loss needs."""
    return sorted({layer for loss in losses for layer in loss.student_layers_needed})


def layers_of(losses: Sequence[Loss], teacher: int) -> tuple[int, ...]:
    """The teacher's image layers, without the last one, whose maps some loss needs."""
    return tuple(
        sorted(
            {layer for loss in learns_from(losses, teacher) for layer in loss.teacher_layers_needed}
        )
    )


def mean_over_languages(
    weights: Mapping[str, float], loss: Callable[[str], Tensor], like: Tensor
) -> Tensor:
    """The mean of a loss over the languages of a batch, of which a part may lack some; 0 like
    `like` without any.
    """
    losses = [weight * loss(language) for language, weight in weights.items() if weight]
    return sum(losses[1:], losses[0]) / len(weights) if losses else like.new_zeros(())


def per_process(count: int, local: slice | None) -> float:
    """The divisor of a loss's sum over `local` rows with which the mean over processes is that
    over all `count`.
    """
    from dcclip_cli.train.distributed import process_count

    return count if local is None else count / process_count()


def take(values: Tensor, chosen: Tensor | slice | None) -> Tensor:
    """The chosen rows; the very same tensor where `chosen` is None, so that gradients are summed
    in the same order.
    """
    return values if chosen is None else values[chosen]
