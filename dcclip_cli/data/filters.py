"""Which images and captions are fit to train on, and what is wrong with the others?

A filter says why it would drop something; `collect` does the dropping and the counting. Adding one is one place: write
the class, add its name to the union at the foot of this file.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass, field
from typing import Annotated, Literal

from PIL import Image
from pydantic import Field, field_validator

from dcclip_cli.data.pair import Language, Pair
from dcclip_cli.data.table import MAX_IMAGE_BYTES
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.preprocess import decode
from dcclip_cli.options import Options

MAX_CAPTION_CHARACTERS = 10_000  # whatever the recipe says: longer text is a document, not a caption

_HAN = re.compile(r"[々〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_PLAIN_LATIN = re.compile(r"[A-Za-z]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")  # \ud800...: half characters, not UTF-8
_ACCENTED_LATIN = re.compile(r"[\u00c0-\u024f\u1e00-\u1eff]")


@dataclass(frozen=True)
class Drop:
    """Why something was left out: `reason` is one of a few fixed words to count by, `detail` is for a person."""

    reason: str
    detail: str = ""


class FilterOptions(Options):
    """What every filter has: two questions, each answered with None (fit) unless the filter asks it."""

    def reason(self, pair: Pair, image: Image.Image) -> Drop | None:
        """Why the pair should go, judged by its decoded image."""
        return None

    def caption_reason(self, caption: str, language: Language) -> Drop | None:
        """Why this one caption should go; the pair stays as long as it has others."""
        return None


class ImageFilter(FilterOptions):
    """Drops pictures that are too small or too long to show their subject."""

    kind: Literal["image"] = "image"
    min_side: int = Field(32, ge=1, description="Shortest side allowed, in pixels")
    max_aspect: float = Field(3.0, ge=1, description="Longer side divided by the shorter, at most")

    def reason(self, pair: Pair, image: Image.Image) -> Drop | None:
        """`image-small` or `image-aspect`."""
        short, long = sorted(image.size)
        said = f"{image.width} x {image.height} pixels"
        if short < self.min_side:
            return Drop("image-small", f"{said}, shortest side allowed {self.min_side}")
        if long > self.max_aspect * short:
            return Drop("image-aspect", f"{said}, ratio allowed {self.max_aspect:g}")
        return None


class LengthFilter(FilterOptions):
    """Drops captions that are too short or too long: Chinese is counted in characters, English in words."""

    kind: Literal["length"] = "length"
    zh: tuple[int, int] = Field((1, 128), description="Fewest and most characters, white space apart")
    en: tuple[int, int] = Field((1, 64), description="Fewest and most words")

    @field_validator("zh", "en")
    @classmethod
    def _in_order(cls, limits: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= limits[0] <= limits[1]:
            raise ValueError("the fewest come first, then the most")
        return limits

    def caption_reason(self, caption: str, language: Language) -> Drop | None:
        """`caption-short` or `caption-long`."""
        words = caption.split()
        length = len("".join(words)) if language == "zh" else len(words)
        fewest, most = self.zh if language == "zh" else self.en
        said = f"{length} {'characters' if language == 'zh' else 'words'}, allowed {fewest} to {most}"
        if length < fewest:
            return Drop("caption-short", said)
        return Drop("caption-long", said) if length > most else None


class LanguageFilter(FilterOptions):
    """Drops captions whose script is not that of their language, by the rule of `language_of`."""

    kind: Literal["language"] = "language"

    def caption_reason(self, caption: str, language: Language) -> Drop | None:
        """`caption-language`."""
        found = language_of(caption)
        return None if found == language else Drop("caption-language", f"said to be {language}, looks like {found}")


def language_of(caption: str) -> Language | Literal["other"]:
    """The language that a caption's script speaks for: any Han is Chinese, plain Latin is English, the rest is other.

    One letter of a third script, kana included, makes it other; so do accents on Latin letters. The rule can't tell
    kanji-only Japanese from Chinese, nor unaccented French from English; and it takes piñata for something else.
    """
    letters = [letter for letter in unicodedata.normalize("NFKC", caption) if letter.isalpha() or letter == "〇"]
    scripts = {_script(letter) for letter in letters}
    if "foreign" in scripts:
        return "other"
    if "han" in scripts:
        return "zh"
    return "en" if scripts == {"latin"} else "other"


def _script(letter: str) -> Literal["han", "latin", "accented", "foreign"]:
    if _HAN.match(letter):
        return "han"
    if _PLAIN_LATIN.match(letter):
        return "latin"
    return "accented" if _ACCENTED_LATIN.match(letter) else "foreign"


def clean(caption: str) -> str:
    """The caption in Unicode's composed form (NFC) without white space around it; full-width punctuation stays."""
    return unicodedata.normalize("NFC", caption).strip()


def unfit(caption: str) -> Drop | None:
    """Why no recipe should keep this caption: `caption-control` or `caption-long`."""
    if len(caption) > MAX_CAPTION_CHARACTERS:
        return Drop("caption-long", f"{len(caption):,} characters, never more than {MAX_CAPTION_CHARACTERS:,}")
    found = _CONTROL.search(caption)
    return Drop("caption-control", f"holds the character U+{ord(found[0]):04X}") if found else None


def open_image(image: bytes) -> Image.Image | Drop:
    """The decoded picture, or why no recipe could keep it: `image-bytes`, `image-format` or `image-unreadable`."""
    if len(image) > MAX_IMAGE_BYTES:
        return Drop("image-bytes", f"more than {MAX_IMAGE_BYTES:,} bytes")
    if image_suffix(image) is None:
        return Drop("image-format", f"not a JPEG, PNG or WebP file: starts with {image[:12]!r}")
    try:
        return decode(image)
    except DcclipError as error:
        return Drop("image-unreadable", error.what)


def image_suffix(image: bytes) -> str | None:
    """`jpg`, `png` or `webp` by the file's first bytes, whatever it is called; None for anything else."""
    if image.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else None


@dataclass
class Duplicates:
    """Remembers the images seen so far by a hash of their bytes, about 150 bytes of memory each."""

    _seen: dict[bytes, str] = field(default_factory=dict)

    def reason(self, pair: Pair) -> Drop | None:
        """`image-duplicate` where an earlier pair had the very same image; else the pair is remembered."""
        first = self._seen.setdefault(hashlib.sha256(pair.image).digest()[:16], pair.key)
        return None if first == pair.key else Drop("image-duplicate", f"the same image as {first}")


Filter = Annotated[ImageFilter | LengthFilter | LanguageFilter, Field(discriminator="kind")]
