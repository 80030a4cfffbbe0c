import pytest

from dcclip_cli.cli.flags import split


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("猫,dog", ["猫", "dog"]),
        ("猫，狗, a red car ，", ["猫", "狗", "a red car"]),
        ("苹果、梨,dog,dog", ["苹果、梨", "dog"]),
        (" ,，", []),
    ],
)
def test_english_and_chinese_commas_split_a_list(text: str, parts: list[str]) -> None:
    assert split(text) == parts
