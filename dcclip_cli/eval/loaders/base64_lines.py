"""Images with texts as Chinese-CLIP's data sets ship (MUGE, Flickr30k-CN, COCO-CN): base64 lines and JSON lines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dcclip_cli.data.files.captions import IMAGES, image_of, image_rows, number_of, texts_file, texts_in
from dcclip_cli.data.files.lines import Row
from dcclip_cli.data.files.reading import Drop
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.loaders.base import AGAIN, Captioned, Images, Loader, Place, stamp_of


@dataclass(frozen=True)
class Base64Lines(Loader):
    """`SPLIT_imgs.tsv`, lines NUMBER<TAB>BASE64, and `SPLIT_texts.jsonl`, whose texts may be about several images."""

    place: Place
    images: Path
    layout = "SPLIT_imgs.tsv"

    @classmethod
    def find(cls, place: Place) -> Base64Lines | None:
        if place.known.task != "retrieval":
            return None
        files = [root / folder / f"{place.split}{IMAGES}" for root in place.folders for folder in ("", "datasets")]
        return next((cls(place, file) for file in files if file.is_file()), None)

    def load(self) -> Captioned:
        texts = texts_file(self.images)
        if not texts.is_file():
            raise DcclipError(f"{self.images} has no {texts.name} beside it", "fetch that too: it holds the texts")
        at: list[tuple[int, int, int]] = []  # offset, length, line
        names: list[str] = []
        for row in image_rows(self.images, {"start": 0, "end": self.images.stat().st_size, "number": 1}):
            name = number_of(row)
            if name is None or row.content is None:
                raise DcclipError(f"{self.images}:{row.number} is no image's number, a tab and base64", AGAIN)
            names.append(name)
            at.append((row.start, len(row.content), row.number))

        place = {name: number for number, name in enumerate(names)}
        found: list[tuple[str, tuple[int, ...]]] = []
        for line, said in texts_in(texts, None):
            if isinstance(said, Drop):
                raise DcclipError(f"{texts}:{line}: {said.detail}", AGAIN)
            if not said.images:
                continue
            if absent := [image for image in said.images if image not in place]:
                raise DcclipError(f"{texts}:{line}: {self.images.name} has no image {absent[0]}", "finish the download")
            found.append((said.text, tuple(place[image] for image in said.images)))
        if not found:
            raise DcclipError(
                f"{texts} says of no text which images it is about", "the test texts aren't public: use valid"
            )
        return Captioned(
            Images(names, partial(_image, self.images, at), stamp_of([self.images])),
            tuple(text for text, _ in found),
            tuple(about for _, about in found),
        )


def _image(file: Path, at: list[tuple[int, int, int]], index: int) -> bytes:
    start, length, number = at[index]
    with file.open("rb") as stream:
        stream.seek(start)
        return image_of(Row(number, start, stream.read(length)))
