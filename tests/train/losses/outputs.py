"""Outputs of made-up models, and the formulas of losses in numpy."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from dcclip_cli.model.towers import ImageFeatures, TextFeatures
from dcclip_cli.train.losses.base import Outputs, TeacherLoss

NONE: dict[str, nn.Module] = {}


def outputs(
    image: Any = ((1.0, 0.0),),
    zh: Any = None,
    en: Any = None,
    image_map: torch.Tensor | None = None,
    image_index: dict[str, list[int]] | None = None,
    scale: float = 1.0,
) -> Outputs:
    """Outputs with these embeddings; by default text n belongs to image n."""
    image = torch.as_tensor(image, dtype=torch.float32)
    texts = {
        name: torch.as_tensor(rows, dtype=torch.float32) for name, rows in (("zh", zh), ("en", en)) if rows is not None
    }
    image_index = image_index or {name: list(range(len(rows))) for name, rows in texts.items()}
    image_map = torch.zeros(len(image), 1, 1, 1) if image_map is None else image_map
    return Outputs(
        ImageFeatures(image, image_map),
        {name: text(rows[:, None], [1] * len(rows), rows) for name, rows in texts.items()},
        {name: torch.tensor(image_index[name]) for name in texts},
        torch.tensor(scale),
    )


def text(tokens: Any, lengths: list[int], embedding: torch.Tensor | None = None) -> TextFeatures:
    """Text features with tokens (N, L, W) of which each text has so many."""
    tokens = torch.as_tensor(tokens)
    mask = (torch.arange(tokens.shape[1])[None] < torch.tensor(lengths)[:, None]).long()
    return TextFeatures(torch.zeros(len(tokens), 2) if embedding is None else embedding, tokens, mask)


def random_outputs(seed: int, count: int = 6, width: int = 5, scale: float = 1.0) -> Outputs:
    """Outputs for `count` images with a Chinese and an English text each."""
    random = torch.Generator().manual_seed(seed)
    image, zh, en = (torch.randn(count, width, generator=random) for _ in range(3))
    return outputs(image, zh, en, scale=scale)


def value(loss: TeacherLoss, student: Outputs, teacher: Outputs, adapters: Mapping[str, nn.Module] = NONE) -> float:
    return float(loss(student, teacher, adapters).detach())


def unit(vectors: torch.Tensor) -> np.ndarray:
    array = vectors.double().numpy()
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def cosines(one: Outputs, language: str) -> np.ndarray:
    return unit(one.image.embedding) @ unit(one.texts[language].embedding).T


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def soft_cross_entropy(target: np.ndarray, logits: np.ndarray) -> float:
    return float(-(target * np.log(softmax(logits))).sum(1).mean())


def cross_entropy(logits: np.ndarray) -> float:
    """Of rows whose right answer is on the diagonal."""
    return soft_cross_entropy(np.eye(len(logits)), logits)
