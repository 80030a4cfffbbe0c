"""The task itself: which caption belongs to which image, by the student's own two towers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dcclip_cli.data.collator import OTHER
from dcclip_cli.train.losses.base import Loss, Outputs, of_pairs, take
from dcclip_cli.train.losses.embeddings import in_both

if TYPE_CHECKING:
    from torch import Tensor, nn

Contrast = Literal["clip", "siglip"]


class TaskLoss(Loss):
    """Contrast of images with the captions of each language, averaged over languages; the temperature is learnt.

    `clip`: symmetric InfoNCE, (L_i2t + L_t2i) / 2 (arXiv 2103.00020); captions that an image shares with another pair
    are not counted as its negatives. `siglip`: every image and text is asked whether they belong together
    (arXiv 2303.15343); shared captions are positives. With several processes each compares its own rows with all.
    """

    kind: Literal["task"] = "task"
    needs_teacher: ClassVar[bool] = False
    loss: Contrast = Field("clip", description="clip: symmetric InfoNCE; siglip: a sigmoid for each pair, with a bias")
    cross_lingual: float = Field(0.0, ge=0, description="Weight of the contrast between the two captions of one image")
    cosine: float = Field(0.0, ge=0, description="Weight of 1 - cosine of image and caption")
    other_weight: float = Field(1.0, ge=0, description="Weight of the captions that captions.second_caption adds")

    def terms(
        self, student: Outputs, teachers: Sequence[Outputs], adapters: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        from torch.nn import functional as F

        assert student.logit_scale is not None
        image = F.normalize(student.image.embedding, dim=-1)
        texts = {name: F.normalize(features.embedding, dim=-1) for name, features in student.texts.items()}
        languages = sum(not name.endswith(OTHER) for name in texts)
        terms = {}
        for name, text in texts.items():
            chosen, weight = (
                of_pairs(student.rows[name], len(image)),
                self.other_weight if name.endswith(OTHER) else 1.0,
            )
            shared, mine = student.shared.get(name), student.mine.get(name)
            loss = self._contrast(
                image[take(student.rows[name], chosen)],
                take(text, chosen),
                student,
                shared if shared is None or chosen is None else shared[chosen][:, chosen],
                mine if mine is None else take(mine, chosen),
            )
            terms[f"image_{name}"] = weight * loss / languages
            if self.cosine:
                cosines = (image[take(student.rows[name], chosen)] * take(text, chosen)).sum(dim=-1)
                terms[f"cosine_{name}"] = self.cosine * weight * (1 - cosines.mean()) / languages
        if self.cross_lingual and {"zh", "en"} <= texts.keys():
            zh, en = in_both(student.rows["zh"], student.rows["en"])
            if len(zh) > 1:
                mine = student.mine.get("zh")
                loss = self._contrast(
                    texts["zh"][zh], texts["en"][en], student, None, mine if mine is None else mine[zh]
                )
                terms["zh_en"] = self.cross_lingual * loss
        return terms

    def chance(self, student: Outputs) -> dict[str, float]:
        if self.loss != "clip":
            return {}
        languages = sum(not name.endswith(OTHER) for name in student.rows)
        images = len(student.image.embedding)
        counts = {name: int((rows < images).sum()) for name, rows in student.rows.items() if not name.endswith(OTHER)}
        return {f"image_{name}": math.log(max(1, count)) / languages for name, count in counts.items()}

    def _contrast(
        self, one: Tensor, other: Tensor, side: Outputs, shared: Tensor | None, mine: Tensor | None
    ) -> Tensor:
        assert side.logit_scale is not None
        if self.loss == "clip":
            return info_nce(one, other, side.logit_scale, shared, mine)
        assert side.logit_bias is not None
        return sigmoid_loss(one, other, side.logit_scale, side.logit_bias, shared, mine)


def info_nce(
    one: Tensor, other: Tensor, scale: Tensor, shared: Tensor | None = None, mine: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE of unit-length `one` (n, D) and `other` (n, D), as open_clip's ClipLoss.

    `shared` (n, n) as in Outputs. With `mine` (n,) only these rows are worked out, and what comes out is their share of
    the loss times the number of processes: the mean over processes is the whole, and so is that of the gradients.
    """
    import torch
    from torch.nn import functional as F

    labels = torch.arange(len(one), device=one.device)
    own_one, own_other, blocked, blocked_back = one, other, shared, None if shared is None else shared.T
    if mine is not None:
        labels, own_one, own_other = labels[mine], one[mine], other[mine]
        blocked, blocked_back = (None, None) if shared is None else (shared[mine], shared.T[mine])
    there, back = scale * own_one @ other.T, scale * own_other @ one.T
    if blocked is not None and blocked_back is not None:
        there, back = there.masked_fill(blocked, -math.inf), back.masked_fill(blocked_back, -math.inf)
    if mine is None:
        return (F.cross_entropy(there, labels) + F.cross_entropy(back, labels)) / 2
    both = F.cross_entropy(there, labels, reduction="sum") + F.cross_entropy(back, labels, reduction="sum")
    return both / 2 * _processes() / len(one)


def sigmoid_loss(
    one: Tensor, other: Tensor, scale: Tensor, bias: Tensor, shared: Tensor | None = None, mine: Tensor | None = None
) -> Tensor:
    """SigLIP's loss of unit-length `one` (n, D) and `other` (n, D), as open_clip's SigLipLoss; `shared` are positives.

    `mine` as in `info_nce`.
    """
    import torch
    from torch.nn import functional as F

    positive = torch.eye(len(one), dtype=torch.bool, device=one.device)
    if shared is not None:
        positive = positive | shared
    if mine is not None:
        positive = positive[mine]
    logits = scale * (one if mine is None else one[mine]) @ other.T + bias
    loss = -F.logsigmoid(torch.where(positive, logits, -logits)).sum() / len(one)
    return loss if mine is None else loss * _processes()


def _processes() -> int:
    from torch import distributed

    return distributed.get_world_size() if distributed.is_initialized() else 1
