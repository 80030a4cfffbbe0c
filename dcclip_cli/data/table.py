"""The one reader of pairs: random access over Parquet files, tar files and folders of tar shards."""

from __future__ import annotations

import hashlib
import json
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcclip_cli.data.pair import Language, Pair
from dcclip_cli.errors import DcclipError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_RECORD_BYTES = 1_000_000  # of one KEY.json; captions are short
MAX_IMAGE_BYTES = 64_000_000


class PairTable(ABC):
    """Pairs that can be asked for by number, in a fixed order.

    Captions are held in memory, images stay on disk until asked for, so that any order of reading is cheap to repeat.
    """

    path: Path

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Pair: ...

    @abstractmethod
    def captions(self, language: Language) -> list[tuple[str, ...]]:
        """The captions of every pair in one language, in order."""

    def keys(self) -> list[str]:
        """The key of every pair, in order."""
        return [pair.key for pair in self]

    @property
    def embeddings(self) -> np.ndarray | None:
        """(N, D) float32, where the pairs hold image embeddings in place of images; None where they hold images."""
        return None

    @property
    @abstractmethod
    def files(self) -> list[Path]: ...

    @abstractmethod
    def place(self, index: int) -> tuple[int, int]:
        """Where a sample's picture lies: the number of its file, and a place within it."""

    @property
    def pictures(self) -> int:
        """How many samples have a picture; they come first."""
        return len(self)

    @property
    def has_bare_pictures(self) -> bool:
        """Whether some pictures are meant to have no captions."""
        return False

    def __iter__(self) -> Iterator[Pair]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def file_digests(self) -> list[bytes]:
        """The sha256 of each file's bytes."""
        digests = []
        for file in self.files:
            with file.open("rb") as stream:
                digests.append(hashlib.file_digest(stream, "sha256").digest())
        return digests

    @property
    def fingerprint(self) -> str:
        """A sha256 over the bytes of the files: equal only for equal data."""
        return hashlib.sha256(b"".join(self.file_digests)).hexdigest()

    def picture_id(self, index: int) -> str:
        """Names a sample's picture by its file's bytes: another picture has another name, wherever the file lies."""
        file, place = self.place(index)
        return f"{self.file_digests[file].hex()}:{place}"


def open_pairs(path: str | Path) -> PairTable:
    """The pairs in a Parquet file, a tar file, or a folder of tar shards. Raises DcclipError where there are none."""
    path = Path(path)
    if not path.exists():
        raise DcclipError(f"{path} does not exist", "check the path; in a recipe it is relative to the recipe's folder")
    if path.suffix == ".parquet":
        table: PairTable = ParquetPairs(path)
    elif path.suffix == ".tar":
        table = TarPairs(path, [path])
    elif path.is_dir() and (shards := sorted(path.glob("*.tar"))):
        table = TarPairs(path, shards)
    else:
        raise DcclipError(f"{path} holds no pairs", "name a .parquet file, a .tar file, or a folder of .tar shards")
    if not len(table):
        raise DcclipError(f"{path} holds no pairs", "every file in it is empty: collect again, or name another")
    return table


