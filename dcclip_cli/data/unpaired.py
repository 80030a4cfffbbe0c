"""Datasets for distilling one tower: images without captions, texts without images, and phrases
made of texts.
"""

import csv
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import numpy as np

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import file_sha256, json_object
from dcclip_cli.core.progress import Progress
from dcclip_cli.core.text import language_by_script, not_utf8
from dcclip_cli.data.class_folders import images_below
from dcclip_cli.data.dataset import find_dataset, named, split
from dcclip_cli.data.options import DataOptions
from dcclip_cli.data.pair import (
    LANGUAGES,
    ConcatDataset,
    Language,
    Lazy,
    Pair,
    PairDataset,
    caption_strings,
    captions_in_memory,
    check_once,
)
from dcclip_cli.data.remote import CACHE_BYTES
from dcclip_cli.data.shards import Captions, Columns

_ROWS_AT_A_TIME = 65_536  # of texts that are Python objects
_EXAMPLE = 'write lines like {"zh": "猫", "en": "cat"}'


class ImageDataset(ConcatDataset):
    """The images of another dataset; captions that it may have are left out."""

    captions = PairDataset.captions
    first_caption_ids = PairDataset.first_caption_ids

    def __init__(self, dataset: PairDataset) -> None:
        super().__init__([dataset])
        self.num_pairs = 0

    def __getitem__(self, index: int) -> Pair:
        return replace(super().__getitem__(index), zh=(), en=())

    @property
    def fingerprint(self) -> str:
        return self._datasets[0].fingerprint


