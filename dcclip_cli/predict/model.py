"""Predictions, and the Python API: a loaded model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from dcclip_cli.errors import DcclipError
from dcclip_cli.model.preprocess import decode
from dcclip_cli.model.reference import ModelReference
from dcclip_cli.predict.encoder import Encoder, load_encoder
from dcclip_cli.predict.images import BATCH_SIZE, embed
from dcclip_cli.predict.zero_shot import Labels, text_embeddings


@dataclass(frozen=True)
class Prediction:
    """A picture's best labels with their probabilities, the best first, or the error that kept it from being read."""

    image: Path
    labels: tuple[tuple[str, float], ...] = ()
    error: str | None = None


def predict(
    *,
    model: ModelReference,
    images: Iterable[Path],
    labels: Sequence[str],
    top_k: int = 5,
    threshold: float = 0.0,
    templates: Sequence[str] | None = None,
    several: bool = False,
    device: str = "auto",
    threads: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Prediction]:
    """One Prediction for each image, in order, as soon as its batch is done; labels under `threshold` are left out.

    `templates` and `several` as in Labels. Raises DcclipError for a bad model, label or template, before the first.
    """
    encoder = load_encoder(model, device, threads=threads)
    ready = Labels(encoder, labels, templates, several)

    def predictions() -> Iterator[Prediction]:
        for path, found in embed(encoder, images, decode, batch_size):
            if isinstance(found, DcclipError):
                yield Prediction(path, error=found.what)
            else:
                [row] = ready.probabilities(found[np.newaxis])
                yield Prediction(path, best(ready.names, row, top_k, threshold))

    return predictions()


def best(
    names: Sequence[str], probabilities: np.ndarray, top_k: int | None, threshold: float = 0.0
) -> tuple[tuple[str, float], ...]:
    """The `top_k` most probable names (all if None) that reach `threshold`, the best first."""
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return tuple((names[index], float(probabilities[index])) for index in order if probabilities[index] >= threshold)


Picture = str | os.PathLike[str] | bytes | Image.Image  # a path, a file's bytes, or a picture of Pillow's


class Model:
    """A loaded model, the same for every reference: directory, bundle, run, `hf:`, `open_clip:`, `hf-hub:`.

    `name` and `parameters` say which it is. Every method raises DcclipError where a picture can't be read.
    """

    def __init__(self, encoder: Encoder) -> None:
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
