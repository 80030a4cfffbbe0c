"""Detection of a caption's language, and its limits."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcclip_cli.curation.filters.language import LanguageFilter, language_of
from dcclip_cli.data.pair import Language
from dcclip_cli.data.reading import Drop

CHINESE = """一只猫|苹果 iPhone 15 手机壳|臺北夜市|人山人海，好热闹！|𠮷野家|〇|BMW汽车|β-胡萝卜素|优の良品|髮型屋招牌
Canon EOS 5D Mark IV 相机|武井咲写真|东京 の 地铁站|ㄅㄆㄇ 注音"""
ENGLISH = """a cat|BMW M3 2015|Ｔｏｋｙｏ at night|tiramisu|kimono|a piñata|café|flag: São Tomé & Príncipe|woman’s hat
Rio de Janeiro at night|alpha (α) particle|Chinese New Year 春 greeting card with lanterns|São Paulo skyline at night"""
OTHER = """猫がベッドで寝ている|東京の夜景|東京駅|関西国際空港|고양이|красная машина|Αθήνα|قطة|un café à Paris
un chat sur le lit|ein roter Sportwagen|ein roter Sportwagen auf der Straße|puesta de sol en la playa
una playa con palmeras|zwei Männer spielen Schach|vue aérienne de la ville|con mèo trên giường|2015 😀!|żaba"""


@pytest.mark.parametrize(("language", "captions"), [("zh", CHINESE), ("en", ENGLISH), ("other", OTHER)])
def test_script_small_words_and_detector_tell_the_language(language: str, captions: str) -> None:
    for caption in [*captions.replace("\n", "|").split("|"), *([""] if language == "other" else [])]:
        assert language_of(caption) == language, caption


def test_japanese_in_characters_that_china_writes_too_passes_for_chinese() -> None:
    assert language_of("東京大学") == "zh"  # undecidable: Chinese text contains the same four characters
    assert language_of("新年会") == "zh"


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=40))
def test_composing_characters_does_not_change_the_language(caption: str) -> None:
    assert language_of(unicodedata.normalize("NFD", caption)) == language_of(caption)


@pytest.mark.parametrize(
    ("caption", "language", "looks_like"),
    [("a cat", "zh", "en"), ("一只猫", "en", "zh"), ("猫がいる", "zh", "neither"), ("un chat noir", "en", "neither"),
     ("кошка", "zh", "neither")],
)  # fmt: skip
def test_a_caption_in_another_language_than_labelled_is_dropped(
    caption: str, language: Language, looks_like: str
) -> None:
    expected = Drop("caption-language", f"said to be {language}, looks like {looks_like}")
    assert LanguageFilter().check_caption(caption, language) == expected


@pytest.mark.parametrize("caption", ["2015", "DNA", "OK", "AT&T", "😀"])
@pytest.mark.parametrize("language", ["zh", "en"])
def test_what_is_of_no_language_is_dropped_for_none(caption: str, language: Language) -> None:
    assert LanguageFilter().check_caption(caption, language) is None
