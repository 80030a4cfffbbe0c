"""The pairs in shards, tars and Parquet files: read once, in order, with the place of each image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import json_object
from dcclip_cli.core.options import Options
from dcclip_cli.core.text import language_by_script
from dcclip_cli.data.pair import LANGUAGES, Language, caption_strings, check_once, image_digest
from dcclip_cli.data.reading import (
    IMAGE_SUFFIXES,
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    Member,
    members_of,
)
from dcclip_cli.data.remote import DataFile

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

Captions = dict[Language, tuple[str, ...]]

SUFFIXES = (".tar", ".parquet")
DROPPED = "dropped.parquet"  # next to the shards of `collect`
_ROWS_AT_A_TIME = 256


class Columns(Options):
    """Column names of Parquet files from other programs, or field names in a tar's JSON; by
    default, the key's name.
    """

    key: str | None = Field(
        None, description="Column of the keys; default: key if present, else the row number"
    )
    image: str | None = Field(
        None, description="Column of the images: bytes, or a struct with a bytes field"
    )
    zh: str | None = Field(
        None, description="Column of Chinese captions: strings, or lists of strings"
    )
    en: str | None = Field(
        None, description="Column of English captions: strings, or lists of strings"
    )
    caption: str | None = Field(
        None,
        description="Column of captions in either language; captions with a Chinese character "
        "count as Chinese",
    )

    @property
    def named(self) -> dict[str, str]:
        return {key: name for key, name in self.model_dump().items() if name is not None}

    def captions(self, record: dict[str, Any], where: str) -> Captions:
        """Take the captions out of a row or record. Raises DcclipError where they are something
        else.
        """
        captions = {
            language: caption_strings(
                record.pop(getattr(self, language) or language, ()), f"{where}: {language}"
            )
            for language in LANGUAGES
        }
        if self.caption is not None:
            for text in caption_strings(record.pop(self.caption, ()), f"{where}: {self.caption}"):
                captions[language_by_script(text)] += (text,)
        return captions


class Row(NamedTuple):
    """One image with its captions: `size` bytes at `offset` of a tar, or of the joined images of a
    Parquet row group.

    `captioned`: whether the image has a record, if only an empty one; `meta` is JSON; `size` is -1
    for a missing image; `group` is the number of the row group.
    """

    key: str
    zh: tuple[str, ...]
    en: tuple[str, ...]
    meta: str
    captioned: bool
    offset: int
    size: int
    digest: bytes
    group: int | None = None


def columns_in(file: DataFile, columns: Columns) -> Columns:
    """`columns`, or for a Parquet file that dcclip wrote, among those of others, the keys' own
    names.
    """
    if not columns.named or not file.name.endswith(".parquet"):
        return columns
    with open_parquet(file) as parquet:
        names = parquet.schema_arrow.names
    return Columns() if names == ["key", "image", *LANGUAGES, "meta"] else columns


# ---- tars: KEY.jpg|png|webp next to KEY.json


def tar_rows(file: DataFile, columns: Columns, members: int | None = None) -> Iterator[Row]:
    """The images in a tar in the order of their names' first appearance. Raises DcclipError where
    it cannot be read.

    With `members`, only so many from its beginning are read. Member names are only compared, never
    used as paths; links and special files are skipped.
    """
    images: dict[str, tuple[int, int, bytes]] = {}  # offset, size, digest by key
    records: dict[str, tuple[Captions, str]] = {}
    for member, content in islice(_members(file), members):
        key, _, suffix = member.name.rpartition(".")
        if suffix.lower() != "json":
            images[key] = member.offset, member.size, image_digest(content)
        else:
            records[key] = read_record(content, f"{file}: {member.name}", columns)
    for key, (offset, size, digest) in images.items():
        captions, meta = records.get(key, ({}, "{}"))
        yield Row(
            key,
            captions.get("zh", ()),
            captions.get("en", ()),
            meta,
            key in records,
            offset,
            size,
            digest,
        )


def read_record(content: bytes, where: str, columns: Columns) -> tuple[Captions, str]:
    """The captions in KEY.json, and all else in it as JSON. Raises DcclipError with `where`."""
    record = json_object(content, where, Message("write or collect the file again"))
    captions = columns.captions(record, where)
    return captions, json.dumps(
        record, separators=(",", ":")
    )  # in ASCII, so that lone surrogates survive


def _members(file: DataFile) -> Iterator[tuple[Member, bytes]]:
    """The images and records in a tar, with their bytes."""
    limits = dict.fromkeys(IMAGE_SUFFIXES, MAX_IMAGE_BYTES) | {".json": MAX_TEXT_BYTES}
    with file.open() as stream:
        for member in members_of(stream, file.size):
            stem, dot, suffix = member.name.rpartition(".")
            if member.fault and member.fault.reason.startswith("tar-"):
                message = Message("{} is not a readable tar file: {}", file, member.fault.detail)
                raise DcclipError(message, "download or collect it again")
            if not member.fault and stem and member.size <= limits.get(dot + suffix.lower(), -1):
                stream.seek(member.offset)
                yield member, stream.read(member.size)


def open_parquet(file: DataFile) -> pq.ParquetFile:
    """A Parquet file, of which no whole column is read at once. Raises DcclipError where it is
    none.
    """
    import pyarrow.parquet as pq

    with parquet_errors(file, Message("is not a Parquet file")):
        return pq.ParquetFile(file.location, buffer_size=1 << 20)


@contextmanager
def parquet_errors(file: DataFile | Path, what: str = "cannot be read") -> Iterator[None]:
    """What pyarrow raises for a damaged file becomes a DcclipError that says `what`."""
    import pyarrow as pa

    try:
        yield
    except UnicodeDecodeError as error:
        raise DcclipError(
            "{} contains text that is not UTF-8: {!r}",
            "encode the text in UTF-8",
            file,
            error.object[:24],
        ) from None
    except (pa.ArrowException, OSError, OverflowError) as error:
        raise DcclipError(
            "{} {}: {}",
            "write or download the file again",
            file,
            what,
            " ".join(str(error).split())[:300],
        ) from None


def group_images(file: DataFile, group: int, column: str) -> Iterator[bytes | None]:
    """The images of one row group, None for a missing one. Raises DcclipError where they cannot be
    read.
    """
    with open_parquet(file) as parquet, parquet_errors(file):
        for batch in parquet.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=[column]):
            yield from _image_bytes(batch[column], f"{file}: column {column}")


def _image_bytes(values: pa.Array, where: str) -> list[bytes | None]:
    import pyarrow as pa

    kind = values.type
    if (
        pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    ):  # as `datasets` writes images: {bytes, path}
        values = values.flatten()[kind.get_field_index("bytes")]
    if not (
        pa.types.is_binary(values.type)
        or pa.types.is_large_binary(values.type)
        or pa.types.is_null(values.type)
    ):
        raise DcclipError(
            "{} is {} instead of bytes",
            "store image bytes, or structs with a bytes field",
            where,
            kind,
        )
    images: list[bytes | None] = values.to_pylist()
    return images


def parquet_rows(file: DataFile, columns: Columns) -> Iterator[Row]:
    """The rows of a Parquet file. Raises DcclipError where it cannot be read or lacks a column."""
    with open_parquet(file) as parquet, parquet_errors(file):
        key = columns.key or "key"
        image = columns.image or "image"
        used = columns_used(file, parquet.schema_arrow.names, columns)
        number = 0
        stem = file.name.removesuffix(".parquet")
        for group in range(parquet.num_row_groups):
            offset = 0
            for batch in parquet.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=used):
                images = _image_bytes(batch[image], f"{file}: column {image}")
                for record, content in zip(
                    batch.drop_columns([image]).to_pylist(), images, strict=True
                ):
                    name = f"{stem}:{number}" if key not in used else str(record[key])
                    texts = columns.captions(record, f"{file}: pair {name}")
                    size, digest = (
                        (-1, bytes(16))
                        if content is None
                        else (len(content), image_digest(content))
                    )
                    meta = record.get("meta") or "{}"
                    if not isinstance(meta, str):
                        problem = Message("{}: the metadata of pair {} is not a string", file, name)
                        raise DcclipError(
                            problem, "write it as a string that contains a JSON object"
                        )
                    yield Row(
                        name, texts["zh"], texts["en"], meta, True, offset, size, digest, group
                    )
                    offset = offset + max(0, size)
                    number = number + 1


def columns_used(file: DataFile, names: list[str], columns: Columns) -> list[str]:
    """The columns to read: those that are named, and the others with the usual names if they are
    there.
    """
    usual = {key: key for key in ("key", *LANGUAGES, "meta")}
    required = {"image": "image"} | columns.named
    if len({*required.values()}) < len(required):
        raise DcclipError(
            "{}: the same column is used for two keys",
            "choose a different column for each key",
            file,
        )
    if missing := [name for name in required.values() if name not in names]:
        message = Message(
            "{} has no column {} (found: {})", file, " or ".join(missing), ", ".join(names)
        )
        raise DcclipError(
            message,
            "rename the columns to key, image, zh, en and meta, or map them with data.columns",
        )
    optional = [name for key, name in usual.items() if key not in columns.named and name in names]
    check_once([*required.values(), *optional], names, file)
    return list(dict.fromkeys([*required.values(), *optional]))
