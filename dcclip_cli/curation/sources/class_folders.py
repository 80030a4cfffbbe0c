"""A source of pairs made out of class folders: the captions are the classes' names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from dcclip_cli.curation.sources.base import HINT, Candidate, Slice, SourceOptions
from dcclip_cli.data import prompts
from dcclip_cli.data.class_folders import class_names, images_by_class, images_in
from dcclip_cli.data.pair import LANGUAGES, Language, Pair
from dcclip_cli.data.reading import ALL_IMAGE_SUFFIXES, MAX_IMAGE_BYTES, Fault, Folder
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.options import PathOption

_NAME = "{}"


@lru_cache(1)
def _listed(folder: Path, changed_ns: int) -> list[Path]:
    """The images of a class, which may be in many slices; `changed_ns` makes it look again after a change."""
    return images_in(folder, ALL_IMAGE_SUFFIXES)


class ClassFoldersSource(SourceOptions):
    """A folder with a folder of images for each class; the captions of an image are the name of its class.

    The names are those that `eval --dataset` takes for such a folder: from its `classes.yaml` (`cat: {en: cat, zh:
    猫}`), those of a known data set whose folders these are (ImageNet's WordNet ids), else the folders' own names. The
    first caption is the name alone, so that the output is an evaluation set too. All images of a class have the same
    captions, so filters on captions and `same-caption` drop none of them.
    """

    kind: Literal["class_folders"] = "class_folders"
    path: PathOption = Field(description="Folder with the class folders")
    captions: int = Field(
        3,
        ge=1,
        le=100,
        description="Maximum captions of an image in each language: the name, and the name in templates chosen by the "
        "image's path",
    )
    templates: dict[Language, tuple[str, ...]] = Field(
        {},
        description="Templates of the further captions by language, with {} for the name; default: those of "
        "`eval --templates compact`",
    )
    allow_outside: bool = Field(False, description="Follow symbolic links that lead out of the folder")

    @field_validator("templates")
    @classmethod
    def _have_a_place(cls, templates: dict[Language, tuple[str, ...]]) -> dict[Language, tuple[str, ...]]:
        if wrong := [one for several in templates.values() for one in several if _NAME not in one]:
            raise ValueError(Message("{!r} has no {} for the name", wrong[0], _NAME))
        return templates

    def slices(self, size: int) -> list[Slice]:
        """Slices of `size` images, class by class. Raises DcclipError where the names of the classes are not known."""
        if not self.path.is_dir():
            raise DcclipError("{} is not a folder", HINT, self.path)
        by_folder = images_by_class(self.path, ALL_IMAGE_SUFFIXES)
        names = class_names(self.path, list(by_folder))
        numbers = {folder: number for number, folder in enumerate(by_folder)}
        images = ((folder, at) for folder, files in by_folder.items() for at in range(len(files)))
        found: list[Slice] = []
        while part := list(islice(images, size)):
            classes: list[dict[str, Any]] = []
            for folder, group in groupby(part, key=itemgetter(0)):
                places = [at for _, at in group]
                named = {language: every[numbers[folder]] for language, every in names.items()}
                classes.append({"folder": folder, "first": places[0], "last": places[-1] + 1, "names": named})
            found.append(Slice({"classes": classes}, len(part)))
        return found

    def read(self, part: Mapping[str, Any]) -> Iterator[Candidate]:
        """Candidates with CLASS/FILE as key, and the class folder's name as `class` in their metadata."""
        inside = Folder(self.path, self.allow_outside)
        for one in part["classes"]:
            folder = self.path / one["folder"]
            files = _listed(folder, os.stat(folder).st_mtime_ns)
            for file in files[one["first"] : one["last"]]:
                key = os.path.relpath(file, self.path)
                captions: dict[str, Any] = {
                    language: tuple(self._captions(one["names"][language], language, key))
                    for language in LANGUAGES
                    if language in one["names"]
                }
                pair = Pair(key, b"", meta={"class": one["folder"]}, **captions)
                try:
                    yield Candidate(replace(pair, image=inside.read(file, MAX_IMAGE_BYTES, "image")), names_class=True)
                except Fault as fault:
                    yield Candidate(pair, fault.drop)

    def _captions(self, name: str, language: Language, key: str) -> Sequence[str]:
        templates = self.templates.get(language) or [one for one in prompts.compact(language) if one != _NAME]
        order = sorted(templates, key=lambda one: hashlib.sha256(os.fsencode(f"{key}\n{one}")).digest())
        return [name, *(one.replace(_NAME, name) for one in order[: self.captions - 1])]
