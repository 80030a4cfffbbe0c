"""Losses on features inside the towers: feature maps of the image tower, token features of the
text tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dcclip_cli.core.errors import Message
from dcclip_cli.train.losses.base import (
    Needs,
    Outputs,
    TeacherLoss,
    Tower,
    Widths,
    mean_over_languages,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dcclip_cli.model.towers import TextFeatures

Layers = tuple[Annotated[int, Field(ge=-1000, le=1000)], ...]


class FeatureMapLoss(TeacherLoss):
    """SmoothL1(adapter_1x1(map_s), map_t) on the image towers' feature maps: DC-CLIP's stage 1
    (arXiv 2404.11249).

    Both maps are resized to the student's grid. The paper specifies neither the teacher's scale
    nor the layers. With `standardize`, one weight suits any teacher. The default is the last layer
    of both towers; `student_layers` and `teacher_layers` are paired in order, and the loss is the
    mean over the pairs.
    """

    kind: Literal["feature_map"] = "feature_map"
    standardize: bool = Field(
        True,
        description="Standardize the teacher's channels at each position to zero mean and unit variance",
    )
    student_layers: Layers = Field(
        (-1,),
        min_length=1,
        description="Stages or blocks of the student's timm network, from 0; -1 is the last",
    )
    teacher_layers: Layers = Field(
        (-1,), min_length=1, description="Teacher layers for student_layers, in order"
    )
    needs: ClassVar[frozenset[Needs]] = frozenset({"images", "pairs"})
    reaches: ClassVar[frozenset[Tower]] = frozenset({"image"})
    embeddings_only: ClassVar[bool] = False
    compares: ClassVar[bool] = False

    @model_validator(mode="after")
    def _as_many_layers(self) -> Self:
        if len(self.student_layers) != len(self.teacher_layers):
            raise ValueError(
                Message(
                    "student_layers and teacher_layers must have the same length: they "
                    "are paired in order"
                )
            )
        return self

    @property
    def student_layers_needed(self) -> Layers:
        return tuple(layer for layer in self.student_layers if layer != -1)

    @property
    def teacher_layers_needed(self) -> Layers:
        return tuple(layer for layer in self.teacher_layers if layer != -1)

    def adapters(self, student: Widths, teacher: Widths) -> dict[str, nn.Module]:
        from torch import nn

        return {
            _map_name(*layers): nn.Conv2d(
                student.layer(layers[0]), teacher.layer(layers[1]), kernel_size=1
            )
            for layers in zip(self.student_layers, self.teacher_layers, strict=True)
        }

    def __call__(
        self, student: Outputs, teacher: Outputs, adapters: Mapping[str, nn.Module]
    ) -> Tensor:
        from torch.nn import functional as F

        losses = []
        for layers in zip(self.student_layers, self.teacher_layers, strict=True):
            student_map = student.image.layer(layers[0])
            if not len(student_map):
                return student_map.new_zeros(())
            adapted = adapters[_map_name(*layers)](student_map)
            target = to_grid(teacher.image.layer(layers[1]), *student_map.shape[-2:])
            if self.standardize:
                target = F.layer_norm(target.movedim(1, -1), target.shape[1:2]).movedim(-1, 1)
            losses.append(F.smooth_l1_loss(adapted, target))
        return sum(losses[1:], losses[0]) / len(losses)


class TokenFeaturesLoss(TeacherLoss):
    """SmoothL1(adapter(tokens_s), tokens_t) on the text towers' last layers: the text half of
    DC-CLIP's stage 1.

    If the tokenizers split a text differently, the teacher's tokens are interpolated to the
    student's number of tokens. The student's pooled token learns the teacher's, wherever each of
    them pools (`TextFeatures.states`).
    """

    kind: Literal["token_features"] = "token_features"
    standardize: bool = Field(
        True,
        description="Standardize the teacher's channels at each token to zero mean and unit variance",
    )
    needs: ClassVar[frozenset[Needs]] = frozenset({"texts", "pairs"})
    reaches: ClassVar[frozenset[Tower]] = frozenset({"text"})
    embeddings_only: ClassVar[bool] = False
    compares: ClassVar[bool] = False

    def adapters(self, student: Widths, teacher: Widths) -> dict[str, nn.Module]:
        from torch import nn

        return {"text_tokens": nn.Linear(student.text_tokens, teacher.text_tokens)}

    def __call__(
        self, student: Outputs, teacher: Outputs, adapters: Mapping[str, nn.Module]
    ) -> Tensor:
        from torch.nn import functional as F

        from dcclip_cli.train.distributed import mean_over_processes

        def of_tokens(language: str) -> Tensor:
            features = student.texts[language]
            target = resample_tokens(teacher.texts[language], features.mask)
            if self.standardize:
                target = F.layer_norm(target, target.shape[-1:])
            adapted = adapters["text_tokens"](features.states)
            difference = F.smooth_l1_loss(adapted, target, reduction="none").mean(-1)
            return (difference * features.mask).sum() / mean_over_processes(features.mask.sum())

        return mean_over_languages(student.weights("tokens"), of_tokens, student.image.embedding)


def _map_name(student: int, teacher: int) -> str:
    return "image_map" if (student, teacher) == (-1, -1) else f"image_map_{student}_{teacher}"


def to_grid(image_map: Tensor, height: int, width: int) -> Tensor:
    """A map (B, C, h, w) as (B, C, height, width): averaged to a coarser grid, interpolated to a
    finer one.
    """
    from torch.nn import functional as F

    if image_map.shape[-2:] == (height, width):  # as in the teacher cache
        return image_map
    if image_map.shape[-2] >= height and image_map.shape[-1] >= width:
        return F.adaptive_avg_pool2d(image_map, (height, width))
    return F.interpolate(image_map, (height, width), mode="bilinear", align_corners=False)


def resample_tokens(features: TextFeatures, mask: Tensor) -> Tensor:
    """Token features (N, L, W) interpolated along the text, row by row, to the counts and padding
    of `mask` (N, L').

    First and last tokens map to first and last. Rows of equal count are unchanged. Padding repeats
    the last token.
    """
    import torch

    have = features.mask.sum(1, keepdim=True).clamp(min=1)  # (N, 1)
    want = mask.sum(1, keepdim=True).clamp(min=1)
    place = torch.arange(mask.shape[1], device=mask.device).clamp(max=mask.shape[1] - 1)[None]
    position = torch.minimum(place, want - 1) * (have - 1) / (want - 1).clamp(min=1)  # (N, L')
    low = position.floor().long()
    high = torch.minimum(low + 1, have - 1)
    states = features.states
    share = (position - low).unsqueeze(-1).to(states.dtype)
    row = torch.arange(mask.shape[0], device=mask.device)[:, None]
    return states[row, low] * (1 - share) + states[row, high] * share
