"""The module that both stages train: a student, its adapters, and the losses that its batches come to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from dcclip_cli.data.collator import Batch
from dcclip_cli.model.towers import ImageFeatures, OpenClipTowers, TextFeatures
from dcclip_cli.train.distributed import gather, process_count, process_index, row_counts, widest
from dcclip_cli.train.feature_shapes import widths
from dcclip_cli.train.losses.base import Loss, Outputs, TeacherLoss, Widths
from dcclip_cli.train.losses.contrastive import TaskLoss
from dcclip_cli.train.teachers import TeacherSource
from dcclip_cli.train.trainable import Trainable

Tower = Literal["image", "text"]


class Objective(Trainable):
    """Forward: a batch -> weighted loss terms by name, of the whole batch of all processes."""

    def __init__(
        self,
        student: OpenClipTowers,
        losses: Sequence[Loss],
        teachers: Sequence[TeacherSource] = (),
        teacher_widths: Sequence[Widths] = (),
        seed: int = 0,
        lock: Tower | None = None,
        max_logit_scale: float = 100.0,
        freeze_batch_norms: bool = False,
    ) -> None:
        super().__init__()
        self.student = student
        self._teachers, self._losses = list(teachers), list(losses)
        self._layers = sorted({layer for loss in losses for layer in loss.further_student_maps})
        self._own_widths = widths(student, self._layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapters: dict[str, nn.Module] = {}
            for loss in losses:
                for number, teacher in enumerate(teacher_widths):
                    if isinstance(loss, TeacherLoss) and loss.teacher == number:
                        for name, adapter in loss.adapters(self._own_widths, teacher).items():
                            adapters.setdefault(_adapter_name(name, number), adapter)
        self.adapters = nn.ModuleDict(adapters)
        self._max_log_scale = math.log(max_logit_scale)
        self._locked = {"image": student.model.visual, "text": student.model.text, None: None}[lock]
        self._freeze_batch_norms = freeze_batch_norms
        self._contrasts = any(isinstance(loss, TaskLoss) for loss in losses)
        self._done, self._chance = 0.0, dict[str, float]()
        if isinstance(self._locked, nn.Module):
            self._locked.requires_grad_(False)

    def train(self, mode: bool = True) -> Objective:
        super().train(mode)
        if isinstance(self._locked, nn.Module):
            self._locked.eval()  # its batch norms keep their statistics
        if self._freeze_batch_norms:
            for module in self.student.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        with torch.no_grad():  # what is kept at the end is what the last steps used
            self.student.model.logit_scale.clamp_(max=self._max_log_scale)
        return self

    def begin_step(self, done: float) -> None:
        """Say what share of the run, in 0..1, is over: weights may depend on it."""
        self._done = done

    @property
    def kept(self) -> nn.Module:
        model: nn.Module = self.student.model
        return model

    @property
    def chance(self) -> dict[str, float]:
        return self._chance

    @property
    def embeddings_only(self) -> bool:
        """Whether the losses can be had from the batch's embeddings alone."""
        return all(loss.embeddings_only for loss in self._losses)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.terms(batch, self.side(batch))

    def side(self, batch: Batch) -> Outputs:
        """What the student makes of this process's batch."""
        texts = {name: self.student.text_features_by_length(texts.tokens) for name, texts in batch.texts.items()}
        if batch.pixels.ndim == 2:  # embeddings already
            image = ImageFeatures(batch.pixels, batch.pixels[:, :, None, None])
        elif len(batch.pixels):
            pixels = batch.pixels.contiguous(memory_format=torch.channels_last)
            image = self.student.image_features(pixels, self._layers)
        else:
            nothing = self.student.model.logit_scale.new_zeros(0, self._own_widths.embedding)
            maps = {layer: nothing.new_zeros(0, self._own_widths.layer(layer), 1, 1) for layer in (*self._layers, -1)}
            image = ImageFeatures(nothing, maps[-1], maps)
        return Outputs(image, texts, {name: texts.image_index for name, texts in batch.texts.items()})

    def terms(self, batch: Batch, own: Outputs) -> dict[str, Tensor]:
        """The weighted loss terms of a batch, given what the student makes of it."""
        teachers = [_whole(teacher.features(batch), batch) for teacher in self._teachers]
        own = self._with_task(_whole(own, batch), batch)
        terms: dict[str, Tensor] = {}
        self._chance = {}
        for loss in self._losses:
            adapters = self._adapters_of(loss.teacher) if isinstance(loss, TeacherLoss) else {}
            weight, chance = loss.weight_at(self._done), loss.chance(own)
            for name, term in loss.terms(own, teachers, adapters).items():
                unused = _unused(name, terms)
                terms[unused] = weight * term
                if name in chance:
                    self._chance[unused] = weight * chance[name]
        return terms

    def _with_task(self, own: Outputs, batch: Batch) -> Outputs:
        model = self.student.model
        shared = {
            name: found
            for name, texts in batch.texts.items()
            if (found := _shared(texts.caption_ids, texts.image_caption_ids)) is not None
        }
        return replace(
            own,
            logit_scale=model.logit_scale.clamp(max=self._max_log_scale).exp(),
            logit_bias=model.logit_bias,
            shared=shared,
        )

    def _adapters_of(self, teacher: int) -> Mapping[str, nn.Module]:
        suffix = f"-t{teacher}" if teacher else ""
        return {
            name.removesuffix(suffix): adapter
            for name, adapter in self.adapters.items()
            if (name.endswith(suffix) if suffix else "-t" not in name)
        }

    def figures(self) -> dict[str, float]:
        """The current 1 / temperature, and a sigmoid loss's bias, for the log."""
        if not self._contrasts:
            return {}
        figures = {"logit_scale": min(self.student.logit_scale, math.exp(self._max_log_scale))}
        bias = self.student.logit_bias
        return figures if bias is None else figures | {"logit_bias": bias}


