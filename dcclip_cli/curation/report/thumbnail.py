"""How does a picture look in the report? Small, on white, as a JPEG file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dcclip_cli.curation.candidate import Drop
from dcclip_cli.html import jpeg_thumbnail

if TYPE_CHECKING:
    from PIL import Image


def thumbnail_of(content: bytes, picture: Image.Image | None = None) -> tuple[bytes, int, int]:
    """A JPEG file of at most 96 pixels a side, and the image's own width and height.

    Nothing (`b"", 0, 0`) where there is no decoded `picture` and `content` can't be decoded either.
    """
    if picture is None:
        from dcclip_cli.curation.decode_image import decode_image

        opened = decode_image(content) if content else None
        if opened is None or isinstance(opened, Drop):
            return b"", 0, 0
        picture = opened.image
    return jpeg_thumbnail(picture), picture.width, picture.height
