"""How does a picture look in a report? Small, on white, as a JPEG file."""

from __future__ import annotations

import io

from PIL import Image

THUMBNAIL_PX = 96


def jpeg_of(picture: Image.Image) -> bytes:
    """A JPEG file of at most 96 pixels a side."""
    scale = min(1.0, THUMBNAIL_PX / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    small = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    if small.mode != "RGB":
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small.convert("RGBA")).convert("RGB")
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return stream.getvalue()
