"""Open test sets: a named one from disk or the hub, or a file or folder of the user's own."""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import yaml

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.text import language_by_script
from dcclip_cli.data import prompts
from dcclip_cli.data.class_folders import class_names, images_by_class
from dcclip_cli.data.dataset import open_pairs, shards_at
from dcclip_cli.data.pair import LANGUAGES, Language, PairDataset
from dcclip_cli.eval import registry
from dcclip_cli.eval.dataset import (
    Captions,
    Classes,
    DataSet,
    Images,
    ImageTransform,
    Loaded,
    Loader,
    Location,
)
from dcclip_cli.eval.loaders import LOADERS
from dcclip_cli.eval.loaders.files import HubDataset, image_files
from dcclip_cli.eval.registry import KnownSet

Templates = Literal["own", "compact", "name"]
Part = Literal["no", "all", "present"]
BARE_NAME = ("{}",)  # the templates of data sets that have none of their own


def open_dataset(
    name: str,
    languages: Sequence[Language] | None = None,
    data_root: Path | None = None,
    templates: Templates = "own",
    retrieval: bool = False,
    partial: Part = "no",
) -> DataSet:
    """The test set of that name, or at that path. Raises DcclipError for a missing or incomplete
    one.

    A named one is read from `data_root`, or downloaded from the hub if there is no root; its name
    has its language. `partial` allows a part of one of classes. A path is opened in the
    `languages` given, else in all that it has; all its captions are texts if `retrieval`.
    """
    if named := registry.find(name):
        return _named(*named, data_root, templates, partial)
    path = Path(name)
    if not path.exists():
        raise registry.unknown(name)
    if not path.is_dir() or shards_at(path):
        dataset = data_set(open_pairs(path), retrieval)
    else:
        by_folder = images_by_class(path)
        labelled = [
            (file, label) for label, files in enumerate(by_folder.values()) for file in files
        ]
        classes = {
            language: _classes([names[label] for _, label in labelled])
            for language, names in class_names(path, list(by_folder)).items()
        }
        dataset = DataSet(
            path.resolve().name, image_files([file for file, _ in labelled], path), classes
        )
    if retrieval and not dataset.is_retrieval:
        raise DcclipError(
            "{} has no captions",
            "use pairs for retrieval: Parquet or tar files, or a folder of them",
            path,
        )
    truth = {}
    for language in languages or sorted(dataset.truth):
        if language not in dataset.truth:
            lacking = Message("captions") if dataset.is_retrieval else Message("class names")
            hint = Message(
                "evaluate with --languages {}, or add these texts", ",".join(sorted(dataset.truth))
            )
            raise DcclipError("data set {} has no {} in {}", hint, dataset.name, lacking, language)
        truth[language] = dataset.truth[language]
        if isinstance(texts := truth[language], Classes) and templates == "compact":
            truth[language] = replace(texts, templates=prompts.compact(language))
    return replace(dataset, truth=truth)


def check_dataset(
    name: str,
    languages: Sequence[Language] | None,
    data_root: Path | None,
    task: str,
    partial: Part = "no",
) -> str:
    """The name of the data set. Raises DcclipError as opening it would, but nothing is downloaded:
    the hub is asked.
    """
    named = registry.find(name)
    if named is None:
        dataset = open_dataset(name, languages, data_root, retrieval=task == "retrieval")
        if task == "probe":
            training_split(dataset)
        return dataset.name
    known_set, language = named
    location = _location(known_set, data_root, language)
    for split in (known_set.split, "train") if task == "probe" else (known_set.split,):
        loader = _loader(replace(location, split=split))
        if isinstance(loader, HubDataset) and loader.is_remote:
            with _needs_its_images(location):
                loader.check()
        elif split == known_set.split:
            open_dataset(name, languages, data_root, partial=partial)
    return registry.name_in(known_set, language)


def layout_of(known_set: KnownSet, data_root: Path) -> str | None:
    """The layout of a data set under `data_root`, unread; None where it is missing. Raises
    DcclipError.
    """
    location = _location(known_set, data_root, registry.languages_of(known_set)[0])
    return next((layout.layout for layout in LOADERS if layout.find(location)), None)


def training_split(dataset: DataSet) -> Loaded:
    """The labelled images to train probes on. Raises DcclipError where the data set has none."""
    location = None if dataset.is_retrieval else dataset.location
    loaded = location and _load(replace(location, split="train"))
    if not loaded or loaded.images.fingerprint == dataset.images.fingerprint:
        reason = Message("data set {} has no training images", dataset.name)
        raise DcclipError(reason, "use a named data set that has classes and a train folder")
    return loaded


