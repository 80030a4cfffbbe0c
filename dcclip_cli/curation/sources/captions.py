"""Sources in published layouts: COCO, Flickr30k and their Chinese versions, MUGE, and folders of
classes.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.options import PathOption
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
from dcclip_cli.data import caption_files, prompts, reading
from dcclip_cli.data.class_folders import class_names, images_by_class, images_in
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.reading import Drop, Fault, Folder

Paths = PathOption | tuple[PathOption, ...]
_NAME = "{}"  # the place of a class's name in a template


class CaptionsSource(SourceOptions):
    """An image folder with caption files in either language; all captions of an image become one
    pair.

    A caption file is text with lines like `IMAGE#zhm#0 CAPTION`, `IMAGE.jpg#0<TAB>CAPTION` or
    `IMAGE<TAB>CAPTION`, or JSON like COCO's `{images, annotations}`, Karpathy's `{images:
    [{filename, sentences}]}` or a list of `{image, caption}`. Image names may lack the suffix.
    Images may be in subfolders of `images`. COCO's file names of 2014 and 2017 refer to the same
    image.
    """

    kind: Literal["captions"] = "captions"
    images: PathOption | None = Field(
        None, description="Folder with the images; default: download from COCO's URLs"
    )
    zh: Paths = Field((), description="File, or list of files, with Chinese captions")
    en: Paths = Field((), description="File, or list of files, with English captions")
    caption: Paths = Field(
        (), description="File, or list of files, with captions in either language"
    )
    only: PathOption | None = Field(
        None, description="File with the names of images to read, one per line"
    )

    @model_validator(mode="after")
    def _has_captions(self) -> Self:
        if not self._files():
            raise ValueError(
                Message("give caption files with at least one of the keys zh, en and caption")
            )
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
        identities = {caption_files.identity(image.name) for image in named if not image.fault}
        captions: dict[str, list[tuple[Told, str]]] = defaultdict(list)
        for told, path in self._files():
            for identity, text in caption_files.captions_in(path, identities):
                captions[identity].append((told, text))
        places = caption_files.Places(self.images) if self.images else None
        for image in named:
            texts = [] if image.fault else captions[caption_files.identity(image.name)]
            pair = Pair(image.name, b"", meta=image.meta, **by_language(texts))
            url = pair.meta.get("coco_url") or pair.meta.get("url")
            try:
                if image.fault:
                    yield Candidate(pair, image.fault)
                elif places:
                    yield Candidate(replace(pair, image=places.read(pair.key)))
                elif isinstance(url, str) and url:
                    yield Candidate(replace(pair, meta=pair.meta | {"url": url}), url=url)
                else:
                    reason = "no URL in the caption file; name the folder as `images` in the recipe"
                    yield Candidate(pair, Drop("image-missing", reason))
            except Fault as fault:
                yield Candidate(pair, fault.drop)

    def _files(self) -> list[tuple[Told, Path]]:
        fields = [(told, getattr(self, told)) for told in TOLD]
        return [
            (told, path)
            for told, paths in fields
            for path in ((paths,) if isinstance(paths, Path) else paths)
        ]

    def _named(self) -> Iterator[caption_files.Named]:
        """Each image once, and each unreadable place in the files."""
        names = self.only.read_text("utf-8-sig", "replace").splitlines() if self.only else []
        only = {caption_files.identity(name.strip()) for name in names}
        identities = set[str]()
        for _, path in self._files():
            for image in caption_files.names_in(path):
                identity = caption_files.identity(image.name)
                if image.fault:
                    yield image
                elif identity not in identities and (self.only is None or identity in only):
                    identities.add(identity)
                    yield image


class Base64Source(SourceOptions):
    """Chinese-CLIP's layout (MUGE, Flickr30k-CN): `train_imgs.tsv` with lines of
    NUMBER<TAB>BASE64, and its texts.

    A line of `train_texts.jsonl` is `{"text_id": 1, "text": "...", "image_ids": [NUMBER, ...]}`.
    Each text of an image becomes a caption; images without texts, as in MUGE's test split, have
    none.
    """

    kind: Literal["base64"] = "base64"
    path: PathOption = Field(
        description="A file SPLIT_imgs.tsv, a folder of them, or a pattern like ./muge/*_imgs.tsv"
    )
    language: Told = Field(
        "caption", description="Language of the texts; `caption` detects it from their script"
    )

    def slices(self, size: int) -> list[Slice]:
        files = [
            file
            for file in files_of(self.path, (".tsv",))
            if file.name.endswith(caption_files.IMAGES)
        ]
        if not files:
            raise DcclipError(
                "{} contains no file with the suffix {}", HINT, self.path, caption_files.IMAGES
            )
        slices: list[Slice] = []
        for file in files:
            texts = caption_files.texts_file(file)
            if not texts.is_file():
                message = Message(
                    "{} is missing: it must be in the same folder as {}", texts.name, file
                )
                raise DcclipError(message, "download this file too: it contains the captions")
            with file.open("rb") as stream:
                cuts = reading.cuts(stream, reading.lines(stream, reading.MAX_TEXT_BYTES), size)
                slices += [Slice({"file": str(file), **cut._asdict()}, cut.lines) for cut in cuts]
        return slices

    def read(self, part: Mapping[str, Any]) -> Iterator[Candidate]:
        """Candidates with their image's number as key, or the line number of an unreadable line,
        of texts too.
        """
        file = Path(part["file"])
        prefix = key_prefix(self.path, file)
        texts_file = caption_files.texts_file(file)
        numbers = {
            number
            for row in caption_files.image_rows(file, part)
            if (number := caption_files.number_of(row))
        }
        texts: dict[str, list[tuple[Told, str]]] = defaultdict(list)
        for line, text in caption_files.texts_in(texts_file, numbers if part["start"] else None):
            if isinstance(text, caption_files.Text):
                for number in numbers.intersection(text.images):
                    texts[number].append((self.language, text.text))
            else:
                yield Candidate(Pair(f"{prefix}{texts_file.name}:{line}", b""), text)
        for row in caption_files.image_rows(file, part):
            number = caption_files.number_of(row)
            pair = Pair(
                f"{prefix}{number or f'line {row.number}'}",
                b"",
                **by_language(texts.get(number or "", [])),
            )
            try:
                yield Candidate(replace(pair, image=caption_files.image_of(row)))
            except Fault as fault:
                yield Candidate(pair, fault.drop)


@lru_cache(1)
def _listed(folder: Path, changed_ns: int) -> list[Path]:
    """The images of a class, which may be in many slices; `changed_ns` makes it look again after a
    change.
    """
    return images_in(folder, reading.ALL_IMAGE_SUFFIXES)


class ClassFoldersSource(SourceOptions):
    """A folder with one folder of images per class; the captions of an image are the name of its
    class.

    Names are those that `eval --dataset` uses for such a folder: from its `classes.yaml` (`cat:
    {en: cat, zh: 猫}`), from a named data set with these folders (ImageNet's WordNet ids), else the
    folder names. The first caption is the bare name, so the output can also be an evaluation set.
    All images of a class have the same captions, so caption filters and `same-caption` drop none
    of them.
    """

    kind: Literal["class_folders"] = "class_folders"
    path: PathOption = Field(description="Folder with the class folders")
    captions: int = Field(
        3,
        ge=1,
        le=100,
        description="Maximum captions per language: the class name, then the templates of `eval "
        "--templates compact`",
    )
    allow_outside: bool = Field(
        False, description="Follow symbolic links that lead out of the folder"
    )

    def slices(self, size: int) -> list[Slice]:
        """Slices of `size` images, class by class. Raises DcclipError where the names of the
        classes are not known.
        """
        if not self.path.is_dir():
            raise DcclipError("{} is not a folder", HINT, self.path)
        by_folder = images_by_class(self.path, reading.ALL_IMAGE_SUFFIXES)
        folders = list(by_folder)
        names = class_names(self.path, folders)
        images = (
            (number, at)
            for number, files in enumerate(by_folder.values())
            for at in range(len(files))
        )
        slices: list[Slice] = []
        while part := list(islice(images, size)):
            classes: list[dict[str, Any]] = []
            for number, group in groupby(part, key=itemgetter(0)):
                places = [at for _, at in group]
                texts = {language: names_of[number] for language, names_of in names.items()}
                place = {"folder": folders[number], "first": places[0], "last": places[-1] + 1}
                classes.append(place | {"names": texts})
            slices.append(Slice({"classes": classes}, len(part)))
        return slices

    def read(self, part: Mapping[str, Any]) -> Iterator[Candidate]:
        """Candidates with CLASS/FILE as key, and the class folder's name as `class` in their
        metadata.
        """
        inside = Folder(self.path, self.allow_outside)
        for place in part["classes"]:
            folder = self.path / place["folder"]
            files = _listed(folder, os.stat(folder).st_mtime_ns)
            for file in files[place["first"] : place["last"]]:
                key = os.path.relpath(file, self.path)
                captions: dict[str, Any] = {}
                for language, name in place["names"].items():
                    templates = [text for text in prompts.compact(language) if text != _NAME]
                    # The path chooses the templates, each time the same.
                    order = sorted(
                        (hashlib.sha256(os.fsencode(f"{key}\n{text}")).digest(), text)
                        for text in templates
                    )
                    texts = [text.replace(_NAME, name) for _, text in order[: self.captions - 1]]
                    captions[language] = (name, *texts)
                pair = Pair(key, b"", meta={"class": place["folder"]}, **captions)
                try:
                    image = inside.read(file, reading.MAX_IMAGE_BYTES, "image")
                    yield Candidate(replace(pair, image=image), names_class=True)
                except Fault as fault:
                    yield Candidate(pair, fault.drop)
