"""Zero-shot validation during training, in each language."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from dcclip_cli.data.collator import unaugmented
from dcclip_cli.data.dataset import recipe_pairs
from dcclip_cli.data.options import DataOptions
from dcclip_cli.data.pair import LANGUAGES, Language, PairDataset
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval import metrics
from dcclip_cli.model.precision import finite
from dcclip_cli.model.towers import OpenClipTowers, evaluating

_ROWS = 64  # images or texts at once


def validate(towers: OpenClipTowers, dataset: PairDataset, languages: Sequence[Language]) -> dict[str, float]:
    """`top1_zh` and `top1_en`, in 0..1, of images whose different first captions are the class names.

    A few images and their scores are in memory at a time, and the embeddings of all class names. The towers stay
    unchanged.
    """
    right, device = dict.fromkeys(languages, 0.0), next(towers.parameters()).device
    with evaluating(towers):
        texts = {}
        for language in languages:
            numbers: dict[str, int] = {}  # of classes; a pair without a caption has none
            captions_of_pairs = dataset.captions(language)
            classes_of_pairs = (
                numbers.setdefault(captions[0], len(numbers)) if captions else -1 for captions in captions_of_pairs
            )
            labels, names = np.fromiter(classes_of_pairs, np.int32, len(dataset)), list(numbers)
            tokens = (towers.tokenize(names[rows.start : rows.stop]).to(device) for rows in _chunks(len(names)))
            classes = np.concatenate([_unit(towers.text_features(part).embedding) for part in tokens])
            texts[language] = finite(classes, towers.name, "texts"), labels
        for rows in _chunks(len(dataset)):
            pixels = np.stack([towers.preprocess(unaugmented(dataset, index)) for index in rows])
            embeddings = towers.image_features(torch.from_numpy(pixels).to(device)).embedding
            images = finite(_unit(embeddings), towers.name, "images")
            for language, (classes, labels) in texts.items():
                named = labels[rows] >= 0
                ranks, ties = metrics.ranks(images[named] @ classes.T, labels[rows][named])
                right[language] += float(metrics.among_first(ranks, ties, 1).sum())
    return {f"top1_{code}": right[code] / int((labels >= 0).sum()) for code, (_, labels) in texts.items()}


def open_validation(data: DataOptions, languages: Sequence[Language]) -> Callable[[OpenClipTowers], dict[str, float]]:
    """`validate` on the pairs in `data.validation`, in each language on those that have a caption in it.

    Raises DcclipError if none has.
    """
    dataset = recipe_pairs(data, "validation")
    assert dataset is not None  # the options were checked
    present = tuple(code for code in LANGUAGES if code in languages and any(dataset.captions(code)))
    if not present:
        raise DcclipError("{}: no pair has a caption in {}", "use other pairs", dataset.path, ", ".join(languages))
    return partial(validate, dataset=dataset, languages=present)


def _chunks(count: int) -> Iterator[range]:
    return (range(first, min(first + _ROWS, count)) for first in range(0, count, _ROWS))


def _unit(embeddings: torch.Tensor) -> np.ndarray:
    return F.normalize(embeddings.float(), dim=-1).cpu().numpy()