def _named(
    entry: KnownSet, language: Language, data_root: Path | None, templates: Templates, partial: Part
) -> DataSet:
    location = _location(entry, data_root, language)
    name = registry.name_in(entry, language)
    loaded = _load(location)
    classes = location.prompts
    part = ""
    truth = loaded.truth
    count = len(loaded.images)
    if partial != "no" and isinstance(truth, np.ndarray):
        present = len(np.unique(truth)) if truth.ndim == 1 else entry.classes
        if (count, present) != (entry.size, entry.classes):
            size = Message(" of {:,}", entry.size) if entry.size else ""
            request = (
                Message("only these are asked for")
                if partial == "present"
                else Message("all are asked for")
            )
            counted = count, size, present, entry.classes, request
            part = Message("{:,}{} images of {:,} of {:,} classes, {}", *counted)
    counts = (
        [] if part and count <= (entry.size or count) else [(Message("images"), entry.size, count)]
    )
    if isinstance(truth, Captions):
        counts.append((Message("captions"), entry.texts, len(truth.texts)))
    for items, expected, actual in counts:
        if expected not in (None, actual):
            remark = Message(" ({})", entry.remark) if entry.remark else ""
            raise DcclipError(
                "data set {}: the split {} has {:,} {}{}, but {:,} were found",
                "finish the download, or download the right split; to evaluate a part, " "add --partial all or "
                "--partial present",
                name, entry.split, expected, items, remark, actual,
            )  # fmt: skip
    if isinstance(truth, Captions):
        # Captions in the other language would be measured under this one's name.
        chinese = sum(language_by_script(text) == "zh" for text in truth.texts)
        if (chinese > len(truth.texts) / 2) != (language == "zh"):
            raise DcclipError(
                "data set {0}: {1:,} of {2:,} captions contain Chinese, but {3} captions " "are expected",
                "put the {3} captions into the folder {0}, next to the captions in the " "other language",
                name, chinese, len(truth.texts), language,
            )  # fmt: skip
        texts: Classes | Captions = truth
    else:
        assert classes is not None
        chosen = {
            "own": tuple(classes.templates[language]),
            "compact": prompts.compact(language),
            "name": BARE_NAME,
        }
        names = tuple(classes.names[language])
        plain = classes.plain_names.get(language, {})
        if (
            part and partial == "present" and truth.ndim == 1
        ):  # the classes that have images, numbered from 0
            numbers, truth = np.unique(truth, return_inverse=True)
            names = tuple(names[number] for number in numbers)
        texts = Classes(names, truth, chosen[templates], classes.alternates[language], plain)
    return DataSet(
        name, loaded.images, {language: texts}, entry.metric, entry.split, ImageTransform(entry.squash, entry.border),
        entry.both_ways, location, part,
    )  # fmt: skip


def _location(known_set: KnownSet, data_root: Path | None, language: Language) -> Location:
    classes = (
        prompts.read(registry.prompts_of(known_set)) if known_set.task != "retrieval" else None
    )
    name = known_set.name
    base = known_set.name.removesuffix("_cn")
    names = [
        name,
        known_set.label,
        *([f"wds_{known_set.hub}", known_set.hub] if known_set.hub else []),
    ]
    if known_set.task == "retrieval":
        names.insert(0, registry.name_in(known_set, language))  # captions of one language alone
    if base != name:
        names += [f"{base.capitalize()}-CN", f"{base.upper()}-CN"]
    if name == "muge_cn":
        names += [base, base.upper()]
    folders = _folders(names, data_root)
    siblings = tuple(folder for folder in _folders([base], data_root) if folder not in folders)
    # Only captions depend on the language: classes have the same images in both.
    return Location(
        known_set, folders, known_set.split, "en" if classes else language, classes, siblings
    )


def _folders(names: Sequence[str], data_root: Path | None) -> tuple[Path, ...]:
    if data_root is None:
        return ()
    if not data_root.is_dir():
        raise DcclipError(
            "--data-root {} is not a folder",
            "give the folder that contains the data sets",
            data_root,
        )
    folders = (data_root / name for name in dict.fromkeys(names))
    return tuple(folder for folder in folders if folder.is_dir())


@functools.lru_cache(maxsize=4)
def _load(location: Location) -> Loaded:
    loader = _loader(location)
    remote = isinstance(loader, HubDataset) and loader.is_remote
    with _needs_its_images(location) if remote else nullcontext():
        return loader.load()


