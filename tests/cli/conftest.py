"""What tests of commands share: a run of `dcclip` and a bundle of the tiny student."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dcclip_cli.cli.app import app
from dcclip_cli.exporters.export import ExportOptions, export
from dcclip_cli.model.reference import resolve


def dcclip(*arguments: object, expect: int = 0, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    assert result.exit_code == expect, f"{result.output}\n{result.exception!r}"
    return result


@pytest.fixture(scope="session")
def bundle(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    return export(options=ExportOptions(), model=resolve(str(model_folder)), out=out).folder
