"""Cross-language consistency: whether a query in Chinese and in English returns the same images.

Q queries, N images, D the shared width; twins are the same query in two languages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.data import prompts
from dcclip_cli.data.class_folders import class_names, images_by_class, kind_of_folder
from dcclip_cli.data.dataset import open_pairs, shards_at
from dcclip_cli.data.pair import LANGUAGES, Language, PairDataset
from dcclip_cli.data.unpaired import open_images, open_texts
from dcclip_cli.eval import registry
from dcclip_cli.eval.dataset import Classes, DataSet
from dcclip_cli.eval.datasets import BARE_NAME, Part, Templates, images_of, open_dataset
from dcclip_cli.eval.loaders.files import image_files
from dcclip_cli.eval.metrics import TWIN_TOPS, Score, metrics_of
from dcclip_cli.inference.images import find_images
from dcclip_cli.inference.images import read as read_image

_BLOCK = 128  # queries whose images are sorted at once


def open_twins(
    name: str,
    data_root: Path | None = None,
    templates: Templates = "own",
    partial: Part = "no",
    queries: str = "",
) -> DataSet:
    """The images of a data set or folder; class i in English and class i in Chinese are one query.

    The queries are the class names of the data set, or the first captions of its images; with
    `queries` those of another named data set, or texts in a file. A query that is the same text in
    both languages is left out. Raises DcclipError where no query is left.
    """
    path = Path(name)
    named = registry.find(name)
    texts = dict[Language, Sequence[str]]()
    prompted: dict[Language, Sequence[str]] = {
        language: prompts.compact(language) if templates == "compact" else BARE_NAME
        for language in LANGUAGES
    }
    if named:
        for language in registry.languages_of(named[0]):
            name = registry.name_in(named[0], language)
            dataset = open_dataset(name, None, data_root, templates, partial=partial)
            if isinstance(classes := dataset.truth[language], Classes) and not queries:
                texts[language] = classes.names
                prompted[language] = classes.templates
    elif not path.exists():
        raise registry.unknown(name)
    elif not path.is_dir() or shards_at(path):
        pairs: PairDataset = open_images(path) if queries else open_pairs(path)
        dataset = DataSet(path.stem, images_of(pairs), {})
        texts = {} if queries else _first_captions(pairs)
    else:
        by_folder = (
            images_by_class(path) if not queries and kind_of_folder(path) == "classes" else {}
        )
        texts = {**class_names(path, list(by_folder))} if by_folder else {}
        files = [file for files in by_folder.values() for file in files] or sorted(
            find_images([name])
        )
        # `read_image` supports HEIC and AVIF: a user's folder of photographs has them.
        images = replace(
            image_files(files, path), source_of=lambda number: read_image(files[number])
        )
        dataset = DataSet(path.resolve().name, images, {})
    if queries and (named := registry.find(queries)):
        if class_texts := registry.classes_of(named[0].label):
            texts = {**class_texts.names}
            prompted = {**class_texts.templates} if templates == "own" else prompted
    elif queries and not Path(queries).exists():
        raise registry.unknown(queries)
    elif queries:
        texts = _first_captions(open_texts(queries))
    twins = dict.fromkeys(
        pair for pair in zip(texts.get("en", ()), texts.get("zh", ()), strict=False) if all(pair)
    )
    different = [(en, zh) for en, zh in twins if prompts.normalized(en) != prompts.normalized(zh)]
    if not different:
        raise no_queries(queries or name)
    counts = dataset.name, len(different), len(twins) - len(different)
    note = Message(
        "{}: {:,} queries; {:,} are left out, whose text is the same in both languages", *counts
    )
    names_by_language: dict[Language, tuple[str, ...]] = dict(
        zip(("en", "zh"), zip(*different, strict=True), strict=True)
    )
    truth = {
        language: Classes(names, np.empty(0, int), tuple(prompted[language]))
        for language, names in names_by_language.items()
    }
    return replace(dataset, truth=truth, metric="overlap@10", notes=(note,))


def no_queries(name: str) -> DcclipError:
    """The error for data sets or texts without a query that differs between the languages."""
    hint = Message("write lines English<TAB>Chinese into a .tsv file, and add: --queries FILE.tsv")
    return DcclipError("{} has no queries that differ between English and Chinese", hint, name)


def check_queries(queries: str) -> None:
    """Raise DcclipError if `queries` is neither a named data set nor a readable file of texts."""
    if registry.find(queries) is None:
        if not Path(queries).exists():
            raise registry.unknown(queries)
        open_texts(queries)


def _first_captions(pairs: PairDataset) -> dict[Language, Sequence[str]]:
    """The first caption of each pair by language, empty where there is none."""
    return {
        language: [next(iter(captions), "") for captions in pairs.captions(language)]
        for language in LANGUAGES
    }


def score_twins(
    queries: Sequence[np.ndarray],
    images: np.ndarray,
    texts: Sequence[tuple[str, str]],
    is_traditional: np.ndarray,
    is_known: np.ndarray,
) -> Score:
    """How alike the first of the images (N, D) are for queries in English, in Chinese and in
    Traditional Chinese.

    `queries` are three arrays (Q, D). Traditional ones count where their text differs
    (`is_traditional`, (Q,)). `is_known` (Q,) are the queries that the model learned in both
    languages.

    The margin says which queries are translated wrong: r[i, i] - (max of r[i, j] + max of r[j, i])
    / 2, of all other queries j, where r is the correlation over the images of a query's cosines in
    English with another's in Chinese.
    """
    english, chinese, traditional = queries
    details = {f"overlap@{k}": np.empty(len(english), np.float32) for k in TWIN_TOPS}
    details |= {
        name: np.full(len(english), np.nan, np.float32)
        for name in ("rank_correlation", "traditional")
    }
    deepest = max(TWIN_TOPS)
    for start in range(0, len(english), _BLOCK):
        block = slice(start, start + _BLOCK)
        order = [
            np.argsort(-(vectors[block] @ images.T), axis=1, kind="stable")
            for vectors in (english, chinese)
        ]
        for k in TWIN_TOPS:
            details[f"overlap@{k}"][block] = _overlap(order[0], order[1], k)
        ranks = np.argsort(np.stack(order), axis=2).astype(np.float32) - (len(images) - 1) / 2
        details["rank_correlation"][block] = (
            (ranks[0] * ranks[1]).mean(axis=1) * 12 / (len(images) ** 2 - 1)
        )
        in_traditional = np.argsort(-(traditional[block] @ images.T), axis=1, kind="stable")
        overlap = _overlap(order[1], in_traditional, deepest)
        details["traditional"][block] = np.where(is_traditional[block], overlap, np.nan)
    # The correlation over images of the cosines with an English query and with a Chinese one, in
    # blocks of its (Q, Q).
    centred = (images - images.mean(axis=0)).astype(np.float64)
    covariance = centred.T @ centred
    lengths = [
        np.sqrt(((vectors @ covariance) * vectors).sum(axis=1)) for vectors in (english, chinese)
    ]
    # The same text is the same query, not another translation.
    text_numbers = [
        np.unique(of_language, return_inverse=True)[1] for of_language in zip(*texts, strict=True)
    ]
    details |= {
        "margin": np.empty(len(english), np.float32),
        "nearest": np.empty(len(english), int),
    }
    best_english = np.full(len(english), -1.0)
    for start in range(0, len(english), _BLOCK):
        block = slice(start, start + _BLOCK)
        correlation = english[block] @ covariance @ chinese.T
        correlation /= np.maximum(np.outer(lengths[0][block], lengths[1]), 1e-12)
        details["margin"][block] = np.diagonal(correlation, start)
        for numbers in text_numbers:
            correlation[numbers[block][:, None] == numbers] = -1
        details["nearest"][block] = correlation.argmax(axis=1)
        details["margin"][block] -= correlation.max(axis=1) / 2
        best_english = np.maximum(best_english, correlation.max(axis=0))
    details["margin"] -= best_english / 2
    if not is_known.all():
        details["known"] = np.where(is_known, details["overlap@10"], np.nan)
    return Score(metrics_of(details), details)


def _overlap(first: np.ndarray, second: np.ndarray, k: int) -> np.ndarray:
    """(B,) the fraction of the first k items of each row (B, N) that are in both."""
    return (first[:, :k, None] == second[:, None, :k]).sum(axis=(1, 2)) / k


def worst_twins(
    texts: Sequence[tuple[str, str]], details: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """The queries that the model learned, those with the lowest margin first, as rows for tables
    and JSON.
    """
    numbers = np.flatnonzero(~np.isnan(details.get("known", details["margin"])))
    return [
        {
            "en": texts[number][0],
            "zh": texts[number][1],
            **{
                name: round(float(details[name][number]), 4)
                for name in ("overlap@10", "rank_correlation", "margin")
            },
            "nearest": texts[int(details["nearest"][number])][1],
        }
        for number in numbers[np.argsort(details["margin"][numbers], kind="stable")].tolist()
    ]
