"""The example of a new loss in docs/how-to/own-loss.md works as shown, outside of the package."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

import dcclip_cli as dcclip
from dcclip_cli.errors import DcclipError
from dcclip_cli.train.losses import DistillLoss
from tests.test_docs import ROOT, blocks
from tests.train.losses.outputs import NONE, outputs

PAGE = ROOT / "docs/how-to/own-loss.md"
KIND = "relations:RelationLoss"


@pytest.fixture(autouse=True)
def relations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the page, from which Python can import."""
    [file] = [block for block in blocks(PAGE, "python") if block.startswith('"""Losses on the relations')]
    (tmp_path / "relations.py").write_text(file, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "relations", raising=False)
    return tmp_path / "relations.py"


def test_a_file_outside_of_the_package_has_a_loss() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(DistillLoss)
    loss = adapter.validate_python({"kind": KIND, "weight": 10})
    # two images, a right angle apart in one model and equal in the other: two of four cosines differ by 1
    one, other = outputs(((1.0, 0.0), (0.0, 3.0))), outputs(((1.0, 0.0), (2.0, 0.0)))
    assert {name: float(term) for name, term in loss.terms(one, [other], NONE).items()} == {"RelationLoss": 0.5}
    assert adapter.dump_python(loss) == {"kind": KIND, "weight": 10.0, "teacher": 0, "power": 2.0}


def test_a_recipe_with_it_trains_and_its_own_mistakes_are_errors_of_one_line(
    whole_recipe: dict[str, Any], relations: Path, tmp_path: Path
) -> None:
    recipe = {name: value for name, value in whole_recipe.items() if name not in ("align", "eval", "export")}
    recipe["distill"] = recipe["distill"] | {"losses": [{"kind": KIND, "weight": 10}]}
    said: list[str] = []
    result = dcclip.distill(recipe, out=tmp_path / "run", progress=said.append)
    assert f"the recipe's own parts: code from {relations}" in said
    last = json.loads((tmp_path / "run/distill/metrics.jsonl").read_text("utf-8").splitlines()[-1])
    assert last["step"] == 3 and last["RelationLoss"] == pytest.approx(result.metrics["loss"], rel=1e-4)
    assert dcclip.distill(recipe, out=tmp_path / "run").already_finished

    relations.write_text(relations.read_text("utf-8").replace("return difference", "return diference"), "utf-8")
    del sys.modules["relations"]
    with pytest.raises(
        DcclipError, match=r"^relations:RelationLoss: NameError: name 'diference' .* \(relations.py:28\)$"
    ):
        dcclip.distill(recipe, out=tmp_path / "other")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("nowhere:Loss", "nowhere:Loss cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("relations:Relation", "AttributeError: module 'relations' has no attribute 'Relation'"),
        ("relations:Mapping", "relations:Mapping is no subclass of dcclip_cli.train.losses.base.Loss"),
        ("dcclip_cli.train.losses:EmbeddingLoss", "must have the field `kind: str`"),
    ],
)
def test_a_name_that_is_no_loss_is_an_error_with_its_key(kind: str, said: str, whole_recipe: dict[str, Any]) -> None:
    with pytest.raises(DcclipError) as caught:
        dcclip.distill(whole_recipe, losses=[{"kind": kind}])
    assert "distill.losses.0: " in caught.value.what and said in caught.value.what and "\n" not in caught.value.what
