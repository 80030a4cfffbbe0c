"""Types shared by the parts of `collect`: slices of sources, candidate pairs, decoded images, drops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dcclip_cli.data.reading import Drop

if TYPE_CHECKING:
    from PIL import Image

    from dcclip_cli.data.pair import Pair

__all__ = ["Candidate", "DecodedImage", "Drop", "Slice"]


@dataclass(frozen=True)
class Slice:
    """A part of one source that one task reads: small enough to be repeated, and the same each time it is read."""

    part: Mapping[str, Any]  # what the source needs to find it, such as a file, a first and a last row; JSON
    about: int  # estimated number of candidates, for the progress bar


@dataclass(frozen=True)
class Candidate:
    """A pair as a source has it, and why it cannot be read if so.

    The pair's key is its position in the source: a path, a line number, or the key it had before. If `url` is given,
    the image is still to be downloaded, and `pair.image` is empty.
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
