"""Of which scripts are the letters of a caption?"""

from __future__ import annotations

import re
import unicodedata

_HAN = r"々〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LATIN = r"A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff"  # without the signs × and ÷
_KANA = r"\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"
_NEUTRAL = r"\u02b0-\u02ff\u3105-\u312f"  # modifier letters (ʻ); bopomofo, which is Chinese

HAN = re.compile(f"[{_HAN}]")
KANA = re.compile(f"[{_KANA}]")
LATIN_WORD = re.compile(f"[{_LATIN}]+(?:['’-][{_LATIN}]+)*")
LETTER = re.compile(r"[^\W\d_]")
FOREIGN = re.compile(rf"[^\W\d_{_HAN}{_LATIN}{_KANA}{_NEUTRAL}]")
_LONE_GREEK = re.compile(r"(?<![\u0370-\u03ff])[\u0370-\u03ff](?![\u0370-\u03ff])")  # α, β, μ, Ω: signs, not Greek

# Characters of Japan alone: in JIS level 1, neither in GB 2312 nor in Big5, and not variants that Hong Kong and Taiwan
# also write (裏, 説, 顔 ...) nor common in Japanese names that Chinese captions quote (咲, 畑, 姫 ...).
_JAPANESE = re.compile(
    "[両乗亜仏仮価倶働児円冨処剣剤剰労効勅勧勲匁単厳収営噛団囲図圏圧塁塩増壊壌壱売変奨宍実寛対専廃帰広弐弾従徳応悩悪"
    "惣懐戦戯戻払抜択拝拠拡挙挿捜掲掻揺摂撃撹斉斎暁暦枠査柾栄桜桝桟検楕楽様権欝歓歩歯歴殻毎気氷汚沢浄涙渇済渉渋渓"
    "溌滝潅瀞瀬焔焼犠猟獣畳疎発県砕稲穏穣竜箆籾粋粛粧経絵絶継続総縁縄縦繊繋聡聴脳臓舎舗艶茘菓蔵薬蛍蝿覇覚覧観訳"
    "読諌謡譲讃賎賛贋転軽辺込逓遅酔醗醤醸釈鉄鉱鋳錬録鑓関闘陥険隠隣隷雑霊靭頚駄駅駆騒験髄鶏黙齢]"
)


def plain(caption: str) -> str:
    """The caption with full-width and other compatibility forms made ordinary, and single Greek letters left out."""
    return _LONE_GREEK.sub(" ", unicodedata.normalize("NFKC", caption))


def is_surely_japanese(text: str) -> bool:
    """Whether a Han character of it is written so in Japan alone, and none in China alone (駅前, not 学校)."""
    return bool(_JAPANESE.search(text)) and not has_chinese_only(text)


def has_chinese_only(text: str) -> bool:
    """Whether a Han character of it is in no Japanese character set (JIS X 0208), as most simplified ones aren't."""
    return any(len(letter.encode("shift_jis", "ignore")) != 2 for letter in HAN.findall(text))
