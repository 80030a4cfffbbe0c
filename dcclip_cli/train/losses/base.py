"""What a loss sees, and what every loss is: options, a weight that may change over the run, a formula.

Shapes: B images, N texts of one language, D the shared width, C channels, h x w a map's grid, L tokens, W a text width.
Embeddings given to a loss are not normalised; every loss says what it does to them. All sums are means over the batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticKnownError

from dcclip_cli.options import Options

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dcclip_cli.model.towers import ImageFeatures, TextFeatures

Needs = Literal["images", "texts", "pairs"]


@dataclass(frozen=True)
class Outputs:
    """What one model, student or teacher, makes of a batch, texts keyed as in Batch.

    Embeddings are those of all processes, maps and tokens this process's own. `rows` (N,) says which image each text
    belongs to; numbers from B on are lines without one. `logit_scale` is 1 / temperature, `logit_bias` what a sigmoid
    loss adds. `shared` (N, N), where the task asks for it, is true at [i, j] if text j is another pair's that image i
    has as well; `mine` (N,) says which texts are this process's, and is left out where all are.
    """

    image: ImageFeatures
    texts: dict[str, TextFeatures]
    rows: dict[str, Tensor]
    logit_scale: Tensor | None = None
    logit_bias: Tensor | None = None
    shared: dict[str, Tensor] = field(default_factory=dict)
    mine: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Widths:
    """The widths that adapters join: shared space, channels of the last image map, text tower; maps by layer."""

    embedding: int
    image_map: int
    text_tokens: int
    other_maps: Mapping[int, int] = field(default_factory=dict)

    def layer(self, number: int) -> int:
        """Channels of an image layer's map, -1 the last."""
        return self.image_map if number == -1 else self.other_maps[number]


class Schedule(Options):
    """A weight that changes over the run: `start` until `begin`, `end` from `finish` on, between them on a curve."""

    start: float = Field(ge=0, description="The weight at first")
    end: float = Field(ge=0, description="The weight at last")
    begin: float = Field(0.0, ge=0, le=1, description="Share of the run after which it changes")
    finish: float = Field(1.0, ge=0, le=1, description="Share of the run after which it stays")
    curve: Literal["linear", "cosine"] = Field("linear", description="cosine: slow at both ends")

    @model_validator(mode="after")
    def _begins_before_it_finishes(self) -> Self:
        if self.begin > self.finish:
            raise ValueError(f"begin ({self.begin}) must not be more than finish ({self.finish})")
        return self

    def at(self, done: float) -> float:
        """The weight when a share `done` of the run, in 0..1, is over."""
        span = self.finish - self.begin
        share = min(1.0, max(0.0, (done - self.begin) / span)) if span else float(done >= self.finish)
        if self.curve == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.start + share * (self.end - self.start)


Weight = float | Schedule


class Loss(Options, ABC):
    """A loss with its weight."""

    kind: str
    weight: Weight = Field(1.0, description="Factor on this loss in the sum, a number or a schedule")
    needs: ClassVar[frozenset[Needs]] = frozenset({"pairs"})  # any one of these kinds of data is enough
    needs_teacher: ClassVar[bool] = True
    embeddings_only: ClassVar[bool] = True  # whether it can be had from the whole batch's embeddings alone

    @field_validator("weight")
    @classmethod
    def _no_negative_weight(cls, weight: Weight) -> Weight:
        # A bound on the number itself would, beside a schedule, be told as two mistakes.
        if isinstance(weight, float) and weight < 0:
            raise PydanticKnownError("greater_than_equal", {"ge": 0})
        return weight

    def weight_at(self, done: float) -> float:
        """The weight when a share `done` of the run, in 0..1, is over."""
        return self.weight.at(done) if isinstance(self.weight, Schedule) else self.weight

    def adapters(self, student: Widths, teacher: Widths) -> dict[str, nn.Module]:
        """Layers that are trained with the student and thrown away after: none unless a loss says so."""
        return {}

    @property
    def further_student_maps(self) -> tuple[int, ...]:
        """The student's image layers whose maps it needs, the last one apart."""
        return ()

    @property
    def further_teacher_maps(self) -> tuple[int, ...]:
        """The teacher's image layers whose maps it needs, the last one apart."""
        return ()

    def chance(self, student: Outputs) -> dict[str, float]:
        """What terms would be if the student were guessing, before the weight, where that is known."""
        return {}

    @abstractmethod
    def terms(
        self, student: Outputs, teachers: Sequence[Outputs], adapters: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        """The loss before the weight, in one or more named scalars whose sum it is."""


class TeacherLoss(Loss):
    """A loss against one of the recipe's teachers."""

    teacher: int = Field(0, ge=0, description="Which teacher: 0 is `teacher`, 1 the first of distill.more_teachers")

    def terms(
        self, student: Outputs, teachers: Sequence[Outputs], adapters: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        return {self.kind: self(student, teachers[self.teacher], adapters)}

    @abstractmethod
    def __call__(self, student: Outputs, teacher: Outputs, adapters: Mapping[str, nn.Module]) -> Tensor:
        """The loss, a scalar, before the weight."""


def mean_of(losses: Sequence[Tensor], like: Tensor) -> Tensor:
    """The mean of scalars; 0 on the device of `like` where there are none."""
    return sum(losses[1:], losses[0]) / len(losses) if losses else like.new_zeros(())


def of_pairs(rows: Tensor, images: int) -> Tensor | None:
    """(N,) which texts belong to an image; None where all do."""
    with_image = rows < images
    return None if bool(with_image.all()) else with_image


def take(values: Tensor, chosen: Tensor | None) -> Tensor:
    """The chosen rows; the very same tensor where all are, so that gradients are summed in the same order."""
    return values if chosen is None else values[chosen]
