"""What passes between the parts of `collect`: a slice of a source, a pair as the source has it, a picture, a drop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dcclip_cli.data.files.reading import Drop

if TYPE_CHECKING:
    from PIL import Image

    from dcclip_cli.data.pair import Pair

__all__ = ["Candidate", "DecodedImage", "Drop", "Slice"]


@dataclass(frozen=True)
class Slice:
    """A part of one source that one task reads: small enough to be done again, the same each time it is read.

    `part` holds what the source needs to find it (a file, a first and a last row), JSON-serialisable; `about` says
    how many candidates are expected, for the progress bar.
    """

    part: Mapping[str, Any]
    about: int


@dataclass(frozen=True)
class Candidate:
    """A pair as the source has it and what already went wrong with it.

    The pair's key says where in the source it stands: a path, a line number, or the key it had before. Where `url` is
    given the image is still to be fetched, and `pair.image` is empty.
    """

    pair: Pair
    fault: Drop | None = None
    url: str | None = None


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image as filters see it: RGB or RGBA pixels, and properties of its file."""

    image: Image.Image = field(repr=False)
    format: str  # "jpg", "png" or "webp", by the file's first bytes
    frames: int
    file_bytes: int
