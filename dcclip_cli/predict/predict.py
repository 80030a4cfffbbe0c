"""Which of the given labels fits a picture, and how well."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from dcclip_cli.errors import DcclipError
from dcclip_cli.model.preprocess import decode
from dcclip_cli.model.reference import ModelReference
from dcclip_cli.predict.classifier import class_embeddings, fill, language_of
from dcclip_cli.predict.runtime import PLAIN_PROMPTS, DualEncoder, load_model


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
    device: str = "auto",
    batch_size: int = 16,
) -> Iterator[Prediction]:
    """One Prediction for each image, in order, as soon as its batch is done. Raises DcclipError for a bad model."""
    encoder = load_model(model, device)
    prompts = {**PLAIN_PROMPTS, **encoder.prompts}
    classes = class_embeddings(encoder, [fill(prompts[language_of(label)], label) for label in labels])
    remaining = iter(images)
    while batch := list(islice(remaining, batch_size)):
        yield from _predict_batch(encoder, batch, labels, classes, top_k)


def probabilities(images: np.ndarray, classes: np.ndarray, logit_scale: float) -> np.ndarray:
    """(B, C) softmax over the classes of scaled cosines between image (B, D) and class (C, D) embeddings of length 1.

    A sigmoid model's bias is the same for every class, so it drops out of the softmax.
    """
    logits = logit_scale * (images @ classes.T).astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _predict_batch(
    encoder: DualEncoder, paths: list[Path], labels: Sequence[str], classes: np.ndarray, top_k: int
) -> list[Prediction]:
    pixels: list[np.ndarray] = []
    errors: dict[int, str] = {}
    for position, path in enumerate(paths):
        try:
            pixels.append(encoder.preprocess(decode(path)))
        except DcclipError as error:
            errors[position] = error.what
    rows = iter(probabilities(encoder.encode_pixels(np.stack(pixels)), classes, encoder.logit_scale) if pixels else ())
    return [
        Prediction(path, error=errors[position]) if position in errors else _best(path, next(rows), labels, top_k)
        for position, path in enumerate(paths)
    ]


def _best(path: Path, row: np.ndarray, labels: Sequence[str], top_k: int) -> Prediction:
    order = np.argsort(-row, kind="stable")[:top_k]
    return Prediction(path, tuple((labels[index], float(row[index])) for index in order))