def _adapter_name(name: str, teacher: int) -> str:
    return f"{name}-t{teacher}" if teacher else name


def _unused(name: str, taken: Mapping[str, Tensor]) -> str:
    """The name, with a number where a loss of the same kind has it already."""
    names = [name, *(f"{name}-{number}" for number in range(2, len(taken) + 2))]
    return next(one for one in names if one not in taken)


def _whole(side: Outputs, batch: Batch) -> Outputs:
    """A side with the embeddings of all processes; rows count through the images of all, then through their lines."""
    if process_count() == 1:
        return side
    images, processes, process = len(batch.pixels), process_count(), process_index()
    texts, rows, mine = {}, {}, {}
    for name, features in side.texts.items():
        own = side.rows[name]
        moved = torch.where(
            own < images, own + process * images, own - images + processes * images + process * batch.lines
        )
        counts = row_counts(own)
        first = sum(counts[:process])
        rows[name] = gather(moved)
        mine[name] = torch.zeros(sum(counts), dtype=torch.bool, device=own.device)
        mine[name][first : first + len(own)] = True
        texts[name] = TextFeatures(gather(features.embedding.float()), features.tokens, features.mask)
    image = replace(side.image, embedding=gather(side.image.embedding.float()))
    return replace(side, image=image, texts=texts, rows=rows, mine=mine)


def _shared(numbers: Tensor | None, of_image: Tensor | None) -> Tensor | None:
    """(N, N) true at [i, j] if caption j is another pair's that image i has as well, over all processes."""
    if numbers is None or of_image is None:
        return None
    most = widest(of_image)
    numbers = gather(numbers)
    # Filled up with each row's first entry, which changes nothing.
    of_image = gather(torch.cat([of_image, of_image[:, :1].expand(-1, most - of_image.shape[1])], dim=1))
    shared = torch.zeros(len(numbers), len(numbers), dtype=torch.bool, device=numbers.device)
    for column in of_image.unbind(1):
        shared |= column[:, None] == numbers[None]
    return shared.fill_diagonal_(False)
