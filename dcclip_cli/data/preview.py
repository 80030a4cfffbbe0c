"""A first look at training data: whether it can be read, about how many samples, some captions; of
URLs, a shard.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from tarfile import BLOCKSIZE

from PIL import Image

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.text import not_utf8
from dcclip_cli.data.class_folders import images_below, no_pairs
from dcclip_cli.data.dataset import Source, named, shards_at
from dcclip_cli.data.pair import LANGUAGES, Language, Lazy, Pair, PairDataset
from dcclip_cli.data.reading import cut_off
from dcclip_cli.data.remote import DataFile, local_copies
from dcclip_cli.data.shards import (
    Captions,
    Columns,
    columns_in,
    columns_used,
    group_images,
    open_parquet,
    parquet_errors,
    tar_rows,
)
from dcclip_cli.data.unpaired import READERS
from dcclip_cli.model.preprocess import decode

_SAMPLE = 500  # samples that are looked at
_FILES = 8  # that are looked into


@dataclass(frozen=True)
class Preview:
    """About how many samples there are, or `exact`ly, the captions of some of them, and the first
    `image`, if any.

    `embeddings`: pairs have these in place of images.
    """

    samples: int
    captions: list[Captions]
    image: bytes | None = None
    exact: bool = False
    embeddings: bool = False

    def bytes_per_caption(self, languages: tuple[Language, ...]) -> float:
        """The mean length of a caption in UTF-8; 0 if there are none."""
        texts = [
            text
            for captions in self.captions
            for language in languages
            for text in captions[language]
        ]
        return sum(len(text.encode()) for text in texts) / max(1, len(texts))


class PreviewDataset(PairDataset):
    """As many samples as a preview counts, at least `count`: all have its image, or a white one,
    and its captions.
    """

    path = "preview"

    def __init__(self, preview: Preview, kind: str, count: int) -> None:
        self._preview = preview
        self._count = max(count, preview.samples)
        file = BytesIO()
        Image.new("RGB", (256, 256), "white").save(file, "JPEG")
        self._image = preview.image or file.getvalue()
        self.num_images = 0 if kind == "texts" else self._count
        self.num_pairs = self._count if kind == "pairs" else 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Pair:
        captions = self._preview.captions[index % len(self._preview.captions)]
        return Pair(str(index), self._image, tuple(captions["zh"]), tuple(captions["en"]))

    def captions(self, language: Language) -> Sequence[tuple[str, ...]]:
        return Lazy(len(self), lambda index: self[index].captions(language))


def preview_pairs(
    source: Source, columns: Columns | None = None, uncaptioned: bool = False
) -> Preview:
    """A first look at pairs. Raises DcclipError where nothing is there, it is something else, or
    it begins broken.

    With `uncaptioned`, images without a record are samples as well.
    """
    shards = shards_at(source)
    columns = columns or Columns()
    if not shards:
        raise no_pairs(named(source))
    for shard in shards:
        [shard] = local_copies([shard])
        preview_shard = _parquet if shard.name.endswith(".parquet") else _tar
        if preview := preview_shard(shard, columns_in(shard, columns), uncaptioned):
            if (
                shard != shards[-1] and not shards[-1].is_remote
            ):  # raises where the download was cut off
                preview_shard(shards[-1], columns_in(shards[-1], columns), uncaptioned)
            everything = sum(file.size for file in shards)
            samples = round(preview.samples * everything / shard.size)
            exact = preview.exact and len(shards) == 1
            return replace(preview, samples=samples, exact=exact)
    raise DcclipError("{} contains no pairs", "collect or download the data again", named(source))


def may_have_captions(source: Source, columns: Columns, languages: Sequence[Language]) -> bool:
    """Whether a pair has captions in all of the languages: in up to eight files, and row groups of
    a Parquet file.

    A single large tar, only the beginning of which is looked at, may have them.
    """
    shards = [shard for shard in shards_at(source) if shard.size]
    captions: list[Captions] = []
    looked_at = (
        [shards[0]] if shards and shards[0].is_remote else shards[:: max(1, len(shards) // _FILES)]
    )
    for shard in local_copies(looked_at):
        if shard.name.endswith(".parquet"):
            used = columns_in(shard, columns)
            with open_parquet(shard) as parquet, parquet_errors(shard):
                fields = [used.zh or "zh", used.en or "en", used.caption or ""]
                count = parquet.num_row_groups
                names = [name for name in fields if name in parquet.schema_arrow.names]
                groups = range(0, count if names else 0, max(1, count // _FILES))
                batches = (
                    parquet.iter_batches(row_groups=[group], columns=names) for group in groups
                )
                records = (
                    record for batch in chain.from_iterable(batches) for record in batch.to_pylist()
                )
                captions += [
                    used.captions(record, f"{shard}: row {row}")
                    for row, record in enumerate(records)
                ]
        elif preview := _tar(shard, columns, False):
            if len(shards) == 1 and len(preview.captions) >= _SAMPLE:
                return True
            captions += preview.captions
    return any(all(pair.get(language) for language in languages) for pair in captions)


def preview_images(path: str | Path, columns: Columns | None = None) -> Preview:
    """A first look at images without captions. Raises DcclipError where there are none."""
    folder = Path(path)
    if not folder.is_dir() or shards_at(path):
        return preview_pairs(path, columns, uncaptioned=True)
    files = [*images_below(folder)]
    if not files:
        raise DcclipError(
            "{} contains no images",
            "use a folder of JPEG, PNG or WebP files, a .parquet file or a .tar file",
            path,
        )
    image = _first_image(((str(file), file.read_bytes()) for file in files), uncaptioned=True)
    return Preview(len(files), [{"zh": (), "en": ()}], image, exact=True)


def preview_texts(source: str | Path, columns: Columns | None = None) -> Preview:
    """A first look at texts without images. Raises DcclipError where there are none."""
    path = Path(source)
    if not path.is_file() or path.suffix.lower() not in READERS:
        return preview_pairs(source, columns)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            texts = list(
                islice(
                    (text for text in READERS[path.suffix.lower()](stream, path) if text), _SAMPLE
                )
            )
    except UnicodeDecodeError:
        raise not_utf8(path) from None
    if not texts:
        raise DcclipError(
            "{} contains no text", "add texts (all lines are empty), or use another file", path
        )
    captions: list[Captions] = [
        {language: text.get(language, ()) for language in LANGUAGES} for text in texts
    ]
    length = sum(
        len(text.encode()) + 1
        for entry in captions
        for strings in entry.values()
        for text in strings
    )
    return Preview(round(path.stat().st_size * len(texts) / length), captions)


def _parquet(file: DataFile, columns: Columns, uncaptioned: bool) -> Preview | None:
    with open_parquet(file) as parquet, parquet_errors(file):
        names = parquet.schema_arrow.names
        if columns.image or "embedding" not in names:
            columns_used(file, names, columns)  # raises where one is missing
        named = (columns.zh or "zh", columns.en or "en", columns.caption or "")
        used = [name for name in named if name in names and not uncaptioned]
        batch = next(parquet.iter_batches(_SAMPLE, columns=used), None)
        if batch is None or not parquet.metadata.num_rows:
            return None
        records = batch.to_pylist() if used else [{}]
        captions = [
            columns.captions(record, f"{file}: row {row}") for row, record in enumerate(records)
        ]
        image_column = columns.image or "image"
        image = None
        if image_column in names:
            contents = (
                (f"{file}: the first image", image)
                for image in group_images(file, 0, image_column)
                if image
            )
            image = _first_image(contents, uncaptioned)
        embeddings = image_column not in names
        return Preview(
            int(parquet.metadata.num_rows), captions, image, exact=True, embeddings=embeddings
        )


def _tar(file: DataFile, columns: Columns, uncaptioned: bool) -> Preview | None:
    images = list(tar_rows(file, columns, 2 * _SAMPLE))
    rows = [row for row in images if uncaptioned or row.captioned]
    if not rows:
        return None
    if any(file.read(file.size - BLOCKSIZE, BLOCKSIZE)):  # it ends in zeros
        problem = Message("{} is not a readable tar file: {}", file, cut_off(file.size).detail)
        raise DcclipError(problem, "download or collect it again")
    is_whole = len(images) < _SAMPLE // 2
    end = file.size if is_whole else images[-1].offset + images[-1].size
    captions: list[Captions] = [
        {"zh": () if uncaptioned else row.zh, "en": () if uncaptioned else row.en} for row in rows
    ]
    contents = ((f"{file}: {row.key}", file.read(row.offset, row.size)) for row in rows)
    image = _first_image(contents, uncaptioned)
    return Preview(round(len(rows) * file.size / end), captions, image, exact=is_whole)


def _first_image(images: Iterable[tuple[str, bytes]], uncaptioned: bool) -> bytes | None:
    """The first of some images, with where they are; of `uncaptioned` ones, the first that can be
    read of eight.

    Training replaces the others. Raises DcclipError if there is none that can be read.
    """
    first_error: DcclipError | None = None
    for where, image in islice(images, _FILES if uncaptioned else 1):
        try:
            decode(image)
            return image
        except DcclipError as error:
            first_error = first_error or DcclipError("{}: {}", error.hint, where, error.what)
    if first_error:
        raise first_error
    return None