def _loader(location: Location) -> Loader:
    """The loader for the files in the location's folders, else for the hub. Raises DcclipError if
    neither has it.
    """
    label = location.dataset.label
    hub = location.dataset.hub
    for layout in LOADERS:
        if loader := layout.find(location):
            return loader
    if location.folders:
        folder = location.folders[0]
        reason = Message(
            "{} contains no {} images of {} in a supported layout", folder, location.split, label
        )
        raise DcclipError(reason, _where(location))
    if not hub:
        reason = Message("found neither in --data-root nor on the hub")
        raise DcclipError(
            "cannot load the images of data set {}: {}", _where(location), label, reason
        )
    return HubDataset(location, Path(f"clip-benchmark/wds_{hub}"))


@contextmanager
def _needs_its_images(location: Location) -> Iterator[None]:
    try:
        yield
    except DcclipError as error:
        label = location.dataset.label
        raise DcclipError(
            "cannot load the images of data set {}: {}", _where(location), label, error.what
        ) from None


def _where(location: Location) -> str:
    name = location.dataset.name
    if location.dataset.task == "retrieval":
        return Message(
            "give --data-root DIR, with the captions and images in DIR/{}/ "
            "(docs/how-to/evaluate.md)",
            name,
        )
    folder = prompts.read(registry.prompts_of(location.dataset)).folders[0]
    split = f"{name}/{location.split}"
    return Message(
        "give --data-root DIR with {0}/{1}/*.jpg or {0}/0.tar in it (no torchvision archives)",
        split,
        folder,
    )


def images_of(table: PairDataset) -> Images:
    """The images of pairs; pairs with the same key are told apart by their rows."""
    earlier = Counter[str]()
    keys = []
    for row, key in enumerate(table.keys()):
        keys.append(f"{key} (row {row})" if earlier[key] else key)
        earlier[key] += 1
    return Images(keys, table.image, table.fingerprint)


def data_set(table: PairDataset, retrieval: bool | None = None) -> DataSet:
    """Pairs; the first caption in each language is the class name, or all captions are texts if
    `retrieval`.

    None: these are class names if an image has one in each language, and half of them or more come
    again.
    """
    images = images_of(table)
    path = Path(table.path)
    captions = {language: table.captions(language) for language in LANGUAGES}
    if retrieval is None:
        of_images = [texts for rows in captions.values() for texts in rows if texts]
        names = {texts[0] for texts in of_images}
        retrieval = any(len(texts) > 1 for texts in of_images) or 2 * len(names) > len(of_images)
    if (
        retrieval
    ):  # of all captions in a language among the pairs that have one; equal captions are one text
        truth = dict[Language, Captions | Classes]()
        notes = []
        for language, rows in captions.items():
            described = sum(map(bool, rows))
            if described:
                truth[language] = Captions.of_images(rows).merged()
            if 0 < described < len(images):
                counts = described, len(images), language
                notes.append(
                    Message(
                        "data set {}: {:,} of {:,} pairs have a caption in {}", path.stem, *counts
                    )
                )
        if not truth:
            raise DcclipError(
                "data set {} has no captions",
                "use pairs with captions in en, in zh, or in both",
                path.stem,
            )
        return DataSet(path.stem, images, truth, "mean_recall", notes=tuple(notes))
    complete = {language: rows for language, rows in captions.items() if all(rows)}
    if not complete:
        raise DcclipError(
            "{}: some pairs lack a zh caption and some lack an en caption, so their "
            "class is unknown",
            "make the class name the first caption of every pair, in en, in zh, or in "
            "both; to measure caption "
            "retrieval instead, add --task retrieval",
            path,
        )
    classes = {
        language: _classes([texts[0] for texts in rows]) for language, rows in complete.items()
    }
    return DataSet(path.stem, images, classes)


def _classes(name_of_image: Sequence[str]) -> Classes:
    """Images of the same name are of one class; classes are in the order of their first image."""
    number: dict[str, int] = {}
    labels = [number.setdefault(name.strip(), len(number)) for name in name_of_image]
    return Classes(tuple(number), np.asarray(labels), BARE_NAME)


def classes_yaml(name: str) -> str:
    """The classes of a named data set as the classes.yaml of a folder of class folders. Raises
    DcclipError.
    """
    named = registry.find(name)
    if named is None:
        raise registry.unknown(name)
    if named[0].task == "retrieval":
        raise DcclipError(
            "data set {} has captions instead of classes",
            "choose a data set with classes (see: dcclip datasets)",
            name,
        )
    texts = prompts.read(registry.prompts_of(named[0]))
    names = {
        folder: {language: translations[label] for language, translations in texts.names.items()}
        for label, folder in enumerate(texts.folders)
    }
    return yaml.safe_dump(
        names, allow_unicode=True, sort_keys=False, default_flow_style=None, width=1000
    )
