"""What a student is pulled towards: one class per loss, options and formula together; their union is the registry.

Shapes: B images, N texts of one language, D the shared width, C channels, h x w a map's grid, L tokens, W a text width.
Embeddings given to a loss are not normalised; every loss says what it does to them. All sums are means over the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dcclip_cli.options import Options

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dcclip_cli.model.towers import ImageFeatures, TextFeatures


@dataclass(frozen=True)
class Side:
    """What one model, student or teacher, makes of a batch, texts keyed as in Batch; `rows` (N,) whose each is."""

    image: ImageFeatures
    texts: dict[str, TextFeatures]
    rows: dict[str, Tensor]


@dataclass(frozen=True)
class Widths:
    """The widths that adapters join: shared space, channels of the last image map, text tower."""

    embedding: int
    image_map: int
    text_tokens: int


class Loss(Options, ABC):
    """A distillation loss with its weight."""

    weight: float = Field(1.0, ge=0, description="Factor on this loss in the sum")

    def adapters(self, student: Widths, teacher: Widths) -> dict[str, nn.Module]:
        """Layers that are trained with the student and thrown away after: none unless a loss says so."""
        return {}

    @abstractmethod
    def __call__(self, student: Side, teacher: Side, adapters: nn.ModuleDict) -> Tensor:
        """The loss, a scalar, before the weight."""


class FeatureMapLoss(Loss):
    """SmoothL1(adapter_1x1(map_s), map_t) on the image towers' last maps: DC-CLIP's stage 1 (arXiv 2404.11249).

    Both maps are brought to the student's grid. The paper does not say how the teacher's map is scaled: with
    `standardize` one weight suits any teacher.
    """

    kind: Literal["feature_map"] = "feature_map"
    standardize: bool = Field(
        True, description="Give the teacher's channels zero mean and unit variance at each position"
    )

    def adapters(self, student: Widths, teacher: Widths) -> dict[str, nn.Module]:
        from torch import nn

        return {"image_map": nn.Conv2d(student.image_map, teacher.image_map, kernel_size=1)}

    def __call__(self, student: Side, teacher: Side, adapters: nn.ModuleDict) -> Tensor:
        from torch.nn import functional as F

        adapted = adapters["image_map"](student.image.map)
        target = to_grid(teacher.image.map, student.image.map.shape[-2], student.image.map.shape[-1])
        if self.standardize:
            target = F.layer_norm(target.movedim(1, -1), target.shape[1:2]).movedim(-1, 1)
        return F.smooth_l1_loss(adapted, target)


class TokenFeaturesLoss(Loss):
    """SmoothL1(adapter(tokens_s), tokens_t) on the text towers' last layers: the text half of DC-CLIP's stage 1.

    Where the two tokenizers cut a text differently, the teacher's tokens are interpolated to the student's count.
    """

    kind: Literal["token_features"] = "token_features"
    standardize: bool = Field(True, description="Give the teacher's channels zero mean and unit variance at each token")

    def adapters(self, student: Widths, teacher: Widths) -> dict[str, nn.Module]:
        from torch import nn

        return {"text_tokens": nn.Linear(student.text_tokens, teacher.text_tokens)}

    def __call__(self, student: Side, teacher: Side, adapters: nn.ModuleDict) -> Tensor:
        from torch.nn import functional as F

        losses = []
        for language, own in student.texts.items():
            target = resample_tokens(teacher.texts[language], own.mask)
            if self.standardize:
                target = F.layer_norm(target, target.shape[-1:])
            difference = F.smooth_l1_loss(adapters["text_tokens"](own.tokens), target, reduction="none").mean(-1)
            losses.append((difference * own.mask).sum() / own.mask.sum())
        return sum(losses[1:], losses[0]) / len(losses)


class EmbeddingLoss(Loss):
    """1 - cos(v_s, v_t) and 1 - cos(t_s, t_t), the mean of both towers: CLIP-KD's feature distillation (FD).

    For unit vectors MSE summed over the width is 2 - 2 cos, so this is FD without its weight of 2000, which only makes
    up for a mean over B x D. Where the widths differ, a linear adapter brings the student's to the teacher's.
    """

    kind: Literal["embedding"] = "embedding"

    def adapters(self, student: Widths, teacher: Widths) -> dict[str, nn.Module]:
        return _embedding_adapters(student, teacher)

    def __call__(self, student: Side, teacher: Side, adapters: nn.ModuleDict) -> Tensor:
        from torch.nn import functional as F

        own = _embeddings(student, adapters)
        image = 1 - F.cosine_similarity(own.image, teacher.image.embedding).mean()
        texts = [
            1 - F.cosine_similarity(own.texts[language], features.embedding).mean()
            for language, features in teacher.texts.items()
        ]
        return (image + sum(texts) / len(texts)) / 2


class InteractiveLoss(Loss):
    """1/2 [CE(v_s . t_t / tau) + CE(t_s . v_t / tau)]: the student against the teacher's other tower (CLIP-KD, ICL).

    Captions that coincide within a batch count as each other's negatives.
    """

    kind: Literal["interactive"] = "interactive"
    scale: float = Field(20.0, gt=0, description="1 / tau, fixed")

    def adapters(self, student: Widths, teacher: Widths) -> dict[str, nn.Module]:
        return _embedding_adapters(student, teacher)

    def __call__(self, student: Side, teacher: Side, adapters: nn.ModuleDict) -> Tensor:
        import torch
        from torch.nn import functional as F

        own = _embeddings(student, adapters)
        image = F.normalize(teacher.image.embedding, dim=-1)
        losses = []
        for language, features in teacher.texts.items():
            rows = teacher.rows[language]
            labels = torch.arange(len(rows), device=rows.device)
            text = F.normalize(features.embedding, dim=-1)
            image_to_text = self.scale * F.normalize(own.image[rows], dim=-1) @ text.T
            text_to_image = self.scale * F.normalize(own.texts[language], dim=-1) @ image[rows].T
            losses.append((F.cross_entropy(image_to_text, labels) + F.cross_entropy(text_to_image, labels)) / 2)
        return sum(losses[1:], losses[0]) / len(losses)


class SimilarityLoss(Loss):
    """1/2 [KL(T_i2t || S_i2t) + KL(T_t2i || S_t2i)] on similarities over tau (CLIP-KD, CRD)."""

    kind: Literal["similarity"] = "similarity"
    scale: float = Field(20.0, gt=0, description="1 / tau, fixed")

    def __call__(self, student: Side, teacher: Side, adapters: nn.ModuleDict) -> Tensor:
        from torch.nn import functional as F

        losses = []
        for language, rows in teacher.rows.items():
            own = self._logits(student.image.embedding[rows], student.texts[language].embedding)
            target = self._logits(teacher.image.embedding[rows], teacher.texts[language].embedding)
            for mine, theirs in ((own, target), (own.T, target.T)):
                losses.append(
                    F.kl_div(mine.log_softmax(-1), theirs.log_softmax(-1), reduction="batchmean", log_target=True)
                )
        return sum(losses[1:], losses[0]) / len(losses)

    def _logits(self, image: Tensor, text: Tensor) -> Tensor:
        from torch.nn import functional as F

        return self.scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T


DistillLoss = Annotated[
    FeatureMapLoss | TokenFeaturesLoss | EmbeddingLoss | InteractiveLoss | SimilarityLoss, Field(discriminator="kind")
]


@dataclass(frozen=True)
class _Embeddings:
    image: Tensor
    texts: dict[str, Tensor]


def _embedding_adapters(student: Widths, teacher: Widths) -> dict[str, nn.Module]:
    from torch import nn

    if student.embedding == teacher.embedding:
        return {}
    shape = student.embedding, teacher.embedding
    return {"image_embedding": nn.Linear(*shape, bias=False), "text_embedding": nn.Linear(*shape, bias=False)}


def _embeddings(student: Side, adapters: nn.ModuleDict) -> _Embeddings:
    texts = {language: features.embedding for language, features in student.texts.items()}
    if "image_embedding" not in adapters:
        return _Embeddings(student.image.embedding, texts)
    adapt = adapters["text_embedding"]
    return _Embeddings(
        adapters["image_embedding"](student.image.embedding),
        {language: adapt(embedding) for language, embedding in texts.items()},
    )


def to_grid(image_map: Tensor, height: int, width: int) -> Tensor:
    """A map (B, C, h, w) as (B, C, height, width): averaged where that is coarser, interpolated where it is finer."""
    from torch.nn import functional as F

    if image_map.shape[-2] >= height and image_map.shape[-1] >= width:
        return F.adaptive_avg_pool2d(image_map, (height, width))
    return F.interpolate(image_map, (height, width), mode="bilinear", align_corners=False)


def resample_tokens(features: TextFeatures, mask: Tensor) -> Tensor:
    """Token features (N, L, W) interpolated along the text, row by row, to the counts and padding of `mask` (N, L').

    Ends map to ends. Rows of equal count come out as they are. Padding repeats the last token.
    """
    import torch

    have = features.mask.sum(1, keepdim=True).clamp(min=1)  # (N, 1)
    want = mask.sum(1, keepdim=True).clamp(min=1)
    place = torch.arange(mask.shape[1], device=mask.device).clamp(max=mask.shape[1] - 1)[None]
    position = torch.minimum(place, want - 1) * (have - 1) / (want - 1).clamp(min=1)  # (N, L')
    low = position.floor().long()
    high = torch.minimum(low + 1, have - 1)
    share = (position - low).unsqueeze(-1).to(features.tokens.dtype)
    row = torch.arange(mask.shape[0], device=mask.device)[:, None]
    return features.tokens[row, low] * (1 - share) + features.tokens[row, high] * share
