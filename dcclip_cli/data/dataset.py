"""Datasets of image-text pairs: Parquet files, WebDataset tars, and several datasets as one."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from dcclip_cli.data.pair import LANGUAGES, FileDataset, Pair, PairDataset, caption_strings
from dcclip_cli.data.reading import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, MAX_TEXT_BYTES, tar_members
from dcclip_cli.errors import DcclipError
from dcclip_cli.files import json_object

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_AGAIN = "write or collect it again"


class ParquetDataset(FileDataset):
    """Pairs in one Parquet file: columns `key`, `image` (bytes), `zh`, `en` (lists of strings), `meta` (JSON).

    In place of `image` there may be `embedding`, vectors of one length: a locked image tower's embeddings of images, or
    points in its space that stand for many images. The whole file is read into memory.
    """

    layout = "a .parquet file"

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        try:
            table = pq.read_table(path, memory_map=True)
        except (pa.ArrowInvalid, OSError) as error:
            raise DcclipError(f"{path} is not a Parquet file: {error}", "write it again") from None
        names = table.column_names
        images = "embedding" if "embedding" in names else "image"
        if missing := [name for name in ("key", images) if name not in names]:
            raise DcclipError(
                f"{path} has no column {' or '.join(missing)} (found: {', '.join(names)})",
                "pairs have the columns key, image, zh, en and meta",
            )
        for name in {*LANGUAGES, "meta"}.difference(names):
            table = table.append_column(name, pa.nulls(table.num_rows))
        self._table = table.drop_columns(list(LANGUAGES))
        self.embeddings = _vectors(table, path) if images == "embedding" else None
        self._captions = {
            language: [
                caption_strings(captions, f"{path}: {language} of pair {row}")
                for row, captions in enumerate(table[language].to_pylist())
            ]
            for language in LANGUAGES
        }

    @classmethod
    def find(cls, path: Path, uncaptioned: bool) -> Self | None:
        return cls(path) if path.suffix == ".parquet" else None

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return type(self), (self.path,)  # another process reads the file, rather than being sent it

    def keys(self) -> list[str]:
        return [str(key) for key in self._table["key"].to_pylist()]

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int) -> Pair:
        key = str(self._table["key"][index].as_py())
        if self.embeddings is not None:
            raise DcclipError(f"{self.path} has embeddings, no images", "only align with lock: image can use them")
        image = self._table["image"][index].as_py()
        if isinstance(image, dict):  # as `datasets` writes images: {bytes, path}
            image = image.get("bytes")
        if not isinstance(image, bytes):
            raise DcclipError(f"{self.path}: pair {key} has no image bytes", "leave the pair out, or write its image")
        meta = json_object(self._table["meta"][index].as_py() or "{}", f"{self.path}: meta of pair {key}", _AGAIN)
        return Pair(key, image, self._captions["zh"][index], self._captions["en"][index], meta)


def _vectors(table: pa.Table, path: Path) -> np.ndarray:
    import numpy as np

    rows = table["embedding"].to_pylist()
    widths = {len(row) if isinstance(row, list) else 0 for row in rows}
    vectors = np.asarray(rows, np.float32) if len(widths) == 1 else np.full(1, np.nan)
    if rows and (0 in widths or not np.isfinite(vectors).all()):
        raise DcclipError(f"{path}: embedding is not vectors of one length", "write D numbers for each pair")
    return vectors


class TarDataset(FileDataset):
    """Pairs in WebDataset tars: `KEY.jpg|png|webp` next to `KEY.json` with `zh` and `en`, a string or a list each.

    Member names are only compared, never used as paths; links and special files are skipped.
    """

    layout = "a .tar file or a folder of .tar shards"

    def __init__(self, path: Path, shards: list[Path], uncaptioned: bool = False) -> None:
        """With `uncaptioned`, images without a record belong to it as well."""
        self.path, self.files = path, shards
        # Key, place of the image (shard, offset, bytes) and record.
        self._pairs: list[tuple[str, tuple[int, int, int], dict[str, Any]]] = []
        for number, shard in enumerate(shards):
            self._index(number, shard, uncaptioned)
        self._captions = {
            language: [
                caption_strings(record.pop(language, ()), f"{path}: {language} of pair {key}")
                for key, _, record in self._pairs
            ]
            for language in LANGUAGES
        }

    @classmethod
    def find(cls, path: Path, uncaptioned: bool) -> Self | None:
        shards = [path] if path.suffix == ".tar" else sorted(path.glob("*.tar")) if path.is_dir() else []
        return cls(path, shards, uncaptioned) if shards else None

    def _index(self, number: int, shard: Path, uncaptioned: bool) -> None:
        images: dict[str, tuple[int, int, int]] = {}
        records: dict[str, dict[str, Any]] = {}
        with shard.open("rb") as stream:
            for member in tar_members(shard):
                if member.fault and member.fault.reason.startswith("tar-"):
                    if member.fault.reason == "tar-cut" and not member.name:
                        break  # every pair is there, only the end mark is missing
                    what = f"{shard} is not a readable tar file: {member.fault.detail}"
                    raise DcclipError(what, "fetch or collect it again")
                stem, dot, suffix = member.name.rpartition(".")
                suffix = (dot + suffix).lower()
                if member.fault or not stem:
                    continue
                if suffix in IMAGE_SUFFIXES and member.size <= MAX_IMAGE_BYTES:
                    images[stem] = (number, member.offset, member.size)
                elif suffix == ".json" and member.size <= MAX_TEXT_BYTES:
                    stream.seek(member.offset)
                    records[stem] = json_object(stream.read(member.size), f"{shard}: {member.name}", _AGAIN)
        found = ((key, place) for key, place in images.items() if key in records or uncaptioned)
        self._pairs += [(key, place, records.get(key, {})) for key, place in found]

    def keys(self) -> list[str]:
        return [key for key, _, _ in self._pairs]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        key, (shard, offset, size), record = self._pairs[index]
        with self.files[shard].open("rb") as stream:
            stream.seek(offset)
            image = stream.read(size)
        zh, en = (self._captions[language][index] for language in LANGUAGES)
        return Pair(key, image, zh, en, dict(record))


class ConcatDataset(PairDataset):
    """Datasets one after the other; those with images have to come first."""

    def __init__(self, datasets: list[PairDataset]) -> None:
        self.path = datasets[0].path
        self._datasets = datasets
        self.files = [file for dataset in datasets for file in dataset.files]
        self.num_images = sum(dataset.num_images for dataset in datasets)
        self.has_uncaptioned_images = any(dataset.has_uncaptioned_images for dataset in datasets)
        self.firsts = [0, *accumulate(map(len, datasets))]  # the index at which each begins
        self._captions = {
            language: [captions for dataset in datasets for captions in dataset.captions(language)]
            for language in LANGUAGES
        }

    def __len__(self) -> int:
        return self.firsts[-1]

    def __getitem__(self, index: int) -> Pair:
        number = bisect_right(self.firsts, index) - 1
        return self._datasets[number][index - self.firsts[number]]

    @cached_property
    def file_digests(self) -> list[bytes]:
        return [digest for dataset in self._datasets for digest in dataset.file_digests]


LAYOUTS: tuple[type[FileDataset], ...] = (ParquetDataset, TarDataset)


def open_pairs(path: str | Path) -> PairDataset:
    """The pairs at a path of one of the LAYOUTS. Raises DcclipError where there are none."""
    dataset = find_dataset(Path(path))
    if not dataset:
        layouts = f"name {', '.join(layout.layout for layout in LAYOUTS)}"
        empty = "every file in it is empty: collect again, or name another"
        raise DcclipError(f"{path} has no pairs", layouts if dataset is None else empty)
    return dataset


def find_dataset(path: Path, uncaptioned: bool = False) -> PairDataset | None:
    """The dataset at a path; None where it has none of the LAYOUTS. `uncaptioned`: also images without captions.

    Raises DcclipError where nothing is there or it cannot be read.
    """
    if not path.exists():
        raise DcclipError(f"{path} does not exist", "check the path; in a recipe it is relative to the recipe's folder")
    found = (layout.find(path, uncaptioned) for layout in LAYOUTS)
    return next((dataset for dataset in found if dataset is not None), None)


def write_parquet(path: Path, pairs: Iterable[Pair]) -> None:
    """Write pairs as one Parquet file, the same bytes for the same pairs; images are stored as they are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{**vars(pair), "meta": json.dumps(pair.meta, ensure_ascii=False, sort_keys=True)} for pair in pairs]
    strings = pa.list_(pa.string())
    fields = {"key": pa.string(), "image": pa.binary(), "zh": strings, "en": strings, "meta": pa.string()}
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields)), path, compression="zstd")
