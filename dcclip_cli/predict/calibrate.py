"""A threshold for each label, from a few pictures in class folders, for prediction with several labels or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import read_json, write_json
from dcclip_cli.predict.encoder import Encoder
from dcclip_cli.predict.index import Index
from dcclip_cli.predict.zero_shot import Labels
from dcclip_cli.progress import Progress

THRESHOLDS = "thresholds.json"  # in the folder of a model
_AGAIN = Message("run dcclip calibrate again")


@dataclass(frozen=True)
class Threshold:
    """The probability from which on a label is right, its F1 on the `pictures` of it and all others."""

    label: str
    threshold: float
    f1: float
    pictures: int


def calibrate(model: Encoder, index: Index, labels: Mapping[str, Sequence[str]], progress: Progress) -> list[Threshold]:
    """The threshold of each label with the highest F1 on an index's pictures.

    `labels` are those of the pictures by the first folder of their paths; pictures of other folders are of none. The F1
    is that of these pictures, and so too high for others. Raises DcclipError without a picture of a label.
    """
    folders = np.array([PurePath(path).parts[0] for path in index.paths])
    owners: dict[str, list[str]] = {}
    for folder, names in labels.items():
        for name in dict.fromkeys(names):
            owners.setdefault(name, []).append(folder)
    scores = Labels(model, list(owners), multi_label=True, progress=progress).probabilities(index.embeddings)
    found = []
    for column, (name, several) in enumerate(owners.items()):
        right = np.isin(folders, several)
        if not right.any():
            raise DcclipError("no picture of {} can be read", "add pictures to its folder", name)
        found.append(Threshold(name, *best_threshold(scores[:, column], right), int(right.sum())))
    return found


def best_threshold(scores: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """The threshold with the highest F1, in the middle between two scores (N,), and that F1; `right` (N,) is bool."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    f1 = 2 * np.cumsum(right[order]) / (np.arange(1, len(scores) + 1) + right.sum())
    f1[:-1][ranked[:-1] == ranked[1:]] = 0  # no threshold is between equal scores
    best = int(f1.argmax())
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float((ranked[best] + below) / 2), float(f1[best])


def write_thresholds(file: Path, model: Encoder, found: Sequence[Threshold]) -> None:
    """Write thresholds for `read_thresholds`."""
    labels = {one.label: {key: value for key, value in asdict(one).items() if key != "label"} for one in found}
    write_json(file, {"format": 1, "model": model.name, "fingerprint": model.fingerprint, "labels": labels})


def read_thresholds(file: Path, model: Encoder) -> dict[str, float]:
    """Label -> threshold. Raises DcclipError if the file is damaged or of another model."""
    content: dict[str, Any] = read_json(file, _AGAIN)
    if content.get("fingerprint") != model.fingerprint:
        raise DcclipError("{} has thresholds of another model than {}", _AGAIN, file, model.name)
    try:
        return {str(label): float(one["threshold"]) for label, one in content["labels"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DcclipError("{} has no thresholds of labels", _AGAIN, file) from None
