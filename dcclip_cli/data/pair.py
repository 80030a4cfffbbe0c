"""An image-text pair: one image with its Chinese and English captions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Language = Literal["zh", "en"]
LANGUAGES: tuple[Language, ...] = ("zh", "en")


@dataclass(frozen=True)
class Pair:
    """One image with its captions.

    `image` holds the bytes of a JPEG, PNG or WebP file as they came; `zh` and `en` hold any number of captions, none
    included; `meta` holds whatever else the source knew (source, licence, url, ...), JSON-serialisable.
    """

    key: str
    image: bytes
    zh: tuple[str, ...] = ()
    en: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)

    def captions(self, language: Language) -> tuple[str, ...]:
        """The captions in one language."""
        return self.zh if language == "zh" else self.en
