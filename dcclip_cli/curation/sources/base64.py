"""Pairs as Chinese-CLIP's data sets ship (MUGE, Flickr30k-CN): images in base64, captions in JSON lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dcclip_cli.curation.candidate import Candidate, Slice
from dcclip_cli.curation.sources.base import HINT, SourceOptions, Told, by_language, files_of, place_in
from dcclip_cli.data.files.captions import IMAGES, Text, image_of, image_rows, number_of, texts_file, texts_in
from dcclip_cli.data.files.lines import line_cuts
from dcclip_cli.data.files.reading import Fault
from dcclip_cli.data.pair import Pair
from dcclip_cli.errors import DcclipError


class Base64Source(SourceOptions):
    """`train_imgs.tsv`, lines of NUMBER<TAB>BASE64, with `train_texts.jsonl` beside it.

    A line of the latter is `{"text_id": 1, "text": "...", "image_ids": [NUMBER, ...]}`. Every text of an image becomes
    its caption; an image has none where the texts aren't published, as in MUGE's test split.
    """

    kind: Literal["base64"] = "base64"
    path: Path = Field(description="A file SPLIT_imgs.tsv, a folder of them, or a pattern like ./muge/*_imgs.tsv")
    language: Told = Field("caption", description="Language of the texts; `caption`: told by their script")

    def slices(self, size: int) -> list[Slice]:
        """Runs of `size` images. Raises DcclipError where a file of texts is missing."""
        found = []
        for file in self._images():
            if not texts_file(file).is_file():
                what = f"{file} has no {texts_file(file).name} beside it"
                raise DcclipError(what, "fetch that too: it holds the captions")
            with file.open("rb") as stream:
                for cut in line_cuts(stream, size):
                    part = {"file": str(file), "start": cut.start, "end": cut.end, "number": cut.number}
                    found.append(Slice(part, cut.lines))
        return found

    def read(self, part: Mapping[str, Any]) -> Iterator[Candidate]:
        """Candidates named after their image's number, or the line where that can't be read.

        Lines of texts that can't be read come with the first slice.
        """
        file = Path(part["file"])
        place = place_in(self.path, file)
        wanted = {number for row in image_rows(file, part) if (number := number_of(row))}
        texts: dict[str, list[tuple[Told, str]]] = defaultdict(list)
        # Broken lines are looked for once.
        for line, said in texts_in(texts_file(file), wanted if part["start"] else None):
            if isinstance(said, Text):
                for number in wanted.intersection(said.images):
                    texts[number].append((self.language, said.text))
            else:
                yield Candidate(Pair(f"{place}{texts_file(file).name}:{line}", b""), said)
        for row in image_rows(file, part):
            number = number_of(row)
            pair = Pair(f"{place}{number or f'line {row.number}'}", b"", **by_language(texts.get(number or "", [])))
            try:
                yield Candidate(replace(pair, image=image_of(row)))
            except Fault as fault:
                yield Candidate(pair, fault.drop)

    def _images(self) -> list[Path]:
        found = [file for file in files_of(self.path, (".tsv",)) if file.name.endswith(IMAGES)]
        if not found:
            raise DcclipError(f"{self.path} holds no file that ends in {IMAGES}", HINT)
        return found
