"""The example of a new loss in docs/how-to/own-loss.md works as shown."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from dcclip_cli.train import losses
from tests.test_docs import ROOT, blocks
from tests.train.losses.outputs import NONE, outputs

PAGE = ROOT / "docs/how-to/own-loss.md"


def test_a_file_and_a_name_in_the_union_add_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [file] = [block for block in blocks(PAGE, "python") if block.startswith('"""Losses on the relations')]
    [union] = [block for block in blocks(PAGE, "python") if block.startswith("DistillLoss = Annotated")]
    (tmp_path / "relations.py").write_text(file, "utf-8")
    spec = importlib.util.spec_from_file_location("dcclip_cli.train.losses.relations", tmp_path / "relations.py")
    assert spec is not None and spec.loader is not None
    relations: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, relations)
    spec.loader.exec_module(relations)
    scope = {**vars(losses), "RelationLoss": relations.RelationLoss}
    exec(compile(union, PAGE, "exec"), scope)
    adapter: TypeAdapter[Any] = TypeAdapter(scope["DistillLoss"])
    loss = adapter.validate_python({"kind": "relation", "weight": 10})
    # two images, a right angle apart in one model and equal in the other: two of four cosines differ by 1
    one, other = outputs(((1.0, 0.0), (0.0, 3.0))), outputs(((1.0, 0.0), (2.0, 0.0)))
    assert {name: float(term) for name, term in loss.terms(one, [other], NONE).items()} == {"relation": 0.5}
