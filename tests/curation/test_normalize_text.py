"""What normalization repairs in a caption, what it keeps, and what is no caption at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcclip_cli.curation.normalize_text import NormalizeOptions, check_characters, normalize


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("\u3000蝴蝶，张开了翅膀！\n", "蝴蝶，张开了翅膀！"),
        ("“你好”——他说：《Ｔ恤》……", "“你好”——他说：《Ｔ恤》……"),
        ("“Hello,” she said… it’s 5′", "“Hello,” she said… it’s 5′"),
        (" cafe\u0301 ", "caf\u00e9"),
        ("two\r\n lines\tand   spaces", "two lines and spaces"),
        ("一只\u200b猫\ufeff", "一只猫"),
        ("👨\u200d👩\u200d👧 family", "👨\u200d👩\u200d👧 family"),
        ("cats &amp; dogs", "cats & dogs"),
        ("猫&amp;amp;狗 &#x732b;&nbsp;", "猫&狗 猫"),
        ("MÃ¼nchen at night", "München at night"),
        ("ä¸€å\x8fªçŒ«åœ¨ç\x9d¡è§‰", "一只猫在睡觉"),
        ("绾㈣壊璺戣溅", "红色跑车"),  # UTF-8 read as GBK
        ("ºìÉ«ÅÜ³µ", "红色跑车"),  # GBK read as Latin-1
        ("锟斤拷", "锟斤拷"),  # lost for good
        ("联通", "联通"),  # whose GBK bytes are UTF-8 by chance
        ("über café à la carte", "über café à la carte"),
    ],
)
def test_a_caption_is_repaired_and_its_punctuation_is_kept(caption: str, expected: str) -> None:
    assert normalize(caption, "zh", NormalizeOptions()) == expected


def test_repairs_can_be_switched_off_and_chinese_captions_simplified() -> None:
    garbled, simplify = "MÃ¼nchen &amp; 绾㈣壊璺戣溅", NormalizeOptions(simplify=True)
    assert normalize(garbled + " ", "en", NormalizeOptions(ftfy=False, entities=False)) == garbled
    assert normalize("一隻黃色的狗，臺北夜市", "zh", simplify) == "一只黄色的狗，台北夜市"
    assert normalize("a sign saying 臺北", "en", simplify) == "a sign saying 臺北"
    assert normalize("臺北夜市", "zh", NormalizeOptions()) == "臺北夜市"


@given(st.text(alphabet="一只黄色的狗在草地上奔跑，。！“”《》、的是人了国中大 ABCabc123", max_size=40))
def test_chinese_text_in_order_is_never_changed_but_for_its_spaces(caption: str) -> None:
    assert normalize(caption, "zh", NormalizeOptions()) == " ".join(caption.split())


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("一只猫\0", "caption-control"),
        ("a \x1b[31mred cat", "caption-control"),
        ("half a pair \ud83d", "caption-control"),
        ("猫" * 10_001, "caption-long"),
        ("猫" * 10_000, None),
        ("two\nlines", None),
        ("ä¸\x80å\x8fª", None),  # `normalize` may repair it
        ("一只猫😀", None),
    ],
)
def test_control_characters_and_documents_are_no_captions(caption: str, expected: str | None) -> None:
    drop = check_characters(caption)
    assert (drop.reason if drop else None) == expected
