"""From class names to the vectors that images are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dcclip_cli.predict.runtime import DualEncoder

_HAN = (("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"), ("\uf900", "\ufaff"), ("\U00020000", "\U0003134f"))


def language_of(text: str) -> str:
    """`zh` for a text with a Chinese character in it, else `en`."""
    return "zh" if any(low <= char <= high for char in text for low, high in _HAN) else "en"


def fill(templates: Sequence[str], name: str) -> list[str]:
    """The templates with `{}` replaced by a name."""
    return [template.replace("{}", name) for template in templates]


def class_embeddings(model: DualEncoder, texts: Sequence[Sequence[str]], batch_size: int = 256) -> np.ndarray:
    """(C, D), length 1: the mean of the embeddings of each class's texts, as CLIP's zero-shot classifier has it."""
    flat = [text for several in texts for text in several]
    by_length = sorted(range(len(flat)), key=lambda index: len(flat[index]))  # little padding in each batch
    batches = [by_length[start : start + batch_size] for start in range(0, len(flat), batch_size)]
    encoded = np.concatenate([model.encode_texts([flat[index] for index in batch]) for batch in batches])
    embeddings = np.empty_like(encoded)
    embeddings[by_length] = encoded
    owner = np.repeat(np.arange(len(texts)), [len(several) for several in texts])
    sums = np.zeros((len(texts), embeddings.shape[1]), np.float32)
    np.add.at(sums, owner, embeddings)
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)
