"""The language of a text by its script."""

import pytest

from dcclip_cli.errors import DcclipError
from dcclip_cli.text import check_unicode, language_by_script


@pytest.mark.parametrize(
    ("text", "language"),
    [("猫", "zh"), ("T恤", "zh"), ("𠮷野家", "zh"), ("dog", "en"), ("ねこ", "en"), ("é，。", "en")],
)
def test_a_chinese_character_makes_a_text_chinese(text: str, language: str) -> None:
    assert language_by_script(text) == language


def test_half_a_character_is_no_text_for_a_tokenizer() -> None:
    check_unicode(["猫 cat", "👩‍🔬", ""])
    for text in ("猫\udcff", "\ud83d cat"):
        with pytest.raises(DcclipError, match="contains bytes that are not UTF-8"):
            check_unicode(["dog", text])
