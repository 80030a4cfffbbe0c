"""Has a picture a size, a shape and a format to be trained on?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from dcclip_cli.curation.candidate import Drop, Picture
from dcclip_cli.curation.rules.base import Rule

if TYPE_CHECKING:
    from dcclip_cli.data.pair import Pair


class ImageRule(Rule):
    """Drops pictures that are too small or too long to show their subject, and files of a wrong size or sort."""

    kind: Literal["image"] = "image"
    min_side: int = Field(32, ge=1, description="Shortest side allowed, in pixels")
    max_side: int | None = Field(None, ge=1, description="Longest side allowed, in pixels")
    max_aspect: float = Field(3.0, ge=1, description="Longer side divided by the shorter, at most")
    min_bytes: int = Field(0, ge=0, description="Smallest file allowed")
    max_bytes: int | None = Field(None, ge=1, description="Largest file allowed")
    formats: tuple[Literal["jpg", "png", "webp"], ...] = Field(
        ("jpg", "png", "webp"), min_length=1, description="Allowed, by the file's first bytes"
    )
    animated: bool = Field(False, description="Whether a picture with several frames stays, by its first one")

    @model_validator(mode="after")
    def _in_order(self) -> ImageRule:
        if self.max_side is not None and self.max_side < self.min_side:
            raise ValueError("max_side is less than min_side")
        if self.max_bytes is not None and self.max_bytes < self.min_bytes:
            raise ValueError("max_bytes is less than min_bytes")
        return self

    def reason(self, pair: Pair, picture: Picture) -> Drop | None:
        """`image-format`, `image-bytes`, `image-animated`, `image-small`, `image-large` or `image-aspect`."""
        short, long = sorted(picture.image.size)
        size = f"{picture.image.width} x {picture.image.height} pixels"
        if picture.format not in self.formats:
            return Drop("image-format", f"{picture.format}, allowed {', '.join(self.formats)}")
        if picture.file_bytes < self.min_bytes or (self.max_bytes and picture.file_bytes > self.max_bytes):
            most = f"{self.max_bytes:,}" if self.max_bytes else "any number"
            return Drop("image-bytes", f"{picture.file_bytes:,} bytes, allowed {self.min_bytes:,} to {most}")
        if picture.frames > 1 and not self.animated:
            return Drop("image-animated", f"{picture.frames} frames")
        if short < self.min_side:
            return Drop("image-small", f"{size}, shortest side allowed {self.min_side}")
        if self.max_side is not None and long > self.max_side:
            return Drop("image-large", f"{size}, longest side allowed {self.max_side}")
        if long > self.max_aspect * short:
            return Drop("image-aspect", f"{size}, ratio allowed {self.max_aspect:g}")
        return None
