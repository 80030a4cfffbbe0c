import subprocess
import sys

import pytest

from dcclip_cli.errors import DcclipError, Message, joined, language, translated

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


@pytest.mark.parametrize("environment", [{"LANG": "zh_CN.UTF-8"}, {"DCCLIP_LANG": "zh", "LC_ALL": "C"}])
def test_commands_speak_chinese(environment: dict[str, str]) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dcclip_cli", *arguments]
        return subprocess.run(command, env={"PYTHONUTF8": "1", **environment}, capture_output=True, encoding="utf-8")

    done = run("recipe", "show", "没有.yaml")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == [
        "错误：没有.yaml 不存在",
        "提示：请给出一个配方，如 recipes/quickstart.yaml",
    ]
    done = run("recipe", "show", "--frsh")
    assert done.returncode == 2
    assert all(part in done.stderr for part in ("用法：dcclip recipe show [OPTIONS]", "错误", "没有选项 --frsh"))
    done = run("distill", "--help")
    assert all(
        part in done.stdout for part in ("用法：", "选项", "让学生学习教师的特征", "[必填]", "显示此帮助并退出。")
    )
    assert "…" not in done.stdout
    assert max(map(_width, done.stdout.splitlines())) == 80


def _width(line: str) -> int:
    from rich.cells import cell_len

    return cell_len(line)
