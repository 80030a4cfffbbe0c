"""Sources in the layouts of published caption data sets: COCO, Flickr30k and their Chinese versions, and MUGE."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from dcclip_cli.curation.sources.base import (
    HINT,
    TOLD,
    Candidate,
    Slice,
    SourceOptions,
    Told,
    by_language,
    files_of,
    index_slices,
    key_prefix,
)
from dcclip_cli.data.caption_files import (
    IMAGES,
    Named,
    Places,
    Text,
    captions_in,
    identity,
    image_of,
    image_rows,
    names_in,
    number_of,
    texts_file,
    texts_in,
)
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.reading import MAX_TEXT_BYTES, Fault, cuts, lines
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.options import PathOption

Paths = PathOption | tuple[PathOption, ...]


class CaptionsSource(SourceOptions):
    """An image folder with caption files in either language; all captions of an image become one pair.

    A caption file is text with lines like `IMAGE#zhm#0 CAPTION`, `IMAGE.jpg#0<TAB>CAPTION` or `IMAGE<TAB>CAPTION`, or
    JSON like COCO's `{images, annotations}`, Karpathy's `{images: [{filename, sentences}]}` or a list of
    `{image, caption}`. Image names may lack their suffix; images may be one folder deeper than `images`; the COCO names
    of 2014 and of 2017 mean the same image.
    """

    kind: Literal["captions"] = "captions"
    images: PathOption | None = Field(None, description="Folder with the images; default: download from COCO's URLs")
    zh: Paths = Field((), description="File, or list of files, with Chinese captions")
    en: Paths = Field((), description="File, or list of files, with English captions")
    caption: Paths = Field(
        (), description="File, or list of files, with captions whose language is detected from the script"
    )
    only: PathOption | None = Field(
        None, description="File with the image names of a split, one a line; others are skipped"
    )
    allow_outside: bool = Field(False, description="Allow image paths outside the folder")

    @model_validator(mode="after")
    def _has_captions(self) -> CaptionsSource:
        if not self._files():
            raise ValueError(Message("needs caption files: zh, en or caption"))
        return self

    @property
    def _place(self) -> str:
        return str(self.images or self._files()[0][1])

    def slices(self, size: int) -> list[Slice]:
        """Slices of `size` images, in the order in which the files first name them."""
        files = [*(path for _, path in self._files()), *([self.only] if self.only else [])]
        absent = [path for path in files if not path.is_file()]
        if self.images and not self.images.is_dir():
            absent.append(self.images)
        if absent:
            raise DcclipError("{} does not exist", HINT, absent[0])
        return index_slices(sum(1 for _ in self._named()), size)

    def read(self, part: Mapping[str, Any]) -> Iterator[Candidate]:
        """Candidates with the first name that the files give their image as key."""
        named = list(islice(self._named(), part["first"], part["last"]))
        wanted = {identity(image.name) for image in named if not image.fault}
        captions: dict[str, list[tuple[Told, str]]] = defaultdict(list)
        for told, path in self._files():
            for known, text in captions_in(path, wanted):
                captions[known].append((told, text))
        places = Places(self.images, self.allow_outside) if self.images else None
        for image in named:
            found = [] if image.fault else captions[identity(image.name)]
            pair = Pair(image.name, b"", meta=image.meta, **by_language(found))
            yield Candidate(pair, image.fault) if image.fault else _candidate(pair, places)

    def _files(self) -> list[tuple[Told, Path]]:
        given = [(told, getattr(self, told)) for told in TOLD]
        return [(told, path) for told, paths in given for path in ((paths,) if isinstance(paths, Path) else paths)]

    def _named(self) -> Iterator[Named]:
        """Each image once, and each unreadable place in the files."""
        lines = self.only.read_text("utf-8-sig", "replace").splitlines() if self.only else []
        only, seen = {identity(line.strip()) for line in lines}, set[str]()
        for _, path in self._files():
            for image in names_in(path):
                known = identity(image.name)
                if image.fault:
                    yield image
                elif known not in seen and (self.only is None or known in only):
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


class Base64Source(SourceOptions):
    """Chinese-CLIP's layout (MUGE, Flickr30k-CN): `train_imgs.tsv` with lines of NUMBER<TAB>BASE64, and its texts.

    A line of `train_texts.jsonl` is `{"text_id": 1, "text": "...", "image_ids": [NUMBER, ...]}`. Each text of an image
    becomes a caption; images without texts, as in MUGE's test split, have none.
    """

    kind: Literal["base64"] = "base64"
    path: PathOption = Field(description="A file SPLIT_imgs.tsv, a folder of them, or a pattern like ./muge/*_imgs.tsv")
    language: Told = Field("caption", description="Language of the texts; `caption` detects it from their script")

    def slices(self, size: int) -> list[Slice]:
        """Slices of `size` images. Raises DcclipError where a file of texts is missing."""
        found = []
        files = [file for file in files_of(self.path, (".tsv",)) if file.name.endswith(IMAGES)]
        if not files:
            raise DcclipError("{} contains no file that ends in {}", HINT, self.path, IMAGES)
        for file in files:
            if not texts_file(file).is_file():
                what = Message("there is no {} next to {}", texts_file(file).name, file)
                raise DcclipError(what, "download it as well: it contains the captions")
            with file.open("rb") as stream:
                rows = lines(stream, MAX_TEXT_BYTES)
                found += [Slice({"file": str(file), **cut._asdict()}, cut.lines) for cut in cuts(stream, rows, size)]
        return found

    def read(self, part: Mapping[str, Any]) -> Iterator[Candidate]:
        """Candidates with their image's number as key, or the line number if that is unreadable.

        Unreadable lines of texts are part of the first slice.
        """
        file = Path(part["file"])
        prefix = key_prefix(self.path, file)
        wanted = {number for row in image_rows(file, part) if (number := number_of(row))}
        texts: dict[str, list[tuple[Told, str]]] = defaultdict(list)
        for line, text in texts_in(texts_file(file), wanted if part["start"] else None):
            if isinstance(text, Text):
                for number in wanted.intersection(text.images):
                    texts[number].append((self.language, text.text))
            else:
                yield Candidate(Pair(f"{prefix}{texts_file(file).name}:{line}", b""), text)
        for row in image_rows(file, part):
            number = number_of(row)
            pair = Pair(f"{prefix}{number or f'line {row.number}'}", b"", **by_language(texts.get(number or "", [])))
            try:
                yield Candidate(replace(pair, image=image_of(row)))
            except Fault as fault:
                yield Candidate(pair, fault.drop)
