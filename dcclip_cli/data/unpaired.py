"""Datasets for distilling one tower: images without captions, texts without images, and phrases made of texts."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from dcclip_cli.data.dataset import ConcatDataset, find_dataset
from dcclip_cli.data.pair import LANGUAGES, Language, Pair, PairDataset, caption_strings
from dcclip_cli.data.reading import IMAGE_SUFFIXES
from dcclip_cli.errors import DcclipError
from dcclip_cli.files import json_object
from dcclip_cli.text import language_by_script

Captions = dict[Language, tuple[str, ...]]
_EXAMPLE = 'write lines like {"zh": "猫", "en": "cat"}'

# ---- images without captions


class ImageDataset(PairDataset):
    """The images of another dataset; captions that it may have are left out."""

    has_uncaptioned_images = True

    def __init__(self, dataset: PairDataset) -> None:
        self.path, self.files, self._dataset = dataset.path, dataset.files, dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Pair:
        pair = self._dataset[index]
        return Pair(pair.key, pair.image, meta=pair.meta)


class ImageFolder(PairDataset):
    """The JPEG, PNG and WebP files in a folder and below it, sorted by name."""

    has_uncaptioned_images = True

    def __init__(self, path: Path) -> None:
        files = (file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        self.path, self.files = path, sorted(files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Pair:
        file = self.files[index]
        return Pair(str(file.relative_to(self.path)), file.read_bytes())


def open_images(path: str | Path) -> PairDataset:
    """The images in a folder, a Parquet file, a tar file or tar shards. Raises DcclipError where there are none."""
    path = Path(path)
    pairs = find_dataset(path, uncaptioned=True)
    dataset = ImageFolder(path) if pairs is None else ImageDataset(pairs)
    if not len(dataset):
        hint = "name a folder of JPEG, PNG or WebP files, a .parquet file or a .tar file"
        raise DcclipError(f"{path} has no images", hint)
    return dataset


# ---- texts without images


class TextDataset(PairDataset):
    """Texts without images; one entry in both languages is parallel text."""

    num_images = 0

    def __init__(self, path: Path, files: list[Path], texts: list[Captions]) -> None:
        self.path, self.files = path, files
        self._captions = {language: [text.get(language, ()) for text in texts] for language in LANGUAGES}

    def __len__(self) -> int:
        return len(self._captions["zh"])

    def __getitem__(self, index: int) -> Pair:
        return Pair(str(index), b"", self._captions["zh"][index], self._captions["en"][index])


def open_texts(path: str | Path) -> PairDataset:
    """The texts in a file, UTF-8, without empty lines.

    .txt: one text a line, Chinese if it has a Chinese character; .tsv, .csv: columns zh and en, or without a header two
    columns of which one is Chinese; .jsonl: objects with zh and en, a string or a list each. Of pairs, each different
    caption is a text. Raises DcclipError where the path is something else, or empty.
    """
    path = Path(path)
    files = [path]
    if path.is_file() and path.suffix in READERS:
        try:
            with path.open(encoding="utf-8-sig", newline="") as stream:
                texts = [text for text in READERS[path.suffix](stream, path) if text]
        except UnicodeDecodeError as error:
            what = f"{path} is not UTF-8: {error.reason} at byte {error.start}"
            raise DcclipError(what, "save it as UTF-8") from None
    elif (pairs := find_dataset(path)) is not None:
        files = pairs.files
        # One language at a time: captions in two languages need not be translations.
        every = {language: chain.from_iterable(pairs.captions(language)) for language in LANGUAGES}
        texts = [{language: (text,)} for language in LANGUAGES for text in dict.fromkeys(every[language])]
    else:
        raise DcclipError(f"{path} is not a text file that dcclip reads", f"name {', '.join(READERS)}, or pairs")
    if not texts:
        raise DcclipError(f"{path} has no text", "every line in it is empty: write it again, or name another")
    return TextDataset(path, files, texts)


def _plain(stream: Iterable[str], path: Path) -> Iterator[Captions]:
    return ({language_by_script(text): (text,)} for line in stream if (text := line.strip()))


def _table(rows: Iterable[list[str]], path: Path) -> Iterator[Captions]:
    columns: dict[Language, int] = {}
    for number, row in enumerate(rows, 1):
        texts = [text.strip() for text in row]
        if not any(texts):
            continue
        if not columns:
            columns = _columns(path, texts)
            if texts[min(columns.values())] in LANGUAGES:
                continue  # the header
        if len(texts) <= (last := max(columns.values())):
            hint = "each line has the same columns; leave a text empty where it is missing"
            raise DcclipError(f"{path}:{number}: {len(texts)} columns instead of {last + 1}", hint)
        yield {language: (texts[column],) for language, column in columns.items() if texts[column]}


def _columns(path: Path, first: list[str]) -> dict[Language, int]:
    """The column of each language, from the first line: a header, or Chinese next to English."""
    if named := {language: first.index(language) for language in LANGUAGES if language in first}:
        return named
    languages = [language_by_script(text) for text in first]
    if sorted(languages) != ["en", "zh"]:
        what = f"{path}:1: cannot tell which column is Chinese and which is English"
        raise DcclipError(what, "begin with a header: zh, en")
    return {language: column for column, language in enumerate(languages)}


def _objects(stream: Iterable[str], path: Path) -> Iterator[Captions]:
    for number, line in enumerate(stream, 1):
        record = json_object(line, f"{path}:{number}", _EXAMPLE) if line.strip() else {}
        texts = {key: caption_strings(record.get(key), f"{path}:{number}: {key}") for key in LANGUAGES}
        stripped = {key: tuple(text.strip() for text in own if text.strip()) for key, own in texts.items()}
        yield {key: own for key, own in stripped.items() if own}


READERS: dict[str, Callable[[Iterable[str], Path], Iterator[Captions]]] = {
    ".txt": _plain,
    # Nobody quotes in a .tsv, and a lone " is a character.
    ".tsv": lambda stream, path: _table((line.rstrip("\r\n").split("\t") for line in stream), path),
    ".csv": lambda stream, path: _table(csv.reader(stream), path),
    ".jsonl": _objects,
}


# ---- phrases made of short texts. The student copies the teacher's answer, so nobody has to have written the text:
# Tang et al. (arXiv 1903.12136) distil BERT on sentences made by changing and cutting real ones.

_KEY = np.zeros(2, np.uint64)  # for every recipe seed the same phrases, so that the teacher cache serves every run
_JOINED, _THREE = 0.6, 0.3  # fractions of phrases that are joined rather than listed, and of three parts, not two
_JOINS: dict[Language, tuple[str, str]] = {"zh": ("", "，"), "en": (" ", ", ")}  # joined, listed
_LONGEST: dict[Language, int] = {"zh": 8, "en": 30}  # characters of a part: names and keywords, not sentences
_LIST = re.compile("[,，、;；]")


class PhraseDataset(TextDataset):
    """`count` phrases of two or three short texts each, joined or listed with commas; always the same ones.

    Parallel text is joined in both languages, so that it stays parallel. Raises DcclipError where no two texts are
    short enough and without a comma.
    """

    def __init__(self, texts: PairDataset, count: int) -> None:
        super().__init__(texts.path, texts.files, _phrases(texts, count))

    @cached_property
    def file_digests(self) -> list[bytes]:
        return [hashlib.sha256(digest + str(len(self)).encode()).digest() for digest in super().file_digests]


def with_phrases(texts: PairDataset, count: int) -> PairDataset:
    """The texts, followed by `count` phrases made of them."""
    return ConcatDataset([texts, PhraseDataset(texts, count)])


def _phrases(texts: PairDataset, count: int) -> list[Captions]:
    by_languages: dict[tuple[Language, ...], list[dict[Language, str]]] = defaultdict(list)
    for text in texts:
        part = {language: own[0] for language in LANGUAGES if (own := text.captions(language))}
        if all(len(own) <= _LONGEST[language] and not _LIST.search(own) for language, own in part.items()):
            by_languages[tuple(part)].append(part)
    kinds = [kind for kind in by_languages.values() if len(kind) > 1]  # one language, the other, or both
    if not kinds:
        raise DcclipError(
            f"{texts.path} has no two short texts to make phrases of",
            f"short is at most {_LONGEST['zh']} Chinese or {_LONGEST['en']} English characters without a comma; "
            "add some, or set data.phrases: 0",
        )
    kind_of_text = [kind for kind in kinds for _ in kind]
    phrases: list[Captions] = []
    for which, joined, three, *places in np.random.Generator(np.random.Philox(key=_KEY)).random((count, 6)).tolist():
        kind = kind_of_text[int(which * len(kind_of_text))]
        parts = [kind[int(place * len(kind))] for place in places[: 2 + (three < _THREE)]]
        joins = {language: _JOINS[language][joined >= _JOINED] for language in parts[0]}
        phrases.append({language: (join.join(part[language] for part in parts),) for language, join in joins.items()})
    return phrases
