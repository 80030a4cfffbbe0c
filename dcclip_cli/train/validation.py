"""Zero-shot validation during training, in each language, for early stopping and the best weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from dcclip_cli.data.collator import first_captions, unaugmented
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.pair import LANGUAGES, Language, PairDataset
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval import metrics
from dcclip_cli.model.precision import finite
from dcclip_cli.model.towers import OpenClipTowers

_ROWS = 64  # images or texts at once


@dataclass(frozen=True)
class Validation:
    """Zero-shot classification of pairs' images, whose different first captions are the class names."""

    dataset: PairDataset
    languages: tuple[Language, ...]

    def __call__(self, towers: OpenClipTowers) -> dict[str, float]:
        """`top1_zh` and `top1_en`, in 0..1. The towers stay unchanged."""
        training = towers.training
        towers.eval()
        with torch.no_grad():
            images = self._images(towers)
            top1 = {f"top1_{language}": self._top1(towers, images, language) for language in self.languages}
        towers.train(training)
        return top1

    def _images(self, towers: OpenClipTowers) -> np.ndarray:
        embeddings = (
            towers.image_features(
                torch.from_numpy(np.stack([towers.preprocess(unaugmented(self.dataset, index)) for index in rows])).to(
                    _device(towers)
                )
            ).embedding
            for rows in _chunks(len(self.dataset))
        )
        return finite(_unit(embeddings), towers.name, "images")

    def _top1(self, towers: OpenClipTowers, images: np.ndarray, language: Language) -> float:
        captions = first_captions(self.dataset, language)
        names = list(dict.fromkeys(captions))
        numbers = {name: number for number, name in enumerate(names)}
        embeddings = (
            towers.text_features(towers.tokenize([names[row] for row in rows]).to(_device(towers))).embedding
            for rows in _chunks(len(names))
        )
        texts = finite(_unit(embeddings), towers.name, "texts")
        labels = np.asarray([numbers[caption] for caption in captions])
        return float(metrics.top_k(metrics.ranks(images @ texts.T, labels), 1))


def open_validation(path: str | None, languages: tuple[Language, ...]) -> Validation:
    """Validation on the pairs at `path`. Raises DcclipError if no language has captions for all of them."""
    if path is None:
        raise DcclipError("validate_every_steps needs pairs to validate on", "set data.validation")
    dataset = open_pairs(path)
    complete = tuple(one for one in LANGUAGES if one in languages and all(dataset.captions(one)))
    if not complete:
        raise DcclipError(f"{path}: some pairs have no caption", "give every pair its class name as first caption")
    return Validation(dataset, complete)


def _chunks(count: int) -> Iterator[range]:
    return (range(first, min(first + _ROWS, count)) for first in range(0, count, _ROWS))


def _device(towers: OpenClipTowers) -> torch.device:
    return next(towers.parameters()).device


def _unit(embeddings: Iterator[torch.Tensor]) -> np.ndarray:
    return np.concatenate([F.normalize(one.float(), dim=-1).cpu().numpy() for one in embeddings])
