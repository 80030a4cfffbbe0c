"""Which of the given labels fits a picture, and how well."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dcclip_cli.errors import DcclipError
from dcclip_cli.model.preprocess import decode
from dcclip_cli.model.reference import ModelReference
from dcclip_cli.predict.embedding import BATCH_SIZE, embed
from dcclip_cli.predict.runtime import load_model
from dcclip_cli.predict.zeroshot import Labels


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
    encoder = load_model(model, device, threads=threads)
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
