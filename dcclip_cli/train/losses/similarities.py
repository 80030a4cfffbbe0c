"""Losses on how images and texts lie to each other: the teacher's similarities, or its other tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dcclip_cli.train.losses.base import Loss, Outputs, TeacherLoss, Widths, mean_of, of_pairs, take
from dcclip_cli.train.losses.embeddings import adapted, embedding_adapters

if TYPE_CHECKING:
    from torch import Tensor, nn


class InteractiveLoss(TeacherLoss):
    """1/2 [CE(v_s . t_t / tau) + CE(t_s . v_t / tau)]: the student against the teacher's other tower (CLIP-KD, ICL).

    Captions that coincide within a batch count as each other's negatives. The first half teaches the image tower, the
    second the text tower; with `learns` one of them alone, and by as much as beside the other.
    """

    kind: Literal["interactive"] = "interactive"
    scale: float = Field(20.0, gt=0, description="1 / tau, fixed")
    learns: Literal["both", "image", "text"] = Field(
        "both", description="The towers that learn from it: a small text tower learns the known names by heart from it"
    )

    def adapters(self, student: Widths, teacher: Widths) -> dict[str, nn.Module]:
        return embedding_adapters(student, teacher)

    def __call__(self, student: Outputs, teacher: Outputs, adapters: Mapping[str, nn.Module]) -> Tensor:
        import torch
        from torch.nn import functional as F

        own = adapted(student, adapters)
        image = F.normalize(teacher.image.embedding, dim=-1)
        losses = []
        for language, features in teacher.texts.items():
            chosen = of_pairs(teacher.rows[language], len(image))
            rows = take(teacher.rows[language], chosen)
            labels = torch.arange(len(rows), device=rows.device)
            halves = []
            if self.learns != "text":
                text = F.normalize(take(features.embedding, chosen), dim=-1)
                halves.append(F.cross_entropy(self.scale * F.normalize(own.image[rows], dim=-1) @ text.T, labels))
            if self.learns != "image":
                text = F.normalize(take(own.texts[language], chosen), dim=-1)
                halves.append(F.cross_entropy(self.scale * text @ image[rows].T, labels))
            losses.append(sum(halves[1:], halves[0]) / 2)
        return mean_of(losses, image)


class SimilarityLoss(TeacherLoss):
    """1/2 [KL(T_i2t || S_i2t) + KL(T_t2i || S_t2i)] on similarities over tau (CLIP-KD, CRD)."""

    kind: Literal["similarity"] = "similarity"
    scale: float = Field(20.0, gt=0, description="1 / tau, fixed")

    def __call__(self, student: Outputs, teacher: Outputs, adapters: Mapping[str, nn.Module]) -> Tensor:
        from torch.nn import functional as F

        losses = []
        for language in teacher.rows:
            own, target = (similarities(side, language, self.scale) for side in (student, teacher))
            for mine, theirs in ((own, target), (own.T, target.T)):
                losses.append(
                    F.kl_div(mine.log_softmax(-1), theirs.log_softmax(-1), reduction="batchmean", log_target=True)
                )
        return mean_of(losses, student.image.embedding)


class AffinityLoss(TeacherLoss):
    """1/2 [CE(softmax(50 T_i2t), 50 S_i2t) + CE(softmax(50 T_t2i), 50 S_t2i)]: TinyCLIP's affinity mimicking.

    `similarity` plus the teacher's own entropy, so with the same gradient at the same scale; TinyCLIP
    (arXiv 2309.12314) fixes it at 50. open_clip's DistillClipLoss has the same formula.
    """

    kind: Literal["affinity"] = "affinity"
    scale: float = Field(50.0, gt=0, description="1 / tau of both, fixed")

    def __call__(self, student: Outputs, teacher: Outputs, adapters: Mapping[str, nn.Module]) -> Tensor:
        losses = []
        for language in teacher.rows:
            own, target = (similarities(side, language, self.scale) for side in (student, teacher))
            losses.append((_soft(own, target.softmax(-1)) + _soft(own.T, target.T.softmax(-1))) / 2)
        return mean_of(losses, student.image.embedding)


class EnsembleLoss(Loss):
    """CE(mean over teachers k of softmax(tau_k T_k), S / tau), both directions: MobileCLIP (arXiv 2311.17049).

    The teachers' distributions are averaged after the softmax, each at its own temperature unless `teacher_scale` says
    otherwise. MobileCLIP ships it with weight 1 and no task loss beside it.
    """

    kind: Literal["ensemble"] = "ensemble"
    scale: float | None = Field(None, gt=0, description="The student's 1 / tau; default: its own, which then learns")
    teacher_scale: float | None = Field(None, gt=0, description="1 / tau of all teachers; default: each one's own")

    def terms(
        self, student: Outputs, teachers: Sequence[Outputs], adapters: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        import torch

        losses = []
        for language in student.rows:
            scale = self.scale if self.scale is not None else student.logit_scale
            own = similarities(student, language, scale)
            logits = [
                similarities(teacher, language, self.teacher_scale if self.teacher_scale else teacher.logit_scale)
                for teacher in teachers
            ]
            image_to_text = torch.stack([one.softmax(-1) for one in logits]).mean(0)
            text_to_image = torch.stack([one.T.softmax(-1) for one in logits]).mean(0)
            losses.append((_soft(own, image_to_text) + _soft(own.T, text_to_image)) / 2)
        return {self.kind: mean_of(losses, student.image.embedding)}


def similarities(side: Outputs, language: str, scale: Tensor | float | None) -> Tensor:
    """(n, n) scaled cosines of the images that have a text in this language with these texts."""
    from torch.nn import functional as F

    assert scale is not None
    chosen = of_pairs(side.rows[language], len(side.image.embedding))
    image = side.image.embedding[take(side.rows[language], chosen)]
    text = take(side.texts[language].embedding, chosen)
    return scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T


def _soft(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy against distributions, a row each."""
    return -(target * logits.log_softmax(-1)).sum(-1).mean()
