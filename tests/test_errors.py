import pickle
from pathlib import Path

from dcclip_cli.errors import AgainError, DcclipError, Message, joined, translated


def test_an_error_fills_both_of_its_templates_with_the_fields() -> None:
    error = DcclipError("{path} has {count:,} lines", "cut {path}", path=Path("标签.txt"), count=12345)
    assert (error.what, error.hint, str(error)) == (
        "标签.txt has 12,345 lines",
        "cut 标签.txt",
        "标签.txt has 12,345 lines",
    )


def test_a_message_keeps_its_template_and_the_texts_of_its_fields() -> None:
    message = Message("{name!r}: {share:.1f} %", name="猫", share=12.34)
    assert message == "'猫': 12.3 %"
    assert message.template == "{name!r}: {share:.1f} %"
    assert message.values == {"name!r": "'猫'", "share:.1f": "12.3"}


def test_braces_in_a_value_are_text() -> None:
    assert Message("{path} is {{}}", path="{a}/{path}") == "{a}/{path} is {}"
    assert DcclipError("{what}", "", what=Message("{path}", path="{what}")).what == "{what}"


def test_a_doubled_brace_is_a_brace_with_or_without_fields() -> None:
    error = DcclipError("a photo of a {{}}", "{stage}: set vocabulary: {{from: data}}", stage="distill")
    assert (error.what, error.hint) == ("a photo of a {}", "distill: set vocabulary: {from: data}")
    assert translated(Message("a photo of a {{}}, 猫"), "zh") == "a photo of a {}, 猫"


def test_a_template_without_values_keeps_its_fields() -> None:
    assert Message("{file} is a {{folder}}") == "{file} is a {folder}"


def test_a_message_in_a_message_stays_one() -> None:
    inner = DcclipError("{path} is damaged", "", path="a.tar")
    for value in (inner, inner.what):
        found = Message("pair {key}: {what}", key="猫", what=value).values["what"]
        assert isinstance(found, Message)
        assert (found, found.template) == ("a.tar is damaged", "{path} is damaged")


def test_messages_below_each_other_stay_messages() -> None:
    both = joined("\n", [Message("{n} of 2", n=1), "{n} of 2"])
    assert both == "1 of 2\n{n} of 2"
    assert [getattr(one, "template", None) for one in both.values.values()] == ["{n} of 2", None]


def test_an_error_keeps_its_kind_and_its_templates_when_it_leaves_a_process() -> None:
    error = pickle.loads(pickle.dumps(AgainError("{path} is {what}", "{path}?", path="{x}", what=Message("a folder"))))
    assert type(error) is AgainError
    assert (error.what, error.hint) == ("{x} is a folder", "{x}?")
    assert error.what.template == "{path} is {what}"
    assert isinstance(error.what.values["what"], Message)
