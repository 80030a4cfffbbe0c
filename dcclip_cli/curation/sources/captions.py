"""Pairs of an image folder with caption files: COCO, COCO-CN, Flickr30k, Flickr30k-CN, in both languages at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from dcclip_cli.curation.candidate import Candidate, Slice
from dcclip_cli.curation.sources.base import HINT, TOLD, SourceOptions, Told, by_language, index_slices
from dcclip_cli.data.files.captions import Named, Places, captions_in, identity, names_in
from dcclip_cli.data.files.reading import Fault
from dcclip_cli.data.pair import Pair
from dcclip_cli.errors import DcclipError

Paths = Path | tuple[Path, ...]


class CaptionsSource(SourceOptions):
    """Caption files of either language that name images in one folder; captions of one image become one pair.

    A caption file is text, with lines like `IMAGE#zhm#0 CAPTION`, `IMAGE.jpg#0<TAB>CAPTION` or `IMAGE<TAB>CAPTION`;
    or JSON, like COCO's `{images, annotations}`, Karpathy's `{images: [{filename, sentences}]}` or a list of
    `{image, caption}`. Images may be named without their suffix, lie one folder deeper than `images`, and have COCO's
    name of 2014 in one file and that of 2017 in the other.
    """

    kind: Literal["captions"] = "captions"
    images: Path | None = Field(None, description="The folder with the images; left out: fetched from COCO's URLs")
    zh: Paths = Field((), description="File, or list of files, with Chinese captions")
    en: Paths = Field((), description="File, or list of files, with English captions")
    caption: Paths = Field((), description="Files with captions in either language, told by their script")
    only: Path | None = Field(None, description="Only the images named in this file, one a line: a split of the data")
    allow_outside: bool = Field(False, description="Read images outside the folder")

    @model_validator(mode="after")
    def _has_captions(self) -> CaptionsSource:
        if not self._files():
            raise ValueError("needs caption files: zh, en or caption")
        return self

    @property
    def _place(self) -> str:
        return str(self.images or self._files()[0][1])

    def slices(self, size: int) -> list[Slice]:
        """Runs of `size` images, in the order in which the files first name them."""
        absent = [path for _, path in self._files() if not path.is_file()]
        absent += [path for path in (self.only,) if path and not path.is_file()]
        absent += [path for path in (self.images,) if path and not path.is_dir()]
        if absent:
            raise DcclipError(f"{absent[0]} does not exist", HINT)
        total = sum(1 for _ in self._named())
        return index_slices(total, size)

    def read(self, part: Mapping[str, Any]) -> Iterator[Candidate]:
        """Candidates named as the first file that knows their image names it."""
        named = list(islice(self._named(), part["first"], part["last"]))
        wanted = {identity(image.name) for image in named if not image.fault}
        captions: dict[str, list[tuple[Told, str]]] = defaultdict(list)
        for told, path in self._files():
            for known, text in captions_in(path, wanted):
                captions[known].append((told, text))
        places = Places(self.images, self.allow_outside) if self.images else None
        for image in named:
            pair = Pair(image.name, b"", meta=image.meta)
            if image.fault:
                yield Candidate(pair, image.fault)
                continue
            pair = replace(pair, **by_language(captions[identity(image.name)]))
            yield _candidate(pair, places)

    def _files(self) -> list[tuple[Told, Path]]:
        given = [(told, getattr(self, told)) for told in TOLD]
        return [(told, path) for told, paths in given for path in ((paths,) if isinstance(paths, Path) else paths)]

    def _named(self) -> Iterator[Named]:
        """Every image once, and every place in the files that can't be read."""
        only = None
        if self.only:
            only = {identity(line.strip()) for line in self.only.read_text("utf-8-sig", "replace").splitlines()}
        seen: set[str] = set()
        for _, path in self._files():
            for image in names_in(path):
                known = identity(image.name)
                if image.fault:
                    yield image
                elif known not in seen and (only is None or known in only):
                    seen.add(known)
                    yield image


def _candidate(pair: Pair, places: Places | None) -> Candidate:
    try:
        if places is not None:
            return Candidate(replace(pair, image=places.read(pair.key)))
        url = pair.meta.get("coco_url") or pair.meta.get("url")
        if not isinstance(url, str) or not url:
            raise Fault("image-missing", "no URL in the caption file; name the folder as `images` in the recipe")
        return Candidate(replace(pair, meta=pair.meta | {"url": url}), url=url)
    except Fault as fault:
        return Candidate(pair, fault.drop)
