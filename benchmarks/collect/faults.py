"""Planted faults of images, and repeated images, each with the drop reasons that count as right.

`PICTURES` damage an image; `AGAIN` repeat the image of an earlier pair.
"""

import io
import zlib
from collections.abc import Callable
from random import Random

from PIL import Image, ImageDraw

Spoil = Callable[[Random, Image.Image], bytes]


def save(image: Image.Image, format: str, **options: object) -> bytes:
    """The image as a file's bytes, on white if the format has no transparency."""
    if format == "JPEG" and image.mode != "RGB":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def cut(format: str) -> Spoil:
    """A truncated file."""

    def spoil(random: Random, image: Image.Image) -> bytes:
        whole = save(image, format)
        return whole[: int(len(whole) * random.uniform(0.4, 0.9))]

    return spoil


def bomb(random: Random, image: Image.Image) -> bytes:
    """A PNG of about 60 kB whose pixels would take a gigabyte."""
    side = random.randrange(18_000, 24_000)

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + name + content + zlib.crc32(name + content).to_bytes(4)

    header = side.to_bytes(4) * 2 + bytes((1, 0, 0, 0, 0))  # one bit a pixel, grey
    rows = zlib.compress(bytes((side // 8 + 2) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def blank(random: Random, image: Image.Image) -> bytes:
    return save(Image.new("RGB", image.size, tuple(random.randrange(256) for _ in range(3))), "PNG")


def almost_blank(random: Random, image: Image.Image) -> bytes:
    """One colour, a little noise in it and one white pixel."""
    shade = random.randrange(120)
    grey = Image.effect_noise((96, 96), 1.5).point(lambda value: value // 2 + shade)
    grey.putpixel((random.randrange(96), random.randrange(96)), 255)
    return save(grey.convert("RGB"), "JPEG", quality=90)


def animation(format: str) -> Spoil:
    def spoil(random: Random, image: Image.Image) -> bytes:
        frames = [image.rotate(angle).convert("RGBA") for angle in (random.randrange(1, 90), 180)]
        return save(image.convert("RGBA"), format, save_all=True, append_images=frames, duration=100)

    return spoil


def svg(random: Random, image: Image.Image) -> bytes:
    return f'<svg xmlns="http://www.w3.org/2000/svg"><circle r="{random.random()}"/></svg>'.encode()


def page(random: Random, image: Image.Image) -> bytes:
    return f"<!DOCTYPE html><title>404 Not Found {random.random()}</title>".encode()


PICTURES: dict[str, tuple[Spoil, set[str]]] = {
    "an SVG": (svg, {"image-format"}),
    "an error page": (page, {"image-format"}),
    "a GIF": (lambda random, image: save(image, "GIF"), {"image-format"}),
    "a BMP": (lambda random, image: save(image.convert("RGB"), "BMP"), {"image-format"}),
    "no bytes": (lambda random, image: b"", {"image-bytes", "image-missing"}),
    "JPEG cut off": (cut("JPEG"), {"image-unreadable"}),
    "PNG cut off": (cut("PNG"), {"image-unreadable"}),
    "WebP cut off": (cut("WEBP"), {"image-unreadable"}),
    "a bomb": (bomb, {"image-bomb"}),
    "a thumbnail": (lambda random, image: save(image.resize((random.randrange(8, 30), 24)), "PNG"), {"image-small"}),
    "a banner": (lambda random, image: save(image.resize((40 * random.randrange(8, 20), 40)), "PNG"), {"image-aspect"}),
    "one colour": (blank, {"image-blank"}),
    "almost one colour": (almost_blank, {"image-blank"}),
    "animated WebP": (animation("WEBP"), {"image-animated"}),
    "animated PNG": (animation("PNG"), {"image-animated"}),
}


def cropped(random: Random, image: Image.Image) -> bytes:
    """2 to 4 % off every side."""
    width, height = image.size
    left, top, right, bottom = (random.uniform(0.02, 0.04) for _ in range(4))
    box = (int(width * left), int(height * top), int(width * (1 - right)), int(height * (1 - bottom)))
    return save(image.crop(box), "JPEG", quality=85)


def marked(random: Random, image: Image.Image) -> bytes:
    """A semi-transparent line of text near one corner, like that of an image agency."""
    layer = Image.new("RGBA", image.size)
    at = (image.width * random.uniform(0.05, 0.4), image.height * random.choice((0.05, 0.85)))
    ImageDraw.Draw(layer).text(
        at, f"photo {random.randrange(10**6)}", (255, 255, 255, 150), font_size=image.height / 14
    )
    return save(Image.alpha_composite(image.convert("RGBA"), layer), "JPEG", quality=85)


def half(random: Random, image: Image.Image) -> bytes:
    return save(image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS), "JPEG", quality=85)


_SAME = {"image-duplicate", "image-merged"}
_NEAR = {"image-near-duplicate"}
AGAIN: dict[str, tuple[Spoil, set[str]]] = {
    "the same pixels": (lambda random, image: save(image, "PNG"), _SAME),
    "JPEG at quality 40": (lambda random, image: save(image, "JPEG", quality=40), _NEAR),
    "half size": (half, _NEAR),
    "a watermark": (marked, _NEAR),
    "cropped a little": (cropped, _NEAR),
}
