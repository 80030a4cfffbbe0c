"""A first look at training data, in milliseconds: whether it can be read, about how many samples, some captions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dcclip_cli.data.dataset import Source, named, shards_at
from dcclip_cli.data.pair import LANGUAGES, Language
from dcclip_cli.data.reading import IMAGE_SUFFIXES
from dcclip_cli.data.shards import Captions, Columns, columns_used, open_parquet, parquet_errors, records_of, tar_rows
from dcclip_cli.data.storage import DataFile
from dcclip_cli.data.unpaired import READERS
from dcclip_cli.errors import DcclipError
from dcclip_cli.text_files import not_utf8

_SAMPLE = 500  # samples that are looked at


@dataclass(frozen=True)
class Preview:
    """About how many samples there are, and the captions of some of them."""

    samples: int
    captions: list[Captions]

    def captions_per_sample(self, languages: tuple[Language, ...]) -> float:
        """The mean number of captions in these languages."""
        return sum(len(one[language]) for one in self.captions for language in languages) / len(self.captions)

    def bytes_per_caption(self, languages: tuple[Language, ...]) -> float:
        """The mean length of a caption in UTF-8; 0 if there are none."""
        texts = [text for one in self.captions for language in languages for text in one[language]]
        return sum(len(text.encode()) for text in texts) / max(1, len(texts))


def preview_pairs(source: Source, columns: Columns | None = None, uncaptioned: bool = False) -> Preview:
    """A first look at pairs. Raises DcclipError where nothing is there, it is something else, or it begins broken.

    With `uncaptioned`, images without a record are samples as well.
    """
    shards, columns = shards_at(source), columns or Columns()
    if not shards:
        raise DcclipError(
            f"{named(source)} has no pairs", "name a .parquet file, a .tar file or a folder of such shards"
        )
    for shard in shards:
        read = _parquet if shard.name.endswith(".parquet") else _tar
        if found := read(shard, columns, uncaptioned):
            everything = sum(file.size for file in shards)
            return Preview(round(found.samples * everything / shard.size), found.captions)
    raise DcclipError(f"{named(source)} has no pairs", "collect or download it again, or name another")


def preview_images(path: str | Path, columns: Columns | None = None) -> Preview:
    """A first look at images without captions. Raises DcclipError where there are none."""
    folder = Path(path)
    if not folder.is_dir() or shards_at(path):
        return preview_pairs(path, columns, uncaptioned=True)
    count = sum(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.rglob("*"))
    if not count:
        raise DcclipError(
            f"{path} has no images", "name a folder of JPEG, PNG or WebP files, a .parquet or a .tar file"
        )
    return Preview(count, [{"zh": (), "en": ()}])


def preview_texts(source: str | Path, columns: Columns | None = None) -> Preview:
    """A first look at texts without images. Raises DcclipError where there are none."""
    path = Path(source)
    if not path.is_file() or path.suffix not in READERS:
        return preview_pairs(source, columns)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            found = list(islice((text for text in READERS[path.suffix](stream, path) if text), _SAMPLE))
    except UnicodeDecodeError:
        raise not_utf8(path) from None
    if not found:
        raise DcclipError(f"{path} has no text", "every line in it is empty: write it again, or name another")
    captions: list[Captions] = [{language: text.get(language, ()) for language in LANGUAGES} for text in found]
    length = sum(len(text.encode()) + 1 for one in captions for several in one.values() for text in several)
    return Preview(round(path.stat().st_size * len(found) / length), captions)


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
        records = records_of(batch, f"{file}: row", 0) if used else [{}]
        captions = [columns.captions(record, f"{file}: row {row}") for row, record in enumerate(records)]
        return Preview(int(parquet.metadata.num_rows), captions)


def _tar(file: DataFile, columns: Columns, uncaptioned: bool) -> Preview | None:
    rows = [row for row in tar_rows(file, columns, 2 * _SAMPLE) if uncaptioned or row.captioned]
    if not rows:
        return None
    end = rows[-1].offset + rows[-1].size if len(rows) >= _SAMPLE // 2 else file.size
    captions: list[Captions] = [
        {"zh": () if uncaptioned else row.zh, "en": () if uncaptioned else row.en} for row in rows
    ]
    return Preview(round(len(rows) * file.size / end), captions)