class ParquetPairs(PairTable):
    """Pairs in one Parquet file: columns `key`, `image` (bytes), `zh`, `en` (lists of strings), `meta` (JSON).

    In place of `image` there may be `embedding`, vectors of one length: what a locked image tower makes of pictures, or
    points of its space that stand for many pictures.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        try:
            table = pq.read_table(path, memory_map=True)
        except (pa.ArrowInvalid, OSError) as error:
            raise DcclipError(f"{path} is not a Parquet file: {error}", "write it again") from None
        images = "embedding" if "embedding" in table.column_names else "image"
        missing = [name for name in ("key", images) if name not in table.column_names]
        if missing:
            raise DcclipError(
                f"{path} has no column {' or '.join(missing)} (found: {', '.join(table.column_names)})",
                "pairs have the columns key, image, zh, en and meta",
            )
        self._table = table.combine_chunks()
        self._embeddings = _vectors(self._table, path) if images == "embedding" else None
        self._captions = {language: _caption_column(self._table, language) for language in ("zh", "en")}

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return type(self), (self.path,)  # another process reads the file, rather than being sent it

    def keys(self) -> list[str]:
        return [str(key) for key in self._table["key"].to_pylist()]

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int) -> Pair:
        key = str(self._table["key"][index].as_py())
        meta = self._table["meta"][index].as_py() if "meta" in self._table.column_names else None
        if self._embeddings is not None:
            raise DcclipError(f"{self.path} holds embeddings, no pictures", "only align with lock: image can use them")
        image = self._table["image"][index].as_py()
        if isinstance(image, dict):  # as `datasets` writes images: {bytes, path}
            image = image.get("bytes")
        if not isinstance(image, bytes):
            raise DcclipError(f"{self.path}: pair {key} has no image bytes", "leave the pair out, or write its image")
        where = f"{self.path}: meta of pair {key}"
        return Pair(key, image, self._captions["zh"][index], self._captions["en"][index], _record(meta or "{}", where))

    def captions(self, language: Language) -> list[tuple[str, ...]]:
        return self._captions[language]

    @property
    def embeddings(self) -> np.ndarray | None:
        return self._embeddings

    @property
    def files(self) -> list[Path]:
        return [self.path]

    def place(self, index: int) -> tuple[int, int]:
        return 0, index


def _vectors(table: pa.Table, path: Path) -> np.ndarray:
    import numpy as np

    rows = table["embedding"].to_pylist()
    widths = {len(row) if isinstance(row, list) else 0 for row in rows}
    vectors = np.asarray(rows, np.float32) if len(widths) == 1 else np.full(1, np.nan)
    if rows and (0 in widths or not np.isfinite(vectors).all()):
        raise DcclipError(f"{path}: embedding holds no vectors of one length", "write D numbers for each pair")
    return vectors


def _caption_column(table: pa.Table, language: str) -> list[tuple[str, ...]]:
    if language not in table.column_names:
        return [()] * int(table.num_rows)
    return [_strings(captions, f"{language} of pair {row}") for row, captions in enumerate(table[language].to_pylist())]


class TarPairs(PairTable):
    """Pairs in WebDataset tars: `KEY.jpg|png|webp` beside `KEY.json` with `zh` and `en`, a string or a list each.

    Member names are only compared, never used as paths; links and special files are passed over.
    """

    def __init__(self, path: Path, shards: list[Path], bare: bool = False) -> None:
        """With `bare`, pictures without a record belong to it as well."""
        self.path = path
        self._shards, self._bare = shards, bare
        self._images: list[tuple[int, int, int]] = []  # shard, offset, bytes
        self._keys: list[str] = []
        self._records: list[dict[str, Any]] = []
        for number, shard in enumerate(shards):
            self._index(number, shard)
        self._captions: dict[str, list[tuple[str, ...]]] = {
            language: [
                _strings(record.pop(language, ()), f"{path}: {language} of pair {key}")
                for key, record in zip(self._keys, self._records, strict=True)
            ]
            for language in ("zh", "en")
        }

    def _index(self, number: int, shard: Path) -> None:
        images: dict[str, tuple[int, int, int]] = {}
        records: dict[str, dict[str, Any]] = {}
        try:
            with tarfile.open(shard, "r:") as archive:
                for member in archive:
                    stem, dot, suffix = member.name.rpartition(".")
                    suffix = (dot + suffix).lower()
                    if not member.isfile() or not stem:
                        continue
                    if suffix in IMAGE_SUFFIXES and member.size <= MAX_IMAGE_BYTES:
                        images[stem] = (number, member.offset_data, member.size)
                    elif suffix == ".json" and member.size <= MAX_RECORD_BYTES:
                        records[stem] = _read_record(archive, member, shard)
        except (tarfile.TarError, EOFError) as error:
            raise DcclipError(f"{shard} is not a readable tar file: {error}", "fetch or collect it again") from None
        for key in images:
            if key in records or self._bare:
                self._keys.append(key)
                self._images.append(images[key])
                self._records.append(records.get(key, {}))

    def keys(self) -> list[str]:
        return list(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Pair:
        shard, offset, size = self._images[index]
        with self._shards[shard].open("rb") as stream:
            stream.seek(offset)
            image = stream.read(size)
        captions = {language: self._captions[language][index] for language in ("zh", "en")}
        return Pair(key=self._keys[index], image=image, meta=dict(self._records[index]), **captions)

    def captions(self, language: Language) -> list[tuple[str, ...]]:
        return self._captions[language]

    @property
    def files(self) -> list[Path]:
        return self._shards

    def place(self, index: int) -> tuple[int, int]:
        shard, offset, _ = self._images[index]
        return shard, offset


def _read_record(archive: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> dict[str, Any]:
    stream = archive.extractfile(member)
    assert stream is not None  # a regular file, as the caller has seen
    return _record(stream.read(), f"{shard}: {member.name}")


def _record(text: str | bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DcclipError(f"{where} is not JSON: {error}", "write or collect it again") from None
    if not isinstance(record, dict):
        raise DcclipError(f"{where} is not a JSON object", "write or collect it again")
    return record


def _strings(value: Any, where: str) -> tuple[str, ...]:
    captions = (value,) if isinstance(value, str) else value or ()
    if not isinstance(captions, list | tuple) or not all(
        caption is None or isinstance(caption, str) for caption in captions
    ):
        raise DcclipError(f"{where} is no list of captions", "captions are a string or a list of strings")
    return tuple(caption for caption in captions if caption)


def write_parquet(path: Path, pairs: Iterable[Pair]) -> None:
    """Write pairs as one Parquet file, the same bytes for the same pairs; images are stored as they are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "key": pair.key,
            "image": pair.image,
            "zh": list(pair.zh),
            "en": list(pair.en),
            "meta": json.dumps(pair.meta, ensure_ascii=False, sort_keys=True),
        }
        for pair in pairs
    ]
    strings = pa.list_(pa.string())
    fields = {"key": pa.string(), "image": pa.binary(), "zh": strings, "en": strings, "meta": pa.string()}
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields)), path, compression="zstd")


def write_embeddings(
    path: Path, keys: list[str], embeddings: np.ndarray, captions: Mapping[Language, list[list[str]]]
) -> None:
    """Write image embeddings (N, D) with their captions as one Parquet file, numbers as fp16."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.astype(np.float16).ravel()), embeddings.shape[1])
    columns = {"key": pa.array(keys), "embedding": vectors}
    columns |= {language: pa.array(several, pa.list_(pa.string())) for language, several in captions.items()}
    pq.write_table(pa.table(columns), path, compression="zstd")
