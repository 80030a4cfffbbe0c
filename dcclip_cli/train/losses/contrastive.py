"""The contrastive loss of the student's own two towers: InfoNCE (CLIP) or pairwise sigmoid
(SigLIP).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dcclip_cli.core.options import Options
from dcclip_cli.data.batch import OTHER
from dcclip_cli.train.losses.base import BOTH, Loss, Outputs, Tower, WeightNumber, per_process, take

if TYPE_CHECKING:
    from torch import Tensor, nn


class ContrastOptions(Options):
    """Options of the contrastive loss, as a loss of distill and as the task of align."""

    loss: Literal["clip", "siglip"] = Field(
        "clip",
        description="clip: symmetric InfoNCE; siglip: a sigmoid loss per pair, with a learned bias",
    )
    cross_lingual: WeightNumber = Field(
        0.0, description="Weight of the contrastive loss between an image's zh and en captions"
    )
    cosine: WeightNumber = Field(
        0.0,
        description="Weight of 1 - cosine(image, caption); pulls captions towards a locked image tower",
    )
    other_weight: WeightNumber = Field(
        1.0,
        description="Weight of the second captions (captions.second_caption) relative to the first",
    )


class TaskLoss(ContrastOptions, Loss):
    """Contrastive loss between images and captions, averaged over the languages, with a learned
    temperature.

    `clip`: symmetric InfoNCE, (L_i2t + L_t2i) / 2 (arXiv 2103.00020); captions that another pair
    shares are not used as negatives. `siglip`: one binary decision per image and text (arXiv
    2303.15343); shared captions are positives. With several processes, each compares its rows with
    those of all processes.
    """

    kind: Literal["task"] = "task"
    trains: ClassVar[frozenset[Tower]] = BOTH
    needs_teacher: ClassVar[bool] = False

    @property
    def uses_temperature(self) -> bool:
        return True

    @property
    def uses_bias(self) -> bool:
        return self.loss == "siglip"

    def terms(
        self, student: Outputs, teachers: Sequence[Outputs], adapters: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        from torch.nn import functional as F

        image = F.normalize(student.image.embedding, dim=-1)
        texts = {
            name: F.normalize(features.embedding, dim=-1)
            for name, features in student.texts.items()
        }
        weights = student.weights("paired")
        languages = sum(not name.endswith(OTHER) for name in weights)
        terms = {}
        for name in (name for name, part_weight in weights.items() if part_weight):
            text = texts[name]
            paired = student.paired(name)
            weight = weights[name] * (self.other_weight if name.endswith(OTHER) else 1.0)
            images = image[take(student.image_index[name], paired)]
            captions = take(text, paired)
            shared = student.false_negatives.get(name)
            local = student.local_rows(name, "paired")
            if shared and paired is not None:
                local_texts = student.local_rows(name, "texts")
                rows = take(paired, local) - (local_texts.start if local_texts else 0)
                shared = shared[0][rows][:, paired], shared[1][rows][:, paired]
            loss = self._contrast(images, captions, student, shared, local)
            terms[f"image_{name}"] = weight * loss / languages
            if self.cosine:
                cosines = (images * captions).sum(dim=-1)
                terms[f"cosine_{name}"] = self.cosine * weight * (1 - cosines.mean()) / languages
        if self.cross_lingual and (parallel_weight := student.weights("parallel").get("zh")):
            zh_rows, en_rows = student.in_both("zh", "en")
            zh = take(texts["zh"], zh_rows)
            en = take(texts["en"], en_rows)
            if len(zh) > 1:
                loss = self._contrast(zh, en, student, None, student.local_rows("zh", "parallel"))
                terms["zh_en"] = self.cross_lingual * parallel_weight * loss
        return terms or {self.kind: image.new_zeros(())}

    def chance(self, student: Outputs) -> dict[str, float]:
        if self.loss != "clip":
            return {}
        languages = [name for name in student.weights("paired") if not name.endswith(OTHER)]
        paired = {
            name: student.text_counts[name].paired
            for name in languages
            if name in student.text_counts
        }
        return {
            f"image_{name}": math.log(count) / len(languages)
            for name, count in paired.items()
            if count
        }

    def _contrast(
        self,
        one: Tensor,
        other: Tensor,
        student: Outputs,
        shared: tuple[Tensor, Tensor] | None,
        local: slice | None,
    ) -> Tensor:
        assert student.logit_scale is not None
        if self.loss == "clip":
            return info_nce(one, other, student.logit_scale, shared, local)
        assert student.logit_bias is not None
        return sigmoid_loss(one, other, student.logit_scale, student.logit_bias, shared, local)


def info_nce(
    one: Tensor,
    other: Tensor,
    scale: Tensor,
    shared: tuple[Tensor, Tensor] | None = None,
    local: slice | None = None,
) -> Tensor:
    """Symmetric InfoNCE of unit-length `one` (N, D) and `other` (N, D), as open_clip's ClipLoss.

    Only the n rows `local` are computed, and the result is their share of the loss times the
    number of processes: the mean over processes is the whole, and so is that of the gradients.
    `shared` (n, N) twice: false negatives, as in Outputs.
    """
    import torch
    from torch.nn import functional as F

    labels = take(torch.arange(len(one), device=one.device), local)
    rows = per_process(len(one), local)
    forth = scale * take(one, local) @ other.T
    back = scale * take(other, local) @ one.T
    if shared is not None:
        forth, back = (
            logits.masked_fill(mask, -math.inf)
            for logits, mask in zip((forth, back), shared, strict=True)
        )
    forth_loss, back_loss = (
        F.cross_entropy(logits, labels, reduction="sum") / rows for logits in (forth, back)
    )
    return (forth_loss + back_loss) / 2


def sigmoid_loss(
    one: Tensor,
    other: Tensor,
    scale: Tensor,
    bias: Tensor,
    shared: tuple[Tensor, Tensor] | None = None,
    local: slice | None = None,
) -> Tensor:
    """SigLIP's loss of unit-length `one` (N, D) and `other` (N, D), as open_clip's SigLipLoss;
    `shared` are positives.

    `shared` and `local` as in `info_nce`.
    """
    import torch
    from torch.nn import functional as F

    numbers = torch.arange(len(one), device=one.device)
    positive = take(numbers, local)[:, None] == numbers
    if shared is not None:
        positive = positive | shared[0]
    logits = scale * take(one, local) @ other.T + bias
    return -F.logsigmoid(torch.where(positive, logits, -logits)).sum() / per_process(
        len(one), local
    )
