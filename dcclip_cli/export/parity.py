"""Does the exported model say the same as the model that it came from?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dcclip_cli.predict.runtime import DualEncoder

BATCH_SIZES = (1, 3, 16)  # taken in turn, so that a batch size or a text length frozen into a graph shows


@dataclass(frozen=True)
class Samples:
    """What two models are compared on. `source` says where the images are from.

    `labels` are the texts that images are told apart by, a list for each language: a name and its translation lie so
    close together that changing one for the other would say nothing. `texts` are further ones of any kind.
    """

    source: str
    images: Sequence[Image.Image]
    labels: Sequence[Sequence[str]]
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Parity:
    """How far two models are apart.

    `*_max_difference`: of any number in an embedding of length 1. `*_centred_cosine`: mean over samples, after the mean
    embedding is taken away, since raw cosines look good even between unlike models. `agreement`: the share of images
    for which both find the same label the most fitting, mean over the languages.
    """

    source: str
    images: int
    texts: int
    image_max_difference: float
    text_max_difference: float
    image_centred_cosine: float
    text_centred_cosine: float
    agreement: float


def compare(original: DualEncoder, exported: DualEncoder, samples: Samples) -> Parity:
    """The parity of an exported model, run in batches of several sizes, with the original, run in one batch."""
    pixels = np.stack([original.preprocess(image) for image in samples.images])
    own_pixels = np.stack([exported.preprocess(image) for image in samples.images])
    texts = sorted(
        {text for several in (*samples.labels, samples.texts) for text in several}, key=lambda text: (len(text), text)
    )
    images = original.encode_pixels(pixels), _in_batches(exported.encode_pixels, own_pixels)
    words = original.encode_texts(texts), _in_batches(exported.encode_texts, texts)
    scores = [image @ text.T for image, text in zip(images, words, strict=True)]
    columns = [[texts.index(label) for label in several] for several in samples.labels]
    best = [np.stack([score[:, several].argmax(axis=1) for several in columns]) for score in scores]
    return Parity(
        source=samples.source,
        images=len(pixels),
        texts=len(texts),
        image_max_difference=float(np.abs(images[0] - images[1]).max()),
        text_max_difference=float(np.abs(words[0] - words[1]).max()),
        image_centred_cosine=centred_cosine(*images),
        text_centred_cosine=centred_cosine(*words),
        agreement=float((best[0] == best[1]).mean()),
    )


def centred_cosine(first: np.ndarray, second: np.ndarray) -> float:
    """The mean cosine of the rows of two (N, D), after the mean row of the first is taken from both."""
    mean = first.mean(axis=0)
    first, second = first - mean, second - mean
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(((first * second).sum(axis=1) / np.maximum(lengths, 1e-12)).mean())


def _in_batches(encode: Callable[..., np.ndarray], items: Sequence[str] | np.ndarray) -> np.ndarray:
    results: list[np.ndarray] = []
    start = 0
    while start < len(items):
        size = BATCH_SIZES[len(results) % len(BATCH_SIZES)]
        results.append(encode(items[start : start + size]))
        start += size
    return np.concatenate(results)
