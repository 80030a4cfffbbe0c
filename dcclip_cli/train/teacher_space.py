"""The teacher's space with fewer dimensions, for students that are narrower: its principal components."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from dcclip_cli.data.collator import Batch, Collator
from dcclip_cli.data.samplers import Sample
from dcclip_cli.train.losses.base import Outputs, Widths
from dcclip_cli.train.teacher import TeacherFeatures

FILE = "teacher_space.safetensors"  # of a model directory whose model is narrower than its teacher
_ROWS = 2048  # images or texts, at least, from whose embeddings the components are computed


@dataclass(frozen=True)
class NarrowSpace:
    """The principal components (D, d) of a teacher's embeddings, orthonormal columns, and the teacher's fingerprint.

    A model directory has them, so that stage 2 goes on in the space of stage 1.
    """

    teacher: str
    components: Tensor

    def to_bytes(self) -> bytes:
        """The content of `FILE`."""
        return save({"components": self.components.contiguous()}, {"teacher": self.teacher})

    @classmethod
    def read(cls, folder: Path) -> NarrowSpace | None:
        """The space in a model directory, if it has one."""
        if not (folder / FILE).is_file():
            return None
        with safe_open(folder / FILE, "pt") as file:
            return cls(file.metadata()["teacher"], file.get_tensor("components"))


@dataclass(frozen=True)
class NarrowTeacher:
    """A teacher's features with embeddings in a narrower space."""

    teacher: TeacherFeatures
    space: NarrowSpace

    @cached_property
    def widths(self) -> Widths:
        return replace(self.teacher.widths, embedding=self.space.components.shape[1])

    def features(self, batch: Batch) -> Outputs:
        """The teacher's outputs for a batch, with (B, d) embeddings."""
        found = self.teacher.features(batch)
        components = self.space.components.to(found.image.embedding.device)
        texts = {
            name: replace(features, embedding=features.embedding.float() @ components)
            for name, features in found.texts.items()
        }
        image = replace(found.image, embedding=found.image.embedding.float() @ components)
        return replace(found, image=image, texts=texts)


def principal_components(embeddings: Sequence[Tensor], count: int) -> Tensor:
    """The (D, count) directions in which unit-length embeddings are longest, the longest first; count at most D.

    `embeddings` are (N, D) for each kind, images and texts: kinds weigh the same, whatever their numbers. The mean is
    not subtracted, since cosines are to be kept, not distances.
    """
    moments = []
    for rows in (F.normalize(rows.double(), dim=-1) for rows in embeddings if len(rows)):
        moments.append(rows.T @ rows / len(rows))
    directions = torch.linalg.eigh(torch.stack(moments).sum(0)).eigenvectors.flip(1)[:, :count]
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return (directions * largest.sign()).float()


def narrow_space(
    fingerprint: str, teacher: TeacherFeatures, collator: Collator, batches: Iterable[list[Sample]], width: int
) -> NarrowSpace:
    """The space of `width` dimensions in which a teacher's embeddings of the first of these batches are longest."""
    images, texts = list[Tensor](), list[Tensor]()
    for samples in batches:
        outputs = teacher.features(collator.batch(samples))
        images.append(outputs.image.embedding.float().cpu())
        texts.extend(features.embedding.float().cpu() for features in outputs.texts.values())
        if max(sum(map(len, images)), sum(map(len, texts))) >= _ROWS:
            break
    found = [torch.cat(kind) for kind in (images, texts) if kind]
    return NarrowSpace(fingerprint, principal_components(found, width))
