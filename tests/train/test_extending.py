"""The example of a new loss in docs/how-to/own-loss.md works as shown, outside of the package."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

import dcclip_cli as dcclip
from dcclip_cli.core import extensions
from dcclip_cli.core.checksums import write_record
from dcclip_cli.core.errors import DcclipError
from dcclip_cli.train.losses import DistillLoss
from tests.cli.conftest import dcclip as dcclip_command
from tests.pages import ROOT, blocks
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
    first = outputs(((1.0, 0.0), (0.0, 3.0)))
    second = outputs(((1.0, 0.0), (2.0, 0.0)))
    assert {name: float(term) for name, term in loss.terms(first, [second], NONE).items()} == {"RelationLoss": 0.5}
    assert adapter.dump_python(loss) == {"kind": KIND, "weight": 10.0, "teacher": 0, "power": 2.0}


def test_a_recipe_with_it_trains_and_its_own_mistakes_are_errors_of_one_line(
    whole_recipe: dict[str, Any], relations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extensions, "_announce", extensions._announcements.append)  # as in Python
    recipe = {name: value for name, value in whole_recipe.items() if name not in ("align", "eval", "export")}
    recipe["distill"] = recipe["distill"] | {"losses": [{"kind": KIND, "weight": 10}]}
    lines: list[str] = []
    result = dcclip.distill(recipe, out=tmp_path / "run", progress=lines.append)
    assert f"the recipe uses your own code from {relations}" in lines
    last = json.loads((tmp_path / "run/distill/metrics.jsonl").read_text("utf-8").splitlines()[-1])
    assert last["step"] == 3 and last["RelationLoss"] == pytest.approx(result.metrics["loss"], rel=1e-4)
    assert dcclip.distill(recipe, out=tmp_path / "run").already_finished

    source = relations.read_text("utf-8").replace("return difference", "return diference")
    relations.write_text(source, "utf-8")
    line = source[: source.index("return diference")].count("\n") + 1
    del sys.modules["relations"]
    with pytest.raises(
        DcclipError, match=rf"^relations:RelationLoss: NameError: name 'diference' .* \(relations.py:{line}\)$"
    ):
        dcclip.distill(recipe, out=tmp_path / "other")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("nowhere:Loss", "nowhere:Loss cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("relations:Relation", "AttributeError: module 'relations' has no attribute 'Relation'"),
        ("relations:Mapping", "relations:Mapping is not a subclass of dcclip_cli.train.losses.base.Loss"),
        ("dcclip_cli.train.losses.embeddings:EmbeddingLoss", "must have the field `kind: str`"),
        ("relations:Unfinished", "relations:Unfinished lacks the method __call__"),
        ("relations:Broken", "relations:Broken: KeyError: 'power' (relations.py:"),
        ("unreadable:Loss", "unreadable:Loss cannot be imported: OSError: 无 (unreadable.py:1)"),
        ("ending:Loss", "ending:Loss cannot be imported: SystemExit: 0 (ending.py:1)"),
        ("\ud800:损失", "'\\ud800:\\u635f\\u5931' does not have the form MODULE:CLASS"),
    ],
)
def test_a_name_that_is_no_loss_is_an_error_with_its_key(
    kind: str, said: str, whole_recipe: dict[str, Any], relations: Path
) -> None:
    with relations.open("a", encoding="utf-8") as file:
        file.write("\n\nclass Unfinished(TeacherLoss):\n    kind: str\n")
        file.write("\n\nclass Broken(RelationLoss):\n    def model_post_init(self, _):\n        {}['power']\n")
    relations.with_name("unreadable.py").write_text("raise OSError('无')", "utf-8")
    relations.with_name("ending.py").write_text("raise SystemExit(0)")
    with pytest.raises(DcclipError) as caught:
        dcclip.distill(whole_recipe, losses=[{"kind": kind}])
    assert "distill.losses.0: " in caught.value.what and said in caught.value.what and "\n" not in caught.value.what


def test_a_strangers_code_is_named_before_it_runs_and_does_not_run_to_be_shown_or_compared(
    whole_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("strange.py").write_text("open('ran', 'w')\nraise OSError('too late')")
    recipe = {name: whole_recipe[name] for name in ("name", "teacher", "student", "data", "distill")}
    theirs = recipe | {"distill": recipe["distill"] | {"losses": [{"kind": "strange:Loss", "power": 3}]}}
    for file, content in (("mine.yaml", recipe), ("theirs.yaml", theirs), ("run/resolved.yaml", theirs)):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")
    Path("run/distill/model").mkdir(parents=True)
    write_record(Path("run/distill/model/dcclip.json"), {})
    assert (
        "- kind: strange:Loss\n    weight: 1.0\n    power: 3\n"
        in dcclip_command("recipe", "show", "theirs.yaml").stdout
    )
    differs = dcclip_command("distill", "mine.yaml", "--check", "--out", "run", expect=1).stderr
    assert "was created with a different recipe" in differs and not Path("ran").exists()
    named, error, _ = dcclip_command("distill", "theirs.yaml", "--check", expect=1).stderr.splitlines()
    assert named == f"the recipe uses your own code from {tmp_path}/strange.py"
    assert "strange:Loss cannot be imported: OSError: too late" in error and Path("ran").exists()
