"""Normalization of captions: encoding errors, HTML entities, Unicode form and white space."""

import functools
import html
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from pydantic import Field

from dcclip_cli.core.options import Options
from dcclip_cli.data.pair import Language
from dcclip_cli.data.reading import Drop

MAX_CAPTION_CHARACTERS = (
    10_000  # whatever the recipe allows: longer text is a document, not a caption
)

# \ud800...: lone surrogates, not UTF-8. `normalize` repairs U+0080 to U+009F: ç¬« is 猫 read as
# Latin-1.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_INVISIBLE = re.compile(
    "[\u00ad\u200b\u2060\u2066-\u2069\u202a-\u202e\u200e\u200f\ufeff]"
)  # joiners are kept: 👨‍👩‍👧
_HAN = re.compile(r"[\u4e00-\u9fff]")
_CHINESE = re.compile(r"[\x20-\x7e\u3000-\u303f\u4e00-\u9fff\uff00-\uffef·—…‘’“”×]+")
_HIGH_LATIN = re.compile(r"[\u00a1-\u00fe]{4}")
# ftfy's defaults would turn ，！ into ,! and “ into ".
_REPAIRS: dict[str, Any] = dict.fromkeys(
    ("unescape_html", "uncurl_quotes", "fix_character_width", "remove_control_chars"), False
)


class NormalizeOptions(Options):
    """Clean-up of every caption before filtering, in addition to encodings, HTML entities, NFC and
    white space.
    """

    simplify: bool = Field(
        False, description="Convert Traditional to Simplified Chinese in Chinese captions"
    )


def normalize(caption: str, language: Language, options: NormalizeOptions) -> str:
    """The caption repaired as the options say, in NFC, on one line, without invisible characters."""
    if "&" in caption:
        for _ in range(3):  # &amp;amp;quot; was escaped three times
            caption = html.unescape(caption)
    if not caption.isascii():
        # the Chinese behind 绾㈣壊璺戣溅 (UTF-8 read as GBK) or ºìÉ«ÅÜ³µ (GBK read as Latin-1)
        repaired = ""
        if _HAN.search(caption):
            repaired = as_gbk(caption).decode("utf-8", "replace")
        elif _HIGH_LATIN.search(caption):
            repaired = caption.encode("latin-1", "replace").decode("gb2312", "replace")
        if len(_HAN.findall(repaired)) >= 2 and _CHINESE.fullmatch(repaired):
            caption = repaired
        elif not _CHINESE.fullmatch(caption):  # else ftfy changes nothing
            import ftfy

            caption = ftfy.fix_text(caption, **_REPAIRS)
        caption = _INVISIBLE.sub("", unicodedata.normalize("NFC", caption))
    caption = " ".join(caption.split())
    return _simplifier()(caption) if options.simplify and language == "zh" else caption


def check_characters(caption: str) -> Drop | None:
    """`caption-control` or `caption-long` for captions that no recipe may keep. Call it before
    `normalize`.
    """
    if len(caption) > MAX_CAPTION_CHARACTERS:
        return Drop(
            "caption-long",
            f"{len(caption):,} characters, never more than {MAX_CAPTION_CHARACTERS:,}",
        )
    control = _CONTROL.search(caption)
    return (
        Drop("caption-control", f"contains the character U+{ord(control[0]):04X}")
        if control
        else None
    )


def as_gbk(text: str) -> bytes:
    """The text encoded in GBK as browsers do it, with the euro sign at 0x80, which Python's codec
    lacks.
    """
    return text.encode("gb18030", "replace").replace(b"\xa2\xe3", b"\x80")


@functools.cache
def _simplifier() -> Callable[[str], str]:
    import opencc

    convert: Any = opencc.OpenCC("t2s").convert
    return lambda text: str(convert(text))
