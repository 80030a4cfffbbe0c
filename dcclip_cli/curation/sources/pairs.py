"""Pairs in dcclip's own Parquet form."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dcclip_cli.curation.candidate import Candidate, Drop, Slice
from dcclip_cli.curation.sources.base import SourceOptions, files_of, place_in
from dcclip_cli.curation.sources.parquet_table import ParquetTable
from dcclip_cli.data.files.reading import MAX_IMAGE_BYTES, Fault, plain, texts_of
from dcclip_cli.data.pair import LANGUAGES, Pair
from dcclip_cli.errors import DcclipError


class PairsSource(SourceOptions):
    """Parquet files with the columns `key`, `image` (bytes), `zh`, `en` (lists of texts) and `meta` (JSON).

    `dcclip` writes such files; the shards that `collect` leaves are read by `tars`.
    """

    kind: Literal["pairs"] = "pairs"
    path: Path = Field(description="A .parquet file, a folder of them, or a pattern like ./pairs/*.parquet")

    def slices(self, size: int) -> list[Slice]:
        """Runs of about `size` rows. Raises DcclipError where a file has no column `key` or `image`."""
        found = []
        for file in files_of(self.path, (".parquet",)):
            table = ParquetTable(file, (), 0)
            columns = table.columns()
            missing = [name for name in ("key", "image") if name not in columns]
            if columns and missing:
                what = f"{file} has no column {' or '.join(missing)} (found: {', '.join(columns)[:300]})"
                raise DcclipError(what, "read a Parquet file of another form with {kind: table, image: ..., zh: ...}")
            found += [Slice({"file": str(file), **part.part}, part.about) for part in table.slices(size)]
        return found

    def read(self, part: Mapping[str, Any]) -> Iterator[Candidate]:
        """The pairs with their own keys."""
        file = Path(part["file"])
        place = place_in(self.path, file)
        for number, row in ParquetTable(file, (), 0).rows(part):
            if isinstance(row, Drop):
                yield Candidate(Pair(f"{place}{number}", b""), row)
            else:
                yield _candidate(f"{place}{row['key']}", row)


def _candidate(key: str, row: dict[str, Any]) -> Candidate:
    pair = Pair(key, b"")
    try:
        texts = {language: texts_of(row.get(language), language) for language in LANGUAGES}
        captions = {language: tuple(text for text in found if text.strip()) for language, found in texts.items()}
        pair = replace(pair, zh=captions["zh"], en=captions["en"], meta=_meta(row.get("meta")))
        image = row["image"]
        if isinstance(image, dict):  # as `datasets` writes images: {bytes, path}
            image = image.get("bytes")
        if not isinstance(image, bytes):
            raise Fault("image-missing", "no bytes in column image")
        if len(image) > MAX_IMAGE_BYTES:
            raise Fault("image-bytes", f"more than {MAX_IMAGE_BYTES:,} bytes")
        return Candidate(replace(pair, image=image))
    except Fault as fault:
        return Candidate(pair, fault.drop)


def _meta(text: Any) -> dict[str, Any]:
    try:
        meta = plain(json.loads(text or "{}"))
    except (TypeError, ValueError, RecursionError) as error:
        raise Fault("record-unreadable", f"meta is not JSON: {str(error)[:200]}") from None
    if not isinstance(meta, dict):
        raise Fault("record-unreadable", "meta is not a JSON object")
    return meta
