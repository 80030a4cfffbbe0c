"""Zero-shot validation during training, in each language, and the best weights by it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.nn import functional as F

from dcclip_cli.checksums import Record, read_record, write_record
from dcclip_cli.data.collator import unaugmented
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.options import DataOptions
from dcclip_cli.data.pair import LANGUAGES, Language, PairDataset
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.eval import metrics
from dcclip_cli.files import atomic_folder, validated
from dcclip_cli.model.precision import finite
from dcclip_cli.model.towers import OpenClipTowers

WEIGHTS, METRICS = "weights.safetensors", "metrics.json"
_ROWS = 64  # images or texts at once


@dataclass(frozen=True)
class Validation:
    """Zero-shot classification of pairs' images, whose different first captions are the class names.

    A few images and their scores are in memory at a time, and the embeddings of all class names.
    """

    dataset: PairDataset
    languages: tuple[Language, ...]

    def __call__(self, towers: OpenClipTowers) -> dict[str, float]:
        """`top1_zh` and `top1_en`, in 0..1. The towers stay unchanged."""
        training, right = towers.training, dict.fromkeys(self.languages, 0)
        towers.eval()
        with torch.no_grad():
            texts = {language: self._texts(towers, language) for language in self.languages}
            for rows in _chunks(len(self.dataset)):
                images = self._images(towers, rows)
                for language, (embeddings, labels) in texts.items():
                    right[language] += int((metrics.ranks(images @ embeddings.T, labels[rows]) == 0).sum())
        towers.train(training)
        return {f"top1_{language}": count / len(self.dataset) for language, count in right.items()}

    def _images(self, towers: OpenClipTowers, rows: range) -> np.ndarray:
        pixels = np.stack([towers.preprocess(unaugmented(self.dataset, index)) for index in rows])
        embeddings = towers.image_features(torch.from_numpy(pixels).to(_device(towers))).embedding
        return finite(_unit(embeddings), towers.name, "images")

    def _texts(self, towers: OpenClipTowers, language: Language) -> tuple[np.ndarray, np.ndarray]:
        """The embeddings (C, D) of the class names, and the class (N,) of each pair."""
        numbers: dict[str, int] = {}
        names = (captions[0] for captions in self.dataset.captions(language))
        labels = np.fromiter((numbers.setdefault(name, len(numbers)) for name in names), np.int32, len(self.dataset))
        classes = list(numbers)
        embeddings = [
            _unit(towers.text_features(towers.tokenize([classes[row] for row in rows]).to(_device(towers))).embedding)
            for rows in _chunks(len(classes))
        ]
        return finite(np.concatenate(embeddings), towers.name, "texts"), labels


def open_validation(data: DataOptions, languages: tuple[Language, ...]) -> Validation:
    """Validation on the pairs in `data.validation`. Raises DcclipError if no language has captions for all of them."""
    if data.validation is None:
        raise DcclipError("validate_every_steps needs pairs to validate on", "set data.validation")
    dataset = open_pairs(data.validation, data.columns, cache_bytes=data.cache_bytes)
    complete = tuple(one for one in LANGUAGES if one in languages and all(dataset.captions(one)))
    if not complete:
        raise DcclipError(
            "{}: some pairs have no caption", "give every pair its class name as first caption", dataset.path
        )
    return Validation(dataset, complete)


class _Best(BaseModel):
    """The content of metrics.json."""

    model_config = ConfigDict(strict=True)
    step: int = Field(ge=0)
    metrics: dict[str, float]
    score: float


class BestCheckpoint:
    """The best weights so far by validation, on disk. `step` is 0 and `metrics` empty before the first validation."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        """A checkpoint that was written after `resumed_step` is ignored: training will get there again."""
        self._folder = folder
        self.metrics: dict[str, float] = {}
        self.step, self._score = 0, -math.inf
        if (folder / METRICS).is_file():
            record = self._record()
            saved = validated(_Best, record.content, folder / METRICS, record.hint)
            if saved.step <= resumed_step:
                self.step, self.metrics, self._score = saved.step, saved.metrics, saved.score

    def update(self, step: int, metrics: dict[str, float], model: nn.Module, write: bool) -> bool:
        """Keep the model if its mean metric is the best so far, and return whether it is. One process may `write`."""
        from safetensors.torch import save_file

        score = sum(metrics.values()) / len(metrics)
        if score <= self._score:
            return False
        self.step, self.metrics, self._score = step, metrics, score
        if write:
            with atomic_folder(self._folder) as temporary:
                weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
                save_file(weights, temporary / WEIGHTS)
                content = {"step": step, "metrics": metrics, "score": score}
                write_record(temporary / METRICS, content)
        return True

    def restore(self, model: nn.Module) -> None:
        """Give the model the best weights."""
        from safetensors.torch import load_file

        with torch.no_grad(), self._record().checking():
            model.load_state_dict(load_file(self._folder / WEIGHTS))

    def _record(self) -> Record:
        return read_record(self._folder / METRICS, Message("start over with --fresh"))


def _chunks(count: int) -> Iterator[range]:
    return (range(first, min(first + _ROWS, count)) for first in range(0, count, _ROWS))


def _device(towers: OpenClipTowers) -> torch.device:
    return next(towers.parameters()).device


def _unit(embeddings: torch.Tensor) -> np.ndarray:
    return F.normalize(embeddings.float(), dim=-1).cpu().numpy()
