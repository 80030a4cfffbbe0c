import sys
import time

import pytest
import typer
from typer.testing import CliRunner

from dcclip_cli.cli import console
from dcclip_cli.cli.console import CommandGroup
from dcclip_cli.core import progress
from dcclip_cli.core.progress import Silent


class Clock:
    """A clock that moves only when told."""

    now = 0.0


def test_plain_lines_are_few_and_tell_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    with progress.Lines().task("蒸馏 distill", total=200, done=100) as task:
        for _ in range(100):
            clock.now += 0.5
            task.advance(loss=0.25)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "蒸馏 distill 104/200  2.0/s  0:48 left  loss 0.25",
        "蒸馏 distill 134/200  2.0/s  0:33 left  loss 0.25",
        "蒸馏 distill 164/200  2.0/s  0:18 left  loss 0.25",
        "蒸馏 distill 194/200  2.0/s  0:03 left  loss 0.25",
        "蒸馏 distill 200/200  2.0/s  took 0:50  loss 0.25",
    ]


def test_quiet_and_all_but_the_first_process_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(console.talk(quiet=True), Silent)
    assert isinstance(console.talk(), progress.Lines)
    monkeypatch.setenv("RANK", "1")
    assert isinstance(console.talk(), Silent)


def test_tables_and_json_go_to_stdout_with_chinese_readable(capsys: pytest.CaptureFixture[str]) -> None:
    title = "结果 results, of a table that is narrower than its title"
    console.show_table(title, ("model", "top-1"), [("学生 student", "43.1 %")])
    console.show_json({"label": "猫"})
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out.splitlines()[0] == title
    assert [line.split() for line in captured.out.splitlines() if "学生" in line] == [["学生", "student", "43.1", "%"]]
    assert captured.out.endswith('{\n  "label": "猫"\n}\n')
    assert sys.stdout.isatty() is False


def ending(error: BaseException) -> tuple[int, str]:
    """The exit code and stderr of a command that raises `error`."""
    app = typer.Typer(cls=CommandGroup)

    @app.callback()
    def main() -> None: ...

    @app.command()
    def go() -> None:
        raise error

    result = CliRunner().invoke(app, ["go"])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr


def test_a_missing_extra_says_how_to_install_it() -> None:
    code, printed = ending(ModuleNotFoundError("No module named 'torch'", name="torch.nn"))
    assert (code, printed.splitlines()[1]) == (1, "hint:  pip install 'dcclip[train]'")
    assert ending(ModuleNotFoundError(name="onnxscript"))[1].endswith("pip install 'dcclip[export]'\n")
