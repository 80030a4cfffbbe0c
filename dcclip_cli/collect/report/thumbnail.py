"""How does a picture look in the report? Small, on white, as a JPEG file."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from dcclip_cli.collect.candidate import Drop

if TYPE_CHECKING:
    from PIL import Image

THUMBNAIL_PX = 96


def thumbnail_of(content: bytes, picture: Image.Image | None = None) -> tuple[bytes, int, int]:
    """A JPEG file of at most 96 pixels a side, and the image's own width and height.

    Nothing (`b"", 0, 0`) where there is no decoded `picture` and `content` can't be decoded either.
    """
    from PIL import Image

    if picture is None:
        from dcclip_cli.collect.picture import open_picture

        opened = open_picture(content) if content else None
        if opened is None or isinstance(opened, Drop):
            return b"", 0, 0
        picture = opened.image
    scale = min(1.0, THUMBNAIL_PX / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    small = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    if small.mode != "RGB":
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small.convert("RGBA")).convert("RGB")
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return stream.getvalue(), picture.width, picture.height
