"""Messages keep their templates, and are shown in the language of the user."""

import os
import pickle
import subprocess
import sys

import pytest
from rich.cells import cell_len

from dcclip_cli.core.errors import AgainError, DcclipError, Message, joined, language, translated
from tests.cli.conftest import dcclip


def test_braces_in_a_value_are_text_and_a_doubled_one_is_a_brace_with_or_without_fields() -> None:
    assert Message("{path} is {{}}", path="{a}/{path}") == "{a}/{path} is {}"
    assert DcclipError("{what}", "", what=Message("{path}", path="{what}")).what == "{what}"
    error = DcclipError("a photo of a {{}}", "{stage}: set vocabulary: {{from: data}}", stage="distill")
    assert (error.what, error.hint) == ("a photo of a {}", "distill: set vocabulary: {from: data}")
    assert translated(Message("a photo of a {{}}, 猫"), "zh") == "a photo of a {}, 猫"
    assert Message("{file} is a {{folder}}") == "{file} is a {folder}"


def test_messages_in_a_message_or_below_each_other_stay_messages() -> None:
    inner = DcclipError("{path} is damaged", "", path="a.tar")
    for value in (inner, inner.what):
        value_of_field = Message("pair {key}: {what}", key="猫", what=value).values["what"]
        assert isinstance(value_of_field, Message)
        assert (value_of_field, value_of_field.template) == ("a.tar is damaged", "{path} is damaged")
    both = joined("\n", [Message("{n} of 2", n=1), "{n} of 2"])
    assert both == "1 of 2\n{n} of 2"
    assert [getattr(part, "template", None) for part in both.values.values()] == ["{n} of 2", None]


def test_an_error_keeps_its_kind_and_its_templates_when_it_leaves_a_process() -> None:
    error = pickle.loads(pickle.dumps(AgainError("{path} is {what}", "{path}?", path="{x}", what=Message("a folder"))))
    assert type(error) is AgainError
    assert (error.what, error.hint) == ("{x} is a folder", "{x}?")
    assert error.what.template == "{path} is {what}"
    assert isinstance(error.what.values["what"], Message)


LOCALE = ("DCCLIP_LANG", "LC_ALL", "LC_MESSAGES", "LANG")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LC_MESSAGES": "zh_CN.UTF-8", "LANG": "en_GB.UTF-8"}, "zh"),
        ({"LC_ALL": "C", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"DCCLIP_LANG": "en", "LANG": "zh_CN.UTF-8"}, "en"),
    ],
)
def test_the_language_is_that_of_dcclip_lang_or_of_the_locale(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LOCALE:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert language() == expected


def test_a_message_is_translated_with_the_messages_in_it_and_with_no_other_text() -> None:
    inner = DcclipError("{} is a folder", "", "{stage}/file name too long")
    message = Message("{} has no section {}", inner, "none")
    assert message == "{stage}/file name too long is a folder has no section none"
    assert translated(message, "zh") == "{stage}/file name too long 是文件夹 里没有 none 这一节"
    assert translated(joined("\n", [message, "none"]), "zh").endswith("\nnone")


def test_commands_speak_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCCLIP_LANG", "zh")
    monkeypatch.setenv("LANGUAGE", "")  # which Chinese help sets
    done = dcclip("recipe", "show", "没有.yaml", expect=1)
    assert done.stderr.splitlines()[-2:] == [
        "错误：没有.yaml 不存在",
        "提示：请给出一个配方，如 recipes/quickstart.yaml",
    ]
    for arguments, parts in (  # in processes of their own: Typer looks up some words once, at its import
        (("recipe", "show", "--frsh"), ("用法：dcclip recipe show [OPTIONS]", "错误", "没有选项 --frsh")),
        (("distill", "--help"), ("用法：", "选项", "让学生学习教师的特征", "[必填]", "显示此帮助并退出。")),
    ):
        command = [sys.executable, "-m", "dcclip_cli", *arguments]
        run = subprocess.run(command, env=os.environ | {"PYTHONUTF8": "1"}, capture_output=True, encoding="utf-8")
        shown = run.stdout + run.stderr
        assert all(part in shown for part in parts)
        assert "…" not in shown and max(map(cell_len, shown.splitlines())) == 80
