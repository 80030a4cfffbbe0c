"""A threshold for each label, from a few pictures in class folders, for prediction with several labels or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import read_json, write_json
from dcclip_cli.inference.encoder import Encoder
from dcclip_cli.inference.index import ImageIndex
from dcclip_cli.inference.zero_shot import Labels
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


def label_thresholds(
    model: Encoder, index: ImageIndex, labels: Mapping[str, Sequence[str]], progress: Progress
) -> list[Threshold]:
    """The thresholds of labels with the highest F1, of all together, on an index's pictures.

    `labels` are those of the pictures by the first folder of their paths; pictures of other folders are of none. The F1
    is that of these pictures, and so too high for others. Raises DcclipError without a picture of a label.
    """
    folders = np.array([PurePath(path).parts[0] for path in index.paths])
    owners: dict[str, list[str]] = {}
    for folder, names in labels.items():
        for name in dict.fromkeys(names):
            owners.setdefault(name, []).append(folder)
    scores = Labels(model, list(owners), multi_label=True, progress=progress).probabilities(index.embeddings)
    right = np.stack([np.isin(folders, label_folders) for label_folders in owners.values()], axis=1)
    if missing := [name for place, name in enumerate(owners) if not right[:, place].any()]:
        raise DcclipError("no picture of {} can be read", "add pictures to its folder", missing[0])
    thresholds = best_thresholds(scores, right)
    shown = scores >= thresholds
    f1 = 2 * (shown & right).sum(axis=0) / (shown.sum(axis=0) + right.sum(axis=0))
    columns = zip(owners, thresholds.tolist(), f1.tolist(), right.sum(axis=0).tolist(), strict=True)
    return [Threshold(*column) for column in columns]


def best_thresholds(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(C,) thresholds with the highest F1 of all labels together, each in the middle between two scores (N, C).

    One for each label's own F1 would show a label that the model cannot tell with every picture. `right` (N, C) is
    bool. The F1 is a ratio of sums over labels, so it is maximised by Dinkelbach's method: each label's best threshold
    for the difference of both sums at the F1 found so far, until that does not rise.
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    ranked = np.pad(np.take_along_axis(scores, order, axis=0), ((1, 1), (0, 0)), constant_values=((1, 0), (0, 0)))
    hits = np.pad(np.take_along_axis(right, order, axis=0).cumsum(axis=0), ((1, 0), (0, 0)))  # of the first 0 to N
    numbers, labels = np.arange(len(hits))[:, np.newaxis], np.arange(scores.shape[1])
    parted = ranked[:-1] > ranked[1:]  # no threshold is between equal scores
    f1, last = 0.0, -1.0
    while f1 > last:
        shown = np.where(parted, 2 * hits - f1 * numbers, -np.inf).argmax(axis=0)
        last, f1 = f1, float(2 * hits[shown, labels].sum() / (shown.sum() + right.sum()))
    return np.asarray((ranked[shown, labels] + ranked[shown + 1, labels]) / 2)


def write_thresholds(file: Path, model: Encoder, thresholds: Sequence[Threshold]) -> None:
    """Write thresholds for `read_thresholds`."""
    labels = {entry.pop("label"): entry for entry in map(asdict, thresholds)}
    write_json(file, {"format": 1, "model": model.name, "fingerprint": model.fingerprint, "labels": labels})


def read_thresholds(file: Path, model: Encoder) -> dict[str, float]:
    """Label -> threshold. Raises DcclipError if the file is damaged or of another model."""
    content: dict[str, Any] = read_json(file, _AGAIN)
    if content.get("fingerprint") != model.fingerprint:
        raise DcclipError("{} has thresholds of another model than {}", _AGAIN, file, model.name)
    try:
        return {str(label): float(entry["threshold"]) for label, entry in content["labels"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DcclipError("{} has no thresholds of labels", _AGAIN, file) from None
