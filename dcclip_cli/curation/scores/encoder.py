"""How is a dual encoder opened, once in a process, and asked for the vectors of pictures and texts?"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dcclip_cli.errors import DcclipError
from dcclip_cli.model.precision import torch_device
from dcclip_cli.model.reference import resolve
from dcclip_cli.model.teachers import Teacher

if TYPE_CHECKING:
    from PIL import Image

    from dcclip_cli.predict.encoder import Encoder

NO_DEVICE = "leave the scorer's device out, or say cpu"  # the hint


class CachingEncoder:
    """A dual encoder that remembers the last pictures: the second scorer with the same model has them for nothing."""

    def __init__(self, model: Encoder) -> None:
        self.model = model
        self._pictures: list[Image.Image] = []
        self._embeddings = np.empty((0, 0), np.float32)

    def images(self, pictures: Sequence[Image.Image], batch_size: int) -> np.ndarray:
        """(B, D) embeddings of length 1."""
        if not self._are_the_last(pictures):
            batches = [pictures[start : start + batch_size] for start in range(0, len(pictures), batch_size)]
            pixels = (np.stack([self.model.preprocess(picture) for picture in batch]) for batch in batches)
            self._embeddings = np.concatenate([self.model.encode_pixels(batch) for batch in pixels])
            self._pictures = list(pictures)
        return self._embeddings

    def _are_the_last(self, pictures: Sequence[Image.Image]) -> bool:
        same_number = len(pictures) == len(self._pictures)
        return same_number and all(one is last for one, last in zip(pictures, self._pictures, strict=True))

    def texts(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        """(N, D) embeddings of length 1; N is at least 1."""
        from dcclip_cli.predict.zero_shot import class_embeddings

        return class_embeddings(self.model, [[text] for text in texts], batch_size)


def check_model(model: str | Teacher) -> None:
    """Raises DcclipError where `model` names a directory that isn't there or holds no model."""
    if isinstance(model, str):
        resolve(model)
    elif Path(model.model).is_absolute() and not Path(model.model).is_dir():
        raise DcclipError(f"teacher {model.model} is no directory", "check the path, or give the name of a hub model")


@functools.lru_cache(maxsize=4)
def open_encoder(model: str | Teacher, device: str) -> CachingEncoder:
    """The encoder meant by a model reference (see `model.reference`) or by a teacher's options.

    An export bundle is run without torch. Raises DcclipError where the model can't be loaded.
    """
    from dcclip_cli.predict.encoder import load_encoder

    return CachingEncoder(
        load_encoder(resolve(model), device, "auto") if isinstance(model, str) else _open_teacher(model, device)
    )


def _open_teacher(teacher: Teacher, device: str) -> Encoder:
    from dcclip_cli.predict.encoder import TorchEncoder

    device = torch_device(device, NO_DEVICE)
    towers = teacher.load(device)
    return TorchEncoder(towers, device, towers.precision)