class ImageFolder(PairDataset):
    """The JPEG, PNG and WebP files in a folder and below it, sorted by name."""

    num_pairs = 0

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        files = sorted(file for file in images_below(path) if file.is_file())
        names = [os.fsencode(file.relative_to(path)) for file in files]  # in any encoding
        self.path = path
        self._names = pa.array(names, pa.binary())

    def __len__(self) -> int:
        return len(self._names)

    def keys(self) -> Sequence[str]:
        return Lazy(len(self), lambda index: os.fsdecode(self._names[index].as_py()))

    def __getitem__(self, index: int) -> Pair:
        name = self.keys()[index]
        file = Path(self.path, name)
        try:
            return Pair(name, file.read_bytes())
        except OSError as error:
            error.filename = str(file)  # which a failing disk does not say
            raise

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 over names and sizes: photographs are too large to be read at every start."""
        digest = hashlib.sha256()
        folder = os.fsencode(self.path)
        for value in self._names:
            name = value.as_py()
            digest.update(b"%s\0%d\n" % (name, os.path.getsize(os.path.join(folder, name))))
        return digest.hexdigest()


def open_images(
    path: str | Path,
    columns: Columns | None = None,
    progress: Progress | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> PairDataset:
    """The images in a folder, or in tars and Parquet files. Raises DcclipError where there are
    none.
    """
    pairs = find_dataset(path, True, columns, progress, cache_bytes)
    dataset = ImageFolder(Path(path)) if pairs is None else ImageDataset(pairs)
    if not len(dataset):
        hint = Message("use a folder of JPEG, PNG or WebP files, a .parquet file or a .tar file")
        raise DcclipError("{} contains no images", hint, named(path))
    return dataset


def recipe_images(
    data: DataOptions, kind: Literal["train", "validation"], progress: Progress | None = None
) -> PairDataset | None:
    """A recipe's images without captions; `hold_out` splits them where no pairs are split. None if
    there are none.
    """
    if data.images is None:
        return None
    images = open_images(data.images, data.columns, progress, data.cache_bytes)
    return images if data.train else split(images, data, kind)


class TextDataset(PairDataset):
    """Texts without images; one entry in both languages is parallel text."""

    num_images = 0

    def __init__(
        self,
        path: str | Path,
        captions: Mapping[Language, Sequence[tuple[str, ...]]],
        fingerprint: str,
    ) -> None:
        self.path = path
        self._captions = captions
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self._captions["zh"])

    def __getitem__(self, index: int) -> Pair:
        return Pair(str(index), b"", self._captions["zh"][index], self._captions["en"][index])


def open_texts(
    path: str | Path, columns: Columns | None = None, progress: Progress | None = None
) -> TextDataset:
    """The texts in a file, UTF-8, without empty lines.

    .txt: one text a line, Chinese if it has a Chinese character; .tsv, .csv: columns zh and en, or
    without a header two columns of which one is Chinese; .jsonl: objects with zh and en, a string
    or a list each. Of pairs, each different caption is a text. Raises DcclipError where the path
    is something else, or empty.
    """
    file = Path(path)
    if file.is_file() and file.suffix.lower() in READERS:
        try:
            with file.open(encoding="utf-8-sig", newline="") as stream:
                texts = captions_in_memory(
                    text for text in READERS[file.suffix.lower()](stream, file) if text
                )
        except UnicodeDecodeError:
            raise not_utf8(file) from None
        fingerprint = file_sha256(file)
    elif (pairs := find_dataset(path, columns=columns, progress=progress)) is not None:
        import pyarrow as pa
        import pyarrow.compute as pc

        # Each different caption as a text: one language at a time, since captions in two need not
        # be translations.
        different = {}
        for language in LANGUAGES:
            captions = iter(pairs.captions(language))
            chunks = []
            while rows := list(islice(captions, _ROWS_AT_A_TIME)):
                chunks.append(pa.array([*chain.from_iterable(rows)], pa.string()))
            different[language] = pc.unique(pa.chunked_array(chunks, pa.string()))
        entries = (
            (language, text.as_py()) for language, values in different.items() for text in values
        )
        texts = captions_in_memory({language: (text,)} for language, text in entries)
        fingerprint = pairs.fingerprint
    else:
        message = Message("{} is not a supported text file", named(path))
        raise DcclipError(
            message, Message("use one of these file types: {}; or use pairs", ", ".join(READERS))
        )
    if not len(texts["zh"]):
        raise DcclipError(
            "{} contains no text",
            "add texts (all lines are empty), or use another file",
            named(path),
        )
    return TextDataset(named(path), texts, fingerprint)


def _table(rows: Iterable[list[str]], path: Path) -> Iterator[Captions]:
    columns: dict[Language, int] = {}
    for number, row in enumerate(rows, 1):
        texts = [text.strip() for text in row]
        if not any(texts):
            continue
        if not columns:
            check_once(LANGUAGES, texts, path)
            if columns := {
                language: texts.index(language) for language in LANGUAGES if language in texts
            }:
                continue  # the header
            columns = {language_by_script(text): column for column, text in enumerate(texts)}
            if len(texts) != 2 or len(columns) != 2:
                message = Message(
                    "{}:1: unclear which column is Chinese and which is English", path
                )
                raise DcclipError(message, "start the file with a header line: zh, en")
        if len(texts) <= (last := max(columns.values())):
            hint = Message(
                "give every line the same number of columns; leave a cell empty if its "
                "text is missing"
            )
            raise DcclipError(
                "{}:{}: {} columns instead of {}", hint, path, number, len(texts), last + 1
            )
        yield {language: (texts[column],) for language, column in columns.items() if texts[column]}


def _objects(stream: Iterable[str], path: Path) -> Iterator[Captions]:
    for number, line in enumerate(stream, 1):
        record = json_object(line, f"{path}:{number}", _EXAMPLE) if line.strip() else {}
        texts = {
            key: caption_strings(record.get(key), f"{path}:{number}: {key}") for key in LANGUAGES
        }
        stripped = {
            key: tuple(text.strip() for text in captions if text.strip())
            for key, captions in texts.items()
        }
        yield {key: captions for key, captions in stripped.items() if captions}


READERS: dict[str, Callable[[Iterable[str], Path], Iterator[Captions]]] = {
    ".txt": lambda stream, _: (
        {language_by_script(text): (text,)} for line in stream if (text := line.strip())
    ),
    # Nobody quotes in a .tsv, and a lone " is a character.
    ".tsv": lambda stream, path: _table((line.rstrip("\r\n").split("\t") for line in stream), path),
    ".csv": lambda stream, path: _table(csv.reader(stream), path),
    ".jsonl": _objects,
    ".ndjson": _objects,
}


# ---- phrases made of short texts. The student copies the teacher's answer, so nobody has to have
# written the text: Tang et al. (arXiv 1903.12136) distil BERT on sentences made by changing and
# cutting real ones.

_KEY = np.zeros(
    2, np.uint64
)  # for every recipe seed the same phrases, so that the teacher cache serves every run
# fractions of phrases that are joined rather than listed, and of three parts, not two
_JOINED = 0.6
_THREE = 0.3
_JOINS: dict[Language, tuple[str, str]] = {"zh": ("", "，"), "en": (" ", ", ")}  # joined, listed
_LONGEST: dict[Language, int] = {
    "zh": 8,
    "en": 30,
}  # characters of a part: names and keywords, not sentences
_LIST = re.compile("[,，、;；]")


class PhraseDataset(TextDataset):
    """`count` phrases of two or three short texts each, joined or listed with commas; always the
    same ones.

    Parallel text is joined in both languages, so that it stays parallel. A phrase is made when it
    is asked for. Raises DcclipError where no two texts are short enough and without a comma.
    """

    def __init__(self, texts: TextDataset, count: int) -> None:
        self._texts = texts
        self._count = count
        self._kinds = _kinds(texts)  # one language, the other, or both
        if not self._kinds:
            hint = Message(
                "add texts of at most {} Chinese or {} English characters without a "
                "comma, or set data.phrases: 0",
                _LONGEST["zh"],
                _LONGEST["en"],
            )
            raise DcclipError(
                "data.phrases needs at least two short texts; {} has fewer", hint, texts.path
            )
        self._kind_ends = np.cumsum([len(rows) for _, rows in self._kinds])
        captions = {
            language: Lazy(
                count, partial(self._caption, language), partial(self._all_captions, language)
            )
            for language in LANGUAGES
        }
        fingerprint = hashlib.sha256(f"{texts.fingerprint} {count}".encode()).hexdigest()
        super().__init__(texts.path, captions, fingerprint)

    def _caption(self, language: Language, index: int) -> tuple[str, ...]:
        random = np.random.Philox(key=_KEY)
        random.advance(index // 2 * 3)  # 4 numbers at a time, so that 3 times are two phrases
        draws = np.random.Generator(random).random((2, 6))[index % 2]
        return self._joined(language, draws.tolist())

    def _all_captions(self, language: Language) -> Iterator[tuple[str, ...]]:
        random = np.random.Generator(np.random.Philox(key=_KEY))
        for first in range(0, self._count, _ROWS_AT_A_TIME):
            draws = random.random((min(_ROWS_AT_A_TIME, self._count - first), 6))
            yield from (self._joined(language, row_draws) for row_draws in draws.tolist())

    def _joined(self, language: Language, draws: list[float]) -> tuple[str, ...]:
        """The phrase of six random numbers, in one language."""
        which, joined, three, *places = draws
        kind = int(self._kind_ends.searchsorted(int(which * self._kind_ends[-1]), "right"))
        languages, rows = self._kinds[kind]
        if language not in languages:
            return ()
        captions = self._texts.captions(language)
        parts = (
            captions[int(rows[int(place * len(rows))])][0]
            for place in places[: 2 + (three < _THREE)]
        )
        return (_JOINS[language][joined >= _JOINED].join(parts),)


def _kinds(texts: TextDataset) -> list[tuple[tuple[Language, ...], np.ndarray]]:
    """The rows of the texts that are short and no list, by the languages that they have; of one
    text alone, none.
    """
    rows: dict[tuple[Language, ...], list[np.ndarray]] = {}
    captions_of_rows = zip(*(texts.captions(language) for language in LANGUAGES), strict=True)
    for first in range(0, len(texts), _ROWS_AT_A_TIME):
        rows_of_part: dict[tuple[Language, ...], list[int]] = {}
        for row, captions in enumerate(islice(captions_of_rows, _ROWS_AT_A_TIME), first):
            part = {
                language: strings[0]
                for language, strings in zip(LANGUAGES, captions, strict=True)
                if strings
            }
            if all(
                len(text) <= _LONGEST[language] and not _LIST.search(text)
                for language, text in part.items()
            ):
                rows_of_part.setdefault(tuple(part), []).append(row)
        for languages, numbers in rows_of_part.items():
            rows.setdefault(languages, []).append(np.asarray(numbers, np.int32))
    joined = ((languages, np.concatenate(numbers)) for languages, numbers in rows.items())
    return [(languages, numbers) for languages, numbers in joined if len(numbers) > 1]


def with_phrases(texts: TextDataset, count: int) -> PairDataset:
    """The texts, followed by `count` phrases made of them."""
    return ConcatDataset([texts, PhraseDataset(texts, count)])
