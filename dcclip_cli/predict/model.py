"""The door for programs: a model of any kind, ready to be asked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from dcclip_cli.errors import DcclipError
from dcclip_cli.model.preprocess import decode
from dcclip_cli.predict.classifier import text_embeddings
from dcclip_cli.predict.embedding import embed
from dcclip_cli.predict.predict import best
from dcclip_cli.predict.runtime import DualEncoder
from dcclip_cli.predict.zeroshot import Labels

Picture = str | os.PathLike[str] | bytes | Image.Image  # a path, a file's bytes, or a picture of Pillow's


class Model:
    """A loaded model, the same for every reference: directory, bundle, run, `hf:`, `open_clip:`, `hf-hub:`.

    `name` and `parameters` say which it is. Every method raises DcclipError where a picture can't be read.
    """

    def __init__(self, encoder: DualEncoder) -> None:
        self._encoder = encoder
        self._labels: tuple[Any, Labels] | None = None

    @property
    def name(self) -> str:
        """The model's name."""
        return self._encoder.name

    @property
    def parameters(self) -> int:
        """How many weights both towers have."""
        return self._encoder.parameters

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied with before the softmax."""
        return self._encoder.logit_scale

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """What is done to a picture, in open_clip's terms."""
        return self._encoder.preprocessing

    @overload
    def predict(
        self,
        pictures: Picture,
        labels: Sequence[str],
        *,
        templates: Sequence[str] | None = None,
        several: bool = False,
        top_k: int | None = None,
    ) -> dict[str, float]: ...

    @overload
    def predict(
        self,
        pictures: list[Picture] | tuple[Picture, ...],
        labels: Sequence[str],
        *,
        templates: Sequence[str] | None = None,
        several: bool = False,
        top_k: int | None = None,
    ) -> list[dict[str, float]]: ...

    def predict(
        self,
        pictures: Picture | list[Picture] | tuple[Picture, ...],
        labels: Sequence[str],
        *,
        templates: Sequence[str] | None = None,
        several: bool = False,
        top_k: int | None = None,
    ) -> dict[str, float] | list[dict[str, float]]:
        """Label -> probability, the most probable first; of many pictures a list of these.

        Labels compete with each other, or with `several` each is judged by itself. `templates` (as in
        "a photo of a {}", "一张{}的照片") are used instead of the model's own, an empty list means the bare labels.
        """
        ready = self._ready(labels, templates, several)
        rows = ready.probabilities(self.embed_images(_many(pictures)))
        found = [dict(best(ready.names, row, top_k)) for row in rows]
        return found[0] if _is_one(pictures) else found

    def embed_images(self, pictures: Sequence[Picture]) -> np.ndarray:
        """(N, D) embeddings of length 1, float32."""
        vectors = []
        for _, found in embed(self._encoder, pictures, _read):
            if isinstance(found, DcclipError):
                raise found
            vectors.append(found)
        return np.stack(vectors) if vectors else np.empty((0, 0), np.float32)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) embeddings of length 1, float32, of texts as they are, without templates."""
        return text_embeddings(self._encoder, [texts] if isinstance(texts, str) else texts)

    def _ready(self, labels: Sequence[str], templates: Sequence[str] | None, several: bool) -> Labels:
        """The labels as vectors; those of the last call are kept."""
        wanted = [labels] if isinstance(labels, str) else list(labels)
        key = (tuple(wanted), None if templates is None else tuple(templates), several)
        if self._labels is None or self._labels[0] != key:
            self._labels = key, Labels(self._encoder, wanted, templates, several)
        return self._labels[1]


def _is_one(pictures: Any) -> bool:
    return isinstance(pictures, str | bytes | os.PathLike | Image.Image)


def _many(pictures: Any) -> Sequence[Picture]:
    return [pictures] if _is_one(pictures) else pictures


def _read(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    return decode(picture if isinstance(picture, bytes) else Path(picture))
