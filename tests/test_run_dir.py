"""Which stages of a run are finished."""

from pathlib import Path

import pytest

from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.result import save_results
from dcclip_cli.run_dir import finished


def test_an_evaluation_is_finished_when_its_summary_is_whole(tmp_path: Path) -> None:
    assert not finished(tmp_path, "eval")
    save_results([], tmp_path / "eval")
    assert finished(tmp_path, "eval")
    (tmp_path / "eval/summary.json").write_text('[{"数据": ')
    with pytest.raises(DcclipError, match=r"eval/summary\.json is not JSON"):
        finished(tmp_path, "eval")
