"""Class labels of images: from captions that are class names, and from class folders."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.data.class_folders import class_names
from dcclip_cli.data.pair import LANGUAGES, Language, PairDataset

MOST_CLASSES = 1_000  # ImageNet's
UNLABELLED = -1

_IDENTIFYING: tuple[Language, ...] = ("en", "zh")

ClassName = tuple[str | None, ...]  # of one class, by language


@dataclass(frozen=True)
class Labels:
    """The classes of a data set's images.

    `names` are the C class names in each language in which all classes have one, `of_samples` (N,)
    the class of each sample, UNLABELLED for one without, and `counts` (C,) the samples of each
    class.
    """

    names: Mapping[Language, list[str]]
    of_samples: np.ndarray
    counts: np.ndarray


def find_labels(
    datasets: Mapping[str, PairDataset], languages: Collection[Language]
) -> Labels | None:
    """The labels of pairs and images, or None where they have no two classes.

    `datasets` are by kind, in the order of their samples, and texts come last. The class of a pair
    is its first caption, that of an image the folder that it is in. Of the `languages`, a class is
    identified by its English name where the data has English names, else by its Chinese name.
    Raises DcclipError for more than MOST_CLASSES.
    """
    for language in _IDENTIFYING:
        if language not in languages:
            continue
        column = LANGUAGES.index(language)
        if any(name[column] for name in _names(datasets)):
            return _numbered(_names(datasets), column, languages)
    return None


def _names(datasets: Mapping[str, PairDataset]) -> Iterator[ClassName]:
    """The class name of each sample that has an image."""
    for kind, dataset in datasets.items():
        if kind == "pairs":
            yield from _first_captions(dataset)
        if kind == "images":
            yield from _folder_names(dataset)


def _first_captions(dataset: PairDataset) -> Iterator[ClassName]:
    columns = [dataset.captions(language) for language in LANGUAGES]
    for captions in zip(*columns, strict=True):
        yield tuple(strings[0] if strings else None for strings in captions)


def _folder_names(dataset: PairDataset) -> list[ClassName]:
    """The class name of each image in a class folder, without names for all other images."""
    keys = list(dataset.keys())
    folders = sorted({key.split("/")[0] for key in keys if "/" in key})
    nothing: ClassName = tuple(None for _ in LANGUAGES)
    path = Path(dataset.path)
    if not folders or not path.is_dir():
        return [nothing] * len(keys)
    names = class_names(path, folders)
    by_folder: dict[str, ClassName] = {}
    for number, folder in enumerate(folders):
        by_folder[folder] = tuple(
            names[language][number] if language in names else None for language in LANGUAGES
        )
    return [by_folder.get(key.split("/")[0], nothing) for key in keys]


def _numbered(
    names: Iterable[ClassName], main: int, languages: Collection[Language]
) -> Labels | None:
    """The labels of samples with these names, where the name in column `main` identifies a
    class.
    """
    numbers: dict[str, int] = {}
    classes: list[dict[Language, str]] = []
    of_samples: list[int] = []
    for name in names:
        key = name[main]
        if key is None:
            of_samples.append(UNLABELLED)
            continue
        if key not in numbers:
            numbers[key] = len(numbers)
            classes.append({})
        if len(numbers) > MOST_CLASSES:
            raise DcclipError(
                "the loss labels needs class names, but the data has more than {:,} different ones",
                "remove the loss, or train on images whose first captions are class names",
                MOST_CLASSES,
            )
        of_samples.append(numbers[key])
        for language, text in zip(LANGUAGES, name, strict=True):
            if text is not None:
                classes[numbers[key]].setdefault(language, text)
    named = {
        language: [texts[language] for texts in classes]
        for language in LANGUAGES
        if language in languages and all(language in texts for texts in classes)
    }
    if len(classes) < 2 or not named:
        return None
    labels = np.asarray(of_samples, np.int64)
    counts = np.bincount(labels[labels != UNLABELLED], minlength=len(classes))
    return Labels(named, labels, counts)
