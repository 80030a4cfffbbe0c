"""`--resume` asks for a saved state; without it a stage goes on if there is one."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dcclip_cli.cli.app import app

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"


@pytest.mark.parametrize("stage", ["distill", "align"])
def test_resume_without_a_saved_state_is_refused_and_nothing_is_made(stage: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [stage, str(RECIPE), "--out", str(tmp_path / "run"), "--resume"])
    assert result.exit_code == 1
    assert f"{stage}/state contains no saved state to resume" in result.output
    assert "leave --resume out" in result.output
    assert not (tmp_path / "run").exists()
