import os
import subprocess
import sys

import pytest
from rich.cells import cell_len

from dcclip_cli.errors import DcclipError, Message, joined
from dcclip_cli.language import language, translated
from tests.cli.conftest import dcclip

LOCALE = ("DCCLIP_LANG", "LC_ALL", "LC_MESSAGES", "LANG")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LC_MESSAGES": "zh_CN.UTF-8", "LANG": "en_GB.UTF-8"}, "zh"),
        ({"LC_ALL": "C", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"DCCLIP_LANG": "zh", "LC_ALL": "C"}, "zh"),
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


def test_a_text_that_is_no_message_or_unknown_stays_as_it_is() -> None:
    assert [translated(text, "zh") for text in ("none", "", Message("no {such} message"))] == [
        "none",
        "",
        "no {such} message",
    ]


def test_commands_speak_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCCLIP_LANG", "zh")
    monkeypatch.setenv("LANGUAGE", "")  # which Chinese help sets
    done = dcclip("recipe", "show", "没有.yaml", expect=1)
    assert done.stderr.splitlines()[-2:] == [
        "错误：没有.yaml 不存在",
        "提示：请给出一个配方，如 recipes/quickstart.yaml",
    ]
    said = dcclip("recipe", "show", "--frsh", expect=2).stderr
    assert all(part in said for part in ("用法：dcclip recipe show [OPTIONS]", "错误", "没有选项 --frsh"))
    command = [sys.executable, "-m", "dcclip_cli", "distill", "--help"]  # Typer looks up some words once, at its import
    shown = subprocess.run(command, env=os.environ | {"PYTHONUTF8": "1"}, capture_output=True, encoding="utf-8").stdout
    assert all(part in shown for part in ("用法：", "选项", "让学生学习教师的特征", "[必填]", "显示此帮助并退出。"))
    assert "…" not in shown and max(map(cell_len, shown.splitlines())) == 80
