"""Which columns of a row make the pair? For every source whose candidates come as named cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from dcclip_cli.curation.candidate import Candidate
from dcclip_cli.curation.sources.base import TOLD, SourceOptions, Told, by_language
from dcclip_cli.data.files.reading import MAX_IMAGE_BYTES, Fault, Folder, from_base64, plain, texts_of
from dcclip_cli.data.pair import Pair
from dcclip_cli.errors import DcclipError

Names = str | tuple[str, ...]
_IMAGES = ("image", "base64", "url")  # the first that a row has is taken


@dataclass(frozen=True)
class Roles:
    """Which column holds what; all others are metadata."""

    images: tuple[tuple[str, str], ...]  # of _IMAGES, and the column
    captions: tuple[tuple[Told, str], ...]


class ColumnOptions(SourceOptions):
    """Names of columns. Those not given are taken where a column has the very name of the field, in any case."""

    image: str | None = Field(None, description="Column with the image: its path, or the bytes themselves")
    base64: str | None = Field(None, description="Column with the image's bytes in base64")
    url: str | None = Field(None, description="Column with the URL to fetch the image from")
    zh: Names | None = Field(None, description="Column, or list of columns, with Chinese captions")
    en: Names | None = Field(None, description="Column, or list of columns, with English captions")
    caption: Names | None = Field(None, description="Columns with captions in either language, told by their script")
    where: dict[str, Names] = Field({}, description="Only rows whose column has this value, or one of these")
    allow_outside: bool = Field(False, description="Read images outside the source's folder")

    def roles(self, found: Sequence[str], place: str) -> Roles:
        """What the columns `found` hold. Raises DcclipError where one is missing, or none holds images or captions."""
        own = {name.lower(): name for name in reversed(found)}
        images = self._named(_IMAGES) or [(kind, own[kind]) for kind in _IMAGES if kind in own]
        captions = self._named(TOLD) or [(told, own[told]) for told in TOLD if told in own]
        missing = [column for column in (*dict([*images, *captions]).values(), *self.where) if column not in found]
        what = f"no column {' or '.join(missing)}" if missing else None
        if not what and not (images and captions):
            what = f"no column {' or '.join(TOLD if images else _IMAGES)}"
        if what:
            raise DcclipError(
                f"{place}: {what} (found: {', '.join(found)[:300]})",
                "name the columns in the recipe, like: {kind: table, path: ..., url: URL, caption: TEXT}",
            )
        return Roles(tuple(images), tuple(captions))  # type: ignore[arg-type]

    def _named(self, fields: Sequence[str]) -> list[tuple[str, str]]:
        return [(field, column) for field in fields for column in many(getattr(self, field))]

    def wanted(self, row: Mapping[str, Any]) -> bool:
        """Whether the row is one of those asked for by `where`."""
        return all(str(row.get(column)) in many(values) for column, values in self.where.items())

    def candidate(self, key: str, row: Mapping[str, Any], roles: Roles, folder: Folder) -> Candidate:
        """The row as a pair; images are read from `folder`."""
        pair = Pair(key, b"")
        try:
            captions = [(told, text) for told, column in roles.captions for text in texts_of(row.get(column), column)]
            spent = {column for kind, column in (*roles.captions, *roles.images) if kind != "image"}
            meta = {
                name: plain(cell)
                for name, cell in row.items()
                if name not in spent and not isinstance(cell, bytes) and not _is_picture(cell)
            }
            pair = replace(pair, **by_language(captions), meta=meta)
            return self._with_image(pair, row, roles, folder)
        except Fault as fault:
            return Candidate(pair, fault.drop)

    def _with_image(self, pair: Pair, row: Mapping[str, Any], roles: Roles, folder: Folder) -> Candidate:
        urls = [row[column] for kind, column in roles.images if kind == "url" and row.get(column)]
        url = urls[0].strip() if urls and isinstance(urls[0], str) else None
        if url:
            pair = replace(pair, meta=pair.meta | {"url": url})
        for kind, column in roles.images:
            cell = row.get(column)
            if cell and kind == "base64":
                return Candidate(replace(pair, image=from_base64(cell)))
            if cell and kind == "image":
                return Candidate(replace(pair, image=_image(cell, folder)))
        if url:
            return Candidate(pair, url=url)
        raise Fault("image-missing", f"nothing in column {' or '.join(column for _, column in roles.images)}")


def many(names: Names | None) -> tuple[str, ...]:
    """A name, or several, or none, as a tuple."""
    return (names,) if isinstance(names, str) else names or ()


def _is_picture(cell: Any) -> bool:
    return isinstance(cell, dict) and isinstance(cell.get("bytes"), bytes)


def _image(cell: Any, folder: Folder) -> bytes:
    if isinstance(cell, dict):  # as `datasets` writes images: {bytes, path}
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        if len(cell) > MAX_IMAGE_BYTES:
            raise Fault("image-bytes", f"more than {MAX_IMAGE_BYTES:,} bytes")
        return cell
    if not isinstance(cell, str) or not cell:
        raise Fault("image-missing", "neither a path nor bytes")
    if cell.startswith(("http://", "https://")):
        raise Fault("image-missing", f"{cell[:200]} is a URL: name its column as `url` in the recipe")
    return folder.read(folder.path / Path(cell), MAX_IMAGE_BYTES, "image")
