"""The language of a text by its script."""

import pytest

from dcclip_cli.text import language_by_script


@pytest.mark.parametrize(
    ("text", "language"),
    [("猫", "zh"), ("T恤", "zh"), ("𠮷野家", "zh"), ("dog", "en"), ("ねこ", "en"), ("é，。", "en")],
)
def test_a_chinese_character_makes_a_text_chinese(text: str, language: str) -> None:
    assert language_by_script(text) == language
