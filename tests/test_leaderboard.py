"""The leaderboard accepts results that are complete and follow the protocol, and says what is wrong with others."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from docs.results import standings

QUICKSTART = standings.FOLDER / "quickstart-int8"


def test_every_folder_is_complete_and_the_schema_is_that_of_the_code() -> None:
    folders = (path for path in standings.FOLDER.iterdir() if path.is_dir())
    assert [reason for folder in folders for reason in standings.faults(folder)] == []
    assert standings.SCHEMA.read_text("utf-8") == standings.schema(), "run: python -m docs.results.render"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows[0].update(value=0.9, metrics=rows[0]["metrics"] | {"top1": 0.9}), "labels and ranks give"),
        (lambda rows: rows[0].update(n=9_999), "n is 9999; the protocol has 10000"),
        (lambda rows: rows[0].update(templates_sha256="0"), "templates_sha256 is 0; the protocol has"),
        (lambda rows: rows[0].update(details={}), "no label and rank of every image"),
        (lambda rows: rows.pop(), "mnist is measured in zh; expected en and zh"),
        (lambda rows: rows[0].update(model_fingerprint="0"), "of different weights"),
        (lambda rows: rows[0].update(dataset="照片"), "no zero-shot result of a data set"),
        (lambda rows: rows[0].update(value="high"), "results.json: "),
    ],
)
def test_a_result_that_breaks_the_protocol_is_refused(
    change: Callable[[list[dict[str, Any]]], object], reason: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(QUICKSTART, tmp_path / "模型"))
    rows = json.loads((folder / "results.json").read_bytes())
    change(rows)
    (folder / "results.json").write_text(json.dumps(rows), "utf-8")
    assert any(fault.startswith("模型") and reason in fault for fault in standings.faults(folder))
