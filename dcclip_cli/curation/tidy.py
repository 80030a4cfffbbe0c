"""What does a caption look like once its encoding, its entities and its white space are in order?"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from dcclip_cli.curation.candidate import Drop
from dcclip_cli.options import Options

if TYPE_CHECKING:
    from dcclip_cli.data.pair import Language

MAX_CAPTION_CHARACTERS = 10_000  # whatever the recipe says: longer text is a document, not a caption

# \ud800...: half characters, not UTF-8. U+0080 to U+009F are left for `tidy` to mend: ç¬« is 猫 read as Latin-1.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\u2066-\u2069\u202a-\u202e\u200e\u200f\ufeff]")  # joiners stay: 👨‍👩‍👧
_SPACES = re.compile(r"\s+")
_HAN = re.compile(r"[\u4e00-\u9fff]")
_CHINESE = re.compile(r"[\x20-\x7e\u3000-\u303f\u4e00-\u9fff\uff00-\uffef·—…‘’“”×]+")
_HIGH_LATIN = re.compile(r"[\u00a1-\u00fe]{4}")


class TidyOptions(Options):
    """What is mended in every caption before rules see it; NFC and white space always are."""

    ftfy: bool = Field(True, description="Mend wrongly decoded text; full-width and curly punctuation stay")
    entities: bool = Field(True, description="Turn &amp; and the like into their characters")
    simplify: bool = Field(False, description="Turn Traditional into Simplified Chinese in captions said to be Chinese")


def tidy(caption: str, language: Language, options: TidyOptions) -> str:
    """The caption mended as the options say, in Unicode's composed form, on one line, without invisible characters."""
    if options.entities and "&" in caption:
        caption = _without_entities(caption)
    if options.ftfy and not caption.isascii():
        caption = _ftfy()(_mended_gbk(caption))
    caption = _SPACES.sub(" ", _INVISIBLE.sub("", unicodedata.normalize("NFC", caption))).strip()
    if options.simplify and language == "zh":
        caption = _simplifier()(caption)
    return caption


def unfit(caption: str) -> Drop | None:
    """Why no recipe should keep this caption: `caption-control` or `caption-long`. To be asked before `tidy`."""
    if len(caption) > MAX_CAPTION_CHARACTERS:
        return Drop("caption-long", f"{len(caption):,} characters, never more than {MAX_CAPTION_CHARACTERS:,}")
    found = _CONTROL.search(caption)
    return Drop("caption-control", f"holds the character U+{ord(found[0]):04X}") if found else None


def as_gbk(text: str) -> bytes:
    """The text's bytes in GBK as browsers write it, with the euro sign at 0x80, where Python has none."""
    return text.encode("gb18030", "replace").replace(b"\xa2\xe3", b"\x80")


def _without_entities(caption: str) -> str:
    import html

    for _ in range(3):  # &amp;amp;quot; has been escaped that often
        caption, before = html.unescape(caption), caption
        if caption == before:
            break
    return caption


def _mended_gbk(caption: str) -> str:
    """The Chinese behind 绾㈣壊璺戣溅 (UTF-8 read as GBK) and ºìÉ«ÅÜ³µ (GBK read as Latin-1), unknown to ftfy."""
    mended = None
    if _HAN.search(caption):
        mended = _decoded(as_gbk(caption), "utf-8")
    elif _HIGH_LATIN.search(caption):
        mended = _decoded(caption.encode("latin-1", "replace"), "gb2312")
    return mended if mended and len(_HAN.findall(mended)) >= 2 and _CHINESE.fullmatch(mended) else caption


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


@functools.cache
def _ftfy() -> Callable[[str], str]:
    import ftfy

    # The defaults would turn ，！ into ,! and “ into ".
    config = ftfy.TextFixerConfig(
        unescape_html=False, uncurl_quotes=False, fix_character_width=False, remove_control_chars=False
    )
    fix: Any = ftfy.fix_text
    return lambda text: str(fix(text, config))


@functools.cache
def _simplifier() -> Callable[[str], str]:
    import opencc

    convert: Any = opencc.OpenCC("t2s").convert
    return lambda text: str(convert(text))
