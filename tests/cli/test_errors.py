import errno

import pytest
import typer
from typer.testing import CliRunner

from dcclip_cli.cli.console import CommandGroup
from dcclip_cli.errors import DcclipError


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


def test_a_mistake_is_one_error_line_each_and_one_hint() -> None:
    code, said = ending(DcclipError("r.yaml:1: name: 缺少\nr.yaml:2: sed: unknown key", "mend them"))
    assert code == 1
    assert said == "error: r.yaml:1: name: 缺少\nerror: r.yaml:2: sed: unknown key\nhint:  mend them\n"


def test_control_characters_cannot_reach_the_terminal() -> None:
    assert ending(DcclipError("\033[2J猫\a.png is broken", "x"))[1].startswith("error: \\x1b[2J猫\\x07.png is broken\n")


def test_a_missing_extra_says_how_to_install_it() -> None:
    code, said = ending(ModuleNotFoundError("No module named 'torch'", name="torch.nn"))
    assert (code, said.splitlines()[1]) == (1, "hint:  pip install 'dcclip[train]'")
    assert ending(ModuleNotFoundError(name="onnxscript"))[1].endswith("pip install 'dcclip[export]'\n")


def test_a_full_disk_is_an_error_that_the_user_can_fix() -> None:
    code, said = ending(OSError(errno.ENOSPC, "No space left on device", "runs/猫"))
    assert (code, said.splitlines()[0]) == (1, "error: runs/猫: No space left on device")


def test_interrupting_exits_with_130() -> None:
    assert ending(KeyboardInterrupt())[0] == 130


@pytest.mark.parametrize("error", [ValueError("ours"), ModuleNotFoundError(name="dcclip_cli.nope"), OSError(5, "io")])
def test_our_own_mistakes_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        ending(error)
