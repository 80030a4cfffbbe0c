"""A threshold for each label, from a few pictures in class folders, for prediction with several
labels or none.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import check_target, read_json, write_json
from dcclip_cli.core.progress import Progress, ProgressChoice, progress_for
from dcclip_cli.inference.encoder import Encoder
from dcclip_cli.inference.images import PathLike
from dcclip_cli.inference.model import open_encoder
from dcclip_cli.inference.videos import is_video
from dcclip_cli.inference.zero_shot import Labels
from dcclip_cli.model.reference import STARTER, resolve
from dcclip_cli.photos.index import list_images, open_index

THRESHOLDS = "thresholds.json"  # in the folder of a model
_NO_LABEL = ("none", "其他")  # folders of pictures that no label is right for
_AGAIN = Message("run dcclip calibrate again")


@dataclass(frozen=True)
class Threshold:
    """The probability from which on a label is right, its F1 on the `pictures` of it and all
    others.
    """

    label: str
    threshold: float
    f1: float
    pictures: int


@dataclass(frozen=True)
class Calibration:
    """The file of thresholds that `predict` with several labels uses, and the threshold of each
    label.
    """

    file: Path
    thresholds: list[Threshold]


def calibrate(
    folder: PathLike,
    *,
    model: PathLike | None = None,
    out: PathLike | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: ProgressChoice = False,
) -> Calibration:
    """Write and return thresholds of labels, those with the highest F1 over all labels on labelled
    pictures.

    `folder` has a folder of pictures for each label, which is its name, or those in classes.yaml;
    pictures in one named none or 其他 are of no label. `model` is what `load` takes; `out` is by
    default thresholds.json in its folder. The F1 is that of these pictures, and so too high for
    others. Raises DcclipError without a picture of a label.
    """
    from dcclip_cli.data.class_folders import class_names, folders_in

    folder = Path(folder)
    reference = resolve(None if model is None else os.fspath(model))
    if out is None and (reference.path.name == STARTER or not reference.path.is_dir()):
        hint = Message(
            "choose a file with --out thresholds.json, and use it with dcclip predict --thresholds"
        )
        raise DcclipError("thresholds cannot be written into {}", hint, reference.target)
    file = Path(out or reference.path / THRESHOLDS)
    talk = progress_for(progress)
    check_target(file, folder=False)
    classes = [path.name for path in folders_in(folder) if path.name not in _NO_LABEL]
    if not classes:
        raise DcclipError(
            "{} has no folders with images", "create a folder of images for each label", folder
        )
    folders_by_label: dict[str, list[str]] = {}
    for names in zip(classes, *class_names(folder, classes).values(), strict=True):
        for label in dict.fromkeys(names[1:]):
            folders_by_label.setdefault(label, []).append(names[0])
    encoder = open_encoder(model, device, threads, talk)
    images = {name: state for name, state in list_images(folder).items() if not is_video(name)}
    index = open_index(encoder, folder, progress=talk, listing=images)
    if not index.paths:
        raise DcclipError(
            "{} contains no readable image", "choose a folder with readable images", folder
        )
    pictures_in = np.array([PurePath(path).parts[0] for path in index.paths])
    right = {label: np.isin(pictures_in, folders) for label, folders in folders_by_label.items()}
    for label, is_right in right.items():
        if not is_right.any():
            raise DcclipError(
                "no image of the label {} is readable", "add readable images to its folder", label
            )
        if is_right.all():
            raise DcclipError(
                "all images show the label {}",
                "add images without it in a folder named none",
                label,
            )
    return write_thresholds(file, encoder, index.embeddings, right, talk)


def write_thresholds(
    file: Path,
    encoder: Encoder,
    embeddings: np.ndarray,
    right: Mapping[str, np.ndarray],
    progress: Progress,
) -> Calibration:
    """Write and return the thresholds of labels from embeddings (N, D) of pictures, and for each
    label which (N,) pictures it is right for, some and not all.
    """
    labels = Labels(encoder, list(right), multi_label=True, progress=progress)
    scores = labels.probabilities(embeddings)
    is_right = np.stack(list(right.values()), axis=1)
    thresholds = best_thresholds(scores, is_right)
    shown = scores >= thresholds
    hits = (shown & is_right).sum(axis=0)
    pictures = is_right.sum(axis=0)
    f1 = 2 * hits / (shown.sum(axis=0) + pictures)
    columns = zip(right, thresholds.tolist(), f1.tolist(), pictures.tolist(), strict=True)
    calibration = Calibration(file, [Threshold(*column) for column in columns])
    entries = {entry.pop("label"): entry for entry in map(asdict, calibration.thresholds)}
    write_json(
        file,
        {"format": 1, "model": encoder.name, "fingerprint": encoder.fingerprint, "labels": entries},
    )
    return calibration


def best_thresholds(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(C,) thresholds with the highest F1 of all labels together, each in the middle between two
    scores (N, C).

    One for each label's own F1 would show a label that the model cannot tell with every picture.
    `right` (N, C) is bool. The F1 is a ratio of sums over labels, so it is maximised by
    Dinkelbach's method: each label's best threshold for the difference of both sums at the F1
    found so far, until that does not rise.
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    ranked = np.pad(
        np.take_along_axis(scores, order, axis=0),
        ((1, 1), (0, 0)),
        constant_values=((1, 0), (0, 0)),
    )
    hits = np.pad(
        np.take_along_axis(right, order, axis=0).cumsum(axis=0), ((1, 0), (0, 0))
    )  # of the first 0 to N
    numbers = np.arange(len(hits))[:, np.newaxis]
    labels = np.arange(scores.shape[1])
    parted = ranked[:-1] > ranked[1:]  # no threshold is between equal scores
    f1 = 0.0
    last = -1.0
    while f1 > last:
        shown = np.where(parted, 2 * hits - f1 * numbers, -np.inf).argmax(axis=0)
        last = f1
        f1 = float(2 * hits[shown, labels].sum() / (shown.sum() + right.sum()))
    return np.asarray((ranked[shown, labels] + ranked[shown + 1, labels]) / 2)


def read_thresholds(file: Path, model: Encoder) -> dict[str, float]:
    """Label -> threshold. Raises DcclipError if the file is damaged or of another model."""
    content: dict[str, Any] = read_json(file, _AGAIN)
    if content.get("fingerprint") != model.fingerprint:
        raise DcclipError("{} has thresholds for a model other than {}", _AGAIN, file, model.name)
    try:
        return {str(label): float(entry["threshold"]) for label, entry in content["labels"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DcclipError("{} contains no thresholds for labels", _AGAIN, file) from None
