"""The module that stage 2 trains: a dual encoder under open_clip's contrastive loss, per language."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Literal

import torch
from open_clip.loss import ClipLoss
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from dcclip_cli.data.batches import OTHER, Batch
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.towers import OpenClipTowers


class InfoNCE(ClipLoss):
    """open_clip's symmetric InfoNCE, (L_i2t + L_t2i) / 2, that leaves out negatives known to be positives.

    With several processes, whose batches are gathered, none is left out.
    """

    def forward(self, image: Tensor, text: Tensor, scale: Tensor, shared: Tensor | None = None) -> Tensor:
        """The loss of unit-length `image` (n, D) and `text` (n, D); `shared` (n, n) as in Texts."""
        per_image, per_text = self.get_logits(image, text, scale)
        if shared is not None and self.world_size == 1:
            per_image, per_text = per_image.masked_fill(shared, -math.inf), per_text.masked_fill(shared.T, -math.inf)
        labels = self.get_ground_truth(image.device, len(per_image))
        return (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2


class ContrastStage(nn.Module):
    """Forward: a batch -> InfoNCE between images and each language's captions, averaged over languages."""

    def __init__(
        self,
        student: OpenClipTowers,
        lock: Literal["image", "text"] | None,
        cross_lingual: float,
        other_weight: float,
        max_logit_scale: float,
    ) -> None:
        super().__init__()
        self.student = student
        self._cross_lingual, self._other_weight = cross_lingual, other_weight
        self._max_log_scale = math.log(max_logit_scale)
        self._locked = {"image": student.model.visual, "text": student.model.text, None: None}[lock]
        if isinstance(self._locked, nn.Module):
            self._locked.requires_grad_(False)

    @cached_property
    def _loss(self) -> InfoNCE:  # made at the first step: processes know of each other only then
        world = distributed.get_world_size() if distributed.is_initialized() else 1
        rank = distributed.get_rank() if world > 1 else 0
        return InfoNCE(local_loss=True, gather_with_grad=True, rank=rank, world_size=world)

    def train(self, mode: bool = True) -> ContrastStage:
        super().train(mode)
        if isinstance(self._locked, nn.Module):
            self._locked.eval()  # its batch norms keep their statistics
        with torch.no_grad():  # what is kept at the end is what the last steps used
            self.student.model.logit_scale.clamp_(max=self._max_log_scale)
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        log_scale: Tensor = self.student.model.logit_scale
        scale = log_scale.clamp(max=self._max_log_scale).exp()
        pixels = batch.pixels.contiguous(memory_format=torch.channels_last)
        image = F.normalize(self.student.image_features(pixels).embedding, dim=-1)
        texts = {
            language: F.normalize(self.student.text_features(given.tokens).embedding, dim=-1)
            for language, given in batch.texts.items()
        }
        terms = {}
        languages = sum(not language.endswith(OTHER) for language in texts)
        for language, text in texts.items():
            given = batch.texts[language]
            rows, weight = given.rows, self._other_weight if language.endswith(OTHER) else 1.0
            if self._loss.world_size > 1 and len(rows) != len(image):
                raise DcclipError(
                    f"some pairs have no '{language}' caption, which several processes can't share out yet",
                    "train in one process, or on pairs that have captions in every language of captions.languages",
                )
            terms[f"image_{language}"] = weight * self._loss(image[rows], text, scale, given.shared) / languages
        if self._cross_lingual and {"zh", "en"} <= texts.keys():
            zh, en = texts["zh"], texts["en"]
            both = set(batch.texts["zh"].rows.tolist()) & set(batch.texts["en"].rows.tolist())
            if len(both) > 1:
                terms["zh_en"] = self._cross_lingual * self._loss(
                    zh[_places(batch.texts["zh"].rows, both)], en[_places(batch.texts["en"].rows, both)], scale
                )
        return terms

    def figures(self) -> dict[str, float]:
        """The current 1 / temperature, for the log."""
        return {"logit_scale": min(self.student.logit_scale, math.exp(self._max_log_scale))}


def _places(rows: Tensor, wanted: set[int]) -> Tensor:
    return torch.tensor([place for place, row in enumerate(rows.tolist()) if row in wanted], device=rows.device)
