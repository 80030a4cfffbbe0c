"""Losses that pull one embedding to another: the student's to the teacher's, Chinese to English."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dcclip_cli.train.losses.base import Needs, Outputs, TeacherLoss, Widths, mean_of

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Embeddings:
    """A side's embeddings at a teacher's width."""

    image: Tensor
    texts: dict[str, Tensor]


class EmbeddingLoss(TeacherLoss):
    """1 - cos(v_s, v_t) and 1 - cos(t_s, t_t), the mean of both towers: CLIP-KD's feature distillation (FD).

    For unit vectors MSE summed over the width is 2 - 2 cos, so this is FD without its weight of 2000, which only makes
    up for a mean over B x D. Where the widths differ, a linear adapter brings the student's to the teacher's.
    """

    kind: Literal["embedding"] = "embedding"
    needs: ClassVar[frozenset[Needs]] = frozenset({"images", "texts", "pairs"})

    def adapters(self, student: Widths, teacher: Widths) -> dict[str, nn.Module]:
        return embedding_adapters(student, teacher)

    def __call__(self, student: Outputs, teacher: Outputs, adapters: Mapping[str, nn.Module]) -> Tensor:
        from torch.nn import functional as F

        own = adapted(student, adapters)
        texts = [
            1 - F.cosine_similarity(own.texts[language], features.embedding).mean()
            for language, features in teacher.texts.items()
        ]
        if not len(own.image):
            return mean_of(texts, own.image)
        image = 1 - F.cosine_similarity(own.image, teacher.image.embedding).mean()
        return (image + sum(texts) / len(texts)) / 2 if texts else image


class CrossLingualLoss(TeacherLoss):
    """1 - cos(zh, en) of the two captions of one image or one line of parallel text.

    `towards: teacher` pulls the student's Chinese to the teacher's English embedding, as AltCLIP (arXiv 2211.06679) and
    multilingual-CLIP learn a language from parallel text; the student's own English is left to the other losses.
    `towards: each_other` brings the student's own two to one point, which alone any constant would do.
    """

    kind: Literal["cross_lingual"] = "cross_lingual"
    towards: Literal["teacher", "each_other"] = Field("teacher", description="What the Chinese embedding is pulled to")
    needs: ClassVar[frozenset[Needs]] = frozenset({"texts", "pairs"})

    def adapters(self, student: Widths, teacher: Widths) -> dict[str, nn.Module]:
        return embedding_adapters(student, teacher) if self.towards == "teacher" else {}

    def __call__(self, student: Outputs, teacher: Outputs, adapters: Mapping[str, nn.Module]) -> Tensor:
        from torch.nn import functional as F

        if self.towards == "teacher":
            own = adapted(student, adapters).texts
            theirs = {name: features.embedding for name, features in teacher.texts.items()}
        else:
            own = theirs = {name: features.embedding for name, features in student.texts.items()}
        losses = []
        for zh in (name for name in own if name.startswith("zh")):
            en = "en" + zh.removeprefix("zh")
            if en in own:
                here, there = in_both(student.rows[zh], student.rows[en])
                if len(here):
                    losses.append(1 - F.cosine_similarity(own[zh][here], theirs[en][there]).mean())
        return mean_of(losses, student.image.embedding)


def embedding_adapters(student: Widths, teacher: Widths) -> dict[str, nn.Module]:
    """Linear layers from the student's shared width to the teacher's; none where they agree."""
    from torch import nn

    if student.embedding == teacher.embedding:
        return {}
    shape = student.embedding, teacher.embedding
    return {"image_embedding": nn.Linear(*shape, bias=False), "text_embedding": nn.Linear(*shape, bias=False)}


def adapted(student: Outputs, adapters: Mapping[str, nn.Module]) -> Embeddings:
    """The student's embeddings through the adapters of `embedding_adapters`."""
    texts = {language: features.embedding for language, features in student.texts.items()}
    if "image_embedding" not in adapters:
        return Embeddings(student.image.embedding, texts)
    adapt = adapters["text_embedding"]
    return Embeddings(
        adapters["image_embedding"](student.image.embedding),
        {language: adapt(embedding) for language, embedding in texts.items()},
    )


def in_both(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Places in `one` and in `other`, row numbers in one order, of those that stand in both."""
    import torch

    return torch.isin(one, other).nonzero()[:, 0], torch.isin(other, one).nonzero()[:, 0]
