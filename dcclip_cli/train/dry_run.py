"""A training stage built without data: what its student, teachers, losses and optimizer cannot do, by shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.optim import Optimizer

from dcclip_cli.data.collator import Batch
from dcclip_cli.errors import Message
from dcclip_cli.model.blank import blank_teacher
from dcclip_cli.model.hub_models import COPY_AGAIN, library_errors
from dcclip_cli.model.inherit import check_inherits
from dcclip_cli.model.students import TextTower
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.model.towers import ImageFeatures, OpenClipTowers, TextFeatures, Towers
from dcclip_cli.train.feature_shapes import Grid, map_grids, widths
from dcclip_cli.train.losses.base import Loss, Outputs, TeacherLoss, Tower, Widths
from dcclip_cli.train.optimizer import make_optimizer
from dcclip_cli.train.options import TrainOptions
from dcclip_cli.train.student import checkpoint_gradients
from dcclip_cli.train.task import TrainingTask, shorter_dims

Question = tuple[tuple[str | int, ...], Callable[[], object]]  # a key of the stage, and what may raise DcclipError


@dataclass(frozen=True)
class Shapes:
    """A stage's losses, its student and its teachers by number, None where a teacher's configuration is not here."""

    losses: Sequence[Loss]
    student: OpenClipTowers
    teachers: Sequence[Towers | None]

    def build(
        self, options: TrainOptions, device: str = "meta", lock: Tower | None = None
    ) -> tuple[TrainingTask, Optimizer] | None:
        """The training task and its optimizer, with random features in place of teachers; None if one is not here."""
        layers = sorted({layer for loss in self.losses for layer in loss.teacher_layers_needed})
        grid = map_grids(self.student)[-1]
        teachers = [_RandomTeacher(widths(one, layers), grid) for one in self.teachers if one is not None]
        if len(teachers) < len(self.teachers):
            return None
        task = TrainingTask(self.student, self.losses, teachers, lock=lock).to(device)
        what = Message("{} has no layers in the order that layer_decay needs", self.student.name)
        with library_errors(what, Message("omit layer_decay")):
            return task, make_optimizer(task, options.optimizer.model_copy(update={"newton_schulz": "fp32"}))


@dataclass(frozen=True)
class _RandomTeacher:
    """Random features with a teacher's widths, and the student's grid, as in the teacher cache."""

    widths: Widths
    grid: Grid

    def features(self, batch: Batch) -> Outputs:
        device, images, wide = batch.pixels.device, len(batch.pixels), self.widths
        maps = {
            layer: torch.rand(images, wide.layer(layer), self.grid.height, self.grid.width, device=device)
            for layer in (-1, *wide.other_maps)
        }
        texts = {
            name: TextFeatures(
                torch.rand(len(one.captions), wide.embedding, device=device),
                torch.rand(*one.tokens.ids.shape, wide.text_tokens, device=device),
                one.tokens.mask,
            )
            for name, one in batch.texts.items()
        }
        image = ImageFeatures(torch.rand(images, wide.embedding, device=device), maps.pop(-1), maps)
        index = {name: one.image_index for name, one in batch.texts.items()}
        return Outputs(image, texts, index, torch.tensor(20.0, device=device))


def open_blank(teacher: Teacher) -> Towers | None:
    """The teacher without weights, after a picture and a text went through it; None where it is not here."""
    towers = blank_teacher(teacher)
    if towers is not None:
        with library_errors(Message("teacher {} cannot be used", teacher.model), COPY_AGAIN):
            widths(towers)
    return towers


def questions(shapes: Shapes, options: TrainOptions) -> Iterator[Question]:
    """What is asked of a stage before it begins, by key: a wrong value raises DcclipError."""
    for number, loss in enumerate(shapes.losses):
        at = ("losses", number)
        if loss.student_layers_needed:
            yield (*at, "student_layers"), partial(widths, shapes.student, loss.student_layers_needed)
        teacher = _teacher_of(loss, shapes.teachers)
        if teacher is not None and loss.teacher_layers_needed:
            yield (*at, "teacher_layers"), partial(widths, teacher, loss.teacher_layers_needed)
    if options.gradient_checkpointing:
        yield ("gradient_checkpointing",), partial(checkpoint_gradients, shapes.student.model, shapes.student.name)
    yield ("dims",), partial(shorter_dims, options.dims, widths(shapes.student).embedding)
    yield ("optimizer",), partial(shapes.build, options)


def check_inherited(text: TextTower, student: OpenClipTowers, teacher: Towers) -> None:
    """Raise DcclipError unless the student's text tower can take its initial weights from the teacher."""
    check_inherits(student.model.text, teacher, text.inherit == "layers")


def _teacher_of(loss: Loss, teachers: Sequence[Towers | None]) -> Towers | None:
    number = loss.teacher if isinstance(loss, TeacherLoss) else 0
    return teachers[number] if loss.needs_teacher and number < len(teachers) else None
