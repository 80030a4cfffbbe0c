"""What tests of commands share: a run of `dcclip`."""

from typer.testing import CliRunner, Result

from dcclip_cli.cli.app import app


def dcclip(*arguments: object, expect: int = 0, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    assert result.exit_code == expect, f"{result.output}\n{result.exception!r}"
    return result
