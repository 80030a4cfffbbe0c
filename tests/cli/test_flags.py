import pytest

from dcclip_cli.cli.flags import resolve_device, split


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


def test_the_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == "cpu"
