"""A training stage built without data and weights: what its student, teachers, losses and optimizer cannot do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from dcclip_cli.errors import Message
from dcclip_cli.model.blank import blank_teacher
from dcclip_cli.model.hub_models import COPY_AGAIN, library_errors
from dcclip_cli.model.init_from_teacher import check_inherits
from dcclip_cli.model.students import TextTower
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.model.towers import OpenClipTowers, Towers
from dcclip_cli.train.feature_shapes import widths
from dcclip_cli.train.losses.base import Loss, TeacherLoss, Widths
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


@dataclass(frozen=True)
class _OnlyWidths:
    """In place of a teacher's features: adapters need its widths alone."""

    widths: Widths


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
    yield ("optimizer",), partial(_build, shapes, options)


def check_inherited(text: TextTower, student: OpenClipTowers, teacher: Towers) -> None:
    """Raise DcclipError unless the student's text tower can take its initial weights from the teacher."""
    check_inherits(student.model.text, teacher, text.inherit == "layers")


def _teacher_of(loss: Loss, teachers: Sequence[Towers | None]) -> Towers | None:
    number = loss.teacher if isinstance(loss, TeacherLoss) else 0
    return teachers[number] if loss.needs_teacher and number < len(teachers) else None


def _build(shapes: Shapes, options: TrainOptions) -> None:
    """Build adapters and optimizer, where all teachers are known."""
    if None in shapes.teachers:
        return
    needed = {layer for loss in shapes.losses for layer in loss.teacher_layers_needed}
    teachers = [_OnlyWidths(widths(one, sorted(needed))) for one in shapes.teachers if one is not None]
    task = TrainingTask(shapes.student, shapes.losses, teachers)  # type: ignore[arg-type]  # which have no features
    with library_errors(
        Message("{} has no layers in the order that layer_decay needs", shapes.student.name),
        Message("omit layer_decay"),
    ):
        make_optimizer(task, options.optimizer.model_copy(update={"newton_schulz": "fp32"}))
