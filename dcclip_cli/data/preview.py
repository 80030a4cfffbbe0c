"""A first look at training data, in milliseconds: whether it can be read, about how many samples, some captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dcclip_cli.data.dataset import LAYOUTS
from dcclip_cli.data.pair import LANGUAGES, Language, caption_strings
from dcclip_cli.data.reading import IMAGE_SUFFIXES, MAX_TEXT_BYTES, tar_members
from dcclip_cli.data.unpaired import READERS
from dcclip_cli.errors import DcclipError
from dcclip_cli.files import json_object

_SAMPLE = 500  # samples that are looked at
_AGAIN = "write, collect or download it again"
Captions = dict[Language, tuple[str, ...]]


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


def preview_pairs(path: str | Path, uncaptioned: bool = False) -> Preview:
    """A first look at pairs. Raises DcclipError where nothing is there, it is something else, or it begins broken.

    With `uncaptioned`, images without a record are samples as well.
    """
    path = Path(path)
    if not path.exists():
        raise DcclipError(f"{path} does not exist", "check the path; in a recipe it is relative to the recipe's folder")
    if path.suffix == ".parquet":
        return _parquet(path)
    shards = [path] if path.suffix == ".tar" else sorted(path.glob("*.tar")) if path.is_dir() else []
    if not shards:
        raise DcclipError(f"{path} has no pairs", f"name {', '.join(layout.layout for layout in LAYOUTS)}")
    for shard in shards:
        found = list(islice(_pairs(shard, uncaptioned), _SAMPLE))
        if found:
            end = found[-1][1] if len(found) == _SAMPLE else shard.stat().st_size
            samples = sum(file.stat().st_size for file in shards) * len(found) / end
            return Preview(round(samples), [captions for captions, _ in found])
    raise DcclipError(f"{path} has no pairs", "every tar in it is empty: collect again, or name another")


def preview_images(path: str | Path) -> Preview:
    """A first look at images without captions. Raises DcclipError where there are none."""
    path = Path(path)
    if not path.is_dir() or any(path.glob("*.tar")):
        return preview_pairs(path, uncaptioned=True)
    count = sum(file.suffix.lower() in IMAGE_SUFFIXES for file in path.rglob("*"))
    if not count:
        raise DcclipError(
            f"{path} has no images", "name a folder of JPEG, PNG or WebP files, a .parquet or a .tar file"
        )
    return Preview(count, [{"zh": (), "en": ()}])


def preview_texts(path: str | Path) -> Preview:
    """A first look at texts without images. Raises DcclipError where there are none."""
    path = Path(path)
    if not path.is_file() or path.suffix not in READERS:
        return preview_pairs(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            found = list(islice((text for text in READERS[path.suffix](stream, path) if text), _SAMPLE))
    except UnicodeDecodeError as error:
        raise DcclipError(f"{path} is not UTF-8: {error.reason} at byte {error.start}", "save it as UTF-8") from None
    if not found:
        raise DcclipError(f"{path} has no text", "every line in it is empty: write it again, or name another")
    captions: list[Captions] = [{language: text.get(language, ()) for language in LANGUAGES} for text in found]
    length = sum(len(text.encode()) + 1 for one in captions for several in one.values() for text in several)
    return Preview(round(path.stat().st_size * len(found) / length), captions)


def _parquet(path: Path) -> Preview:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if not {"image", "embedding"} & set(names):
            raise DcclipError(
                f"{path} has no column image (found: {', '.join(names)})",
                "pairs have the columns key, image, zh, en and meta",
            )
        columns = [language for language in LANGUAGES if language in names]
        batch = next(file.iter_batches(_SAMPLE, columns=columns), None) if file.metadata.num_rows else None
    except (pa.ArrowInvalid, OSError) as error:
        raise DcclipError(f"{path} is not a Parquet file: {error}", "write it again") from None
    if batch is None:
        raise DcclipError(f"{path} has no pairs", "it has no rows: collect again, or name another")
    return Preview(
        file.metadata.num_rows, [_captions(row, str(path)) for row in batch.to_pylist()] or [_captions({}, "")]
    )


def _pairs(shard: Path, uncaptioned: bool) -> Iterator[tuple[Captions, int]]:
    """The captions of each pair in a tar, and the offset behind it."""
    images: set[str] = set()
    records: dict[str, Captions] = {}
    with shard.open("rb") as stream:
        for member in tar_members(shard):
            if member.fault and member.fault.reason.startswith("tar-"):
                if member.fault.reason == "tar-cut" and not member.name:
                    return  # only the end mark is missing
                raise DcclipError(f"{shard} is not a readable tar file: {member.fault.detail}", _AGAIN)
            stem, dot, suffix = member.name.rpartition(".")
            suffix = (dot + suffix).lower()
            if suffix in IMAGE_SUFFIXES:
                images.add(stem)
            elif suffix == ".json" and member.size <= MAX_TEXT_BYTES and not uncaptioned:
                stream.seek(member.offset)
                where = f"{shard}: {member.name}"
                records[stem] = _captions(json_object(stream.read(member.size), where, _AGAIN), where)
            if stem in images and (uncaptioned or stem in records):
                images.remove(stem)
                yield records.pop(stem, _captions({}, "")), member.offset + member.size


def _captions(record: dict[str, Any], where: str) -> Captions:
    return {language: caption_strings(record.get(language), f"{where}: {language}") for language in LANGUAGES}
