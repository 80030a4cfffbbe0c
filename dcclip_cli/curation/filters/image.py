"""The base class of filters, and those on the image: size, shape, format, and images of a single colour."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from dcclip_cli.curation.decode_image import DecodedImage
from dcclip_cli.data.reading import Drop
from dcclip_cli.errors import Message
from dcclip_cli.options import Options

if TYPE_CHECKING:
    from dcclip_cli.data.pair import Language, Pair

_SIDE = 48  # pixels: a speck of a few pixels is averaged away, a line isn't
_EVERY = 19  # pixels apart are those that are looked at first, in all columns


class Filter(Options):
    """Decides on one pair by its image, or on one caption. A subclass overrides one of the two methods, or both.

    A filter sees nothing but its arguments, so filters can run anywhere and in any order.
    """

    def check_pair(self, pair: Pair, decoded: DecodedImage) -> Drop | None:
        """Why the pair is dropped because of its image; None keeps it."""
        return None

    def suspects(self, captions: Sequence[str]) -> Collection[int]:
        """The numbers of the captions that `check_caption` may drop, where that is found faster for many at once."""
        return range(len(captions))

    def check_caption(self, caption: str, language: Language) -> Drop | None:
        """Why this normalized caption is dropped; None keeps it. The pair is kept as long as it has other captions."""
        return None


class ImageFilter(Filter):
    """Drops images that are too small or too narrow to show their subject, and files of an unwanted size or format."""

    kind: Literal["image"] = "image"
    min_side: int = Field(32, ge=1, le=1_000_000, description="Minimum length of the shorter side, in pixels")
    max_side: int | None = Field(
        None, ge=1, le=1_000_000, description="Maximum length of the longer side, in pixels; null: no limit"
    )
    max_aspect: float = Field(3.0, ge=1, le=1000, description="Maximum ratio of the longer side to the shorter side")
    min_bytes: int = Field(0, ge=0, le=1_000_000_000, description="Minimum file size in bytes")
    max_bytes: int | None = Field(
        None, ge=1, le=1_000_000_000, description="Maximum file size in bytes; null: no limit"
    )
    formats: tuple[Literal["jpg", "png", "webp"], ...] = Field(
        ("jpg", "png", "webp"), min_length=1, description="Allowed file formats, detected from the first bytes"
    )
    animated: bool = Field(False, description="Keep animated images; only their first frame is used")

    @model_validator(mode="after")
    def _in_order(self) -> ImageFilter:
        if self.max_side is not None and self.max_side < self.min_side:
            raise ValueError(Message("max_side is less than min_side"))
        if self.max_bytes is not None and self.max_bytes < self.min_bytes:
            raise ValueError(Message("max_bytes is less than min_bytes"))
        return self

    def check_pair(self, pair: Pair, decoded: DecodedImage) -> Drop | None:
        """`image-format`, `image-bytes`, `image-animated`, `image-small`, `image-large` or `image-aspect`."""
        short, long = sorted(decoded.image.size)
        size = "{} x {} pixels".format(*decoded.image.size)
        if decoded.format not in self.formats:
            return Drop("image-format", f"{decoded.format}, allowed {', '.join(self.formats)}")
        if decoded.file_bytes < self.min_bytes or (self.max_bytes and decoded.file_bytes > self.max_bytes):
            most = f"{self.max_bytes:,}" if self.max_bytes else "any number"
            return Drop("image-bytes", f"{decoded.file_bytes:,} bytes, allowed {self.min_bytes:,} to {most}")
        if decoded.frames > 1 and not self.animated:
            return Drop("image-animated", f"{decoded.frames} frames")
        if short < self.min_side:
            return Drop("image-small", f"{size}, shortest side allowed {self.min_side}")
        if self.max_side is not None and long > self.max_side:
            return Drop("image-large", f"{size}, longest side allowed {self.max_side}")
        if long > self.max_aspect * short:
            return Drop("image-aspect", f"{size}, ratio allowed {self.max_aspect:g}")
        return None


class BlankFilter(Filter):
    """Drops images that are one colour, except for at most a speck of it, once shrunk to 48 px.

    Transparent parts count as white, as in training: a white drawing on a transparent background is blank.
    """

    kind: Literal["blank"] = "blank"
    contrast: int = Field(
        12, ge=0, le=255, description="A pixel differs if a channel is further than this from the median colour"
    )
    min_share: float = Field(0.005, ge=0, le=1, description="Minimum fraction of the image that must differ")

    def check_pair(self, pair: Pair, decoded: DecodedImage) -> Drop | None:
        """`image-blank`."""
        small = decoded.resized(_SIDE, Image.Resampling.BOX)
        pixels = small.tobytes()
        fewest = max(1, math.ceil(self.min_share * _SIDE * _SIDE))
        for channel in range(3):
            some = sorted(pixels[channel :: 3 * _EVERY])
            # So many are further from each other than any median can be from both: no need to look at the others.
            if 2 * fewest <= len(some) and some[-fewest] - some[fewest - 1] > 2 * self.contrast:
                return None
        channels = np.frombuffer(pixels, np.uint8).reshape(-1, 3)  # range 0 to 255
        median = np.sort(channels, axis=0, kind="stable")[_SIDE * _SIDE // 2]
        apart = np.abs(channels.astype(np.int16) - median) > self.contrast
        differs = np.count_nonzero(apart.any(1)) / (_SIDE * _SIDE)
        if differs >= self.min_share:
            return None
        colour = bytes(median).hex()
        return Drop("image-blank", f"{differs:.2%} of it differs from the colour #{colour}")
