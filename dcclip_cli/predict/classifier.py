"""From class names to the vectors that images are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dcclip_cli.predict.runtime import DualEncoder

_HAN = (("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"), ("\uf900", "\ufaff"), ("\U00020000", "\U0003134f"))


def language_of(text: str) -> str:
    """`zh` for a text with a Chinese character in it, else `en`."""
    return "zh" if any(low <= char <= high for char in text for low, high in _HAN) else "en"


def fill(templates: Sequence[str], name: str) -> list[str]:
    """The templates with `{}` replaced by a name."""
    return [template.replace("{}", name) for template in templates]


def text_embeddings(
    model: DualEncoder, texts: Sequence[str], batch_size: int = 256, advance: Callable[[int], object] = lambda _: None
) -> np.ndarray:
    """(N, D), length 1, in the order of the texts; `advance` hears how many more are done."""
    by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # little padding in each batch
    encoded = []
    for start in range(0, len(texts), batch_size):
        batch = by_length[start : start + batch_size]
        encoded.append(model.encode_texts([texts[index] for index in batch]))
        advance(len(batch))
    found = np.concatenate(encoded)
    embeddings = np.empty_like(found)
    embeddings[by_length] = found
    return embeddings


def class_embeddings(model: DualEncoder, texts: Sequence[Sequence[str]], batch_size: int = 256) -> np.ndarray:
    """(C, D), length 1: the mean of the embeddings of each class's texts, as CLIP's zero-shot classifier has it."""
    embeddings = text_embeddings(model, [text for several in texts for text in several], batch_size)
    return class_means(embeddings, [len(several) for several in texts])


def class_means(embeddings: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """(C, D), length 1: the mean of each run of rows, of which class number c has `counts[c]`."""
    sums = np.zeros((len(counts), embeddings.shape[1]), np.float32)
    np.add.at(sums, np.repeat(np.arange(len(counts)), counts), embeddings)
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)
