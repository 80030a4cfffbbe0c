"""The Python API does what the commands do: the same files, the same checks, the same errors as exceptions."""

import hashlib
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import dcclip_cli as dcclip
from dcclip_cli import api
from dcclip_cli.core.progress import Lines, Silent, progress_for
from dcclip_cli.recipe.load import load
from tests.cli.conftest import dcclip as command
from tests.pages import ROOT, blocks


@pytest.fixture(scope="module")
def recipe(whole_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("api") / "recipe.yaml"
    file.write_text(yaml.safe_dump(whole_recipe, allow_unicode=True), "utf-8")
    return file


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def done(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[api.RunResult]:
    yield dcclip.run(recipe, out=tmp_path_factory.mktemp("run") / "接口", device="cpu")


def weights(model: Path) -> str:
    return hashlib.sha256((model / "open_clip_model.safetensors").read_bytes()).hexdigest()


def test_importing_the_package_loads_nothing_else() -> None:
    heavy = "{'torch', 'numpy', 'pydantic', 'typer', 'dcclip_cli.api'}"
    code = f"import sys, dcclip_cli; assert not {heavy} & set(sys.modules); assert 'distill' in dir(dcclip_cli)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", [name for name in dcclip.__all__ if name[0].islower()])
def test_every_function_documents_what_it_returns(name: str) -> None:
    function = getattr(dcclip, name)
    assert function.__doc__ and inspect.signature(function).return_annotation != inspect.Signature.empty


def test_both_write_the_same_files_and_bit_identical_weights(recipe: Path, tmp_path: Path) -> None:
    sets = "--set distill.steps=2 --set distill.optimizer.lr=2e-3 --set student.image.size=32 --set align.steps=1"
    for stage in ("distill", "align"):
        command(stage, recipe, *sets.split(), "--out", "by-command", "-q")
    more_values = {"student.image.size": 32}
    first = dcclip.distill(
        recipe, steps=2, optimizer={"lr": 2e-3}, sets={**more_values, "align": {"steps": 1}}, out="by-python"
    )
    second = dcclip.align(
        recipe, steps=1, sets={**more_values, "distill.steps": 2, "distill.optimizer.lr": 2e-3}, out=Path("by-python")
    )
    names = [
        sorted(
            re.sub(r"events.out.*|(?<=tensorboard/)[0-9.]+", "", str(file.relative_to(run))) for file in run.rglob("*")
        )
        for run in sorted(tmp_path.glob("by-*"))
    ]
    assert names[0] == names[1]
    for stage, result in (("distill", first), ("align", second)):
        assert result.model == Path("by-python") / stage / "model" and not result.already_finished
        assert weights(result.model) == weights(Path("by-command") / stage / "model")
        assert result.seconds > 0 and result.metrics["loss"] > 0
    assert Path("by-python/recipe.yaml").read_bytes() == Path("by-command/recipe.yaml").read_bytes()
    resolved = [yaml.safe_load(Path(run, "resolved.yaml").read_text("utf-8")) for run in ("by-command", "by-python")]
    assert resolved[0] == resolved[1]


def test_a_file_a_mapping_and_a_recipe_are_the_same(recipe: Path) -> None:
    values = yaml.safe_load(recipe.read_text("utf-8"))
    assert load(values).recipe == load(load(recipe).recipe).recipe == load(recipe).recipe


def test_relative_paths_in_python_are_seen_from_the_current_directory(tmp_path: Path) -> None:
    loaded = load({"name": "x", "data": {"train": "./a.parquet"}}, values={"data.validation": Path("b.parquet")})
    data = loaded.recipe.data
    assert data and [data.train, data.validation] == [str(tmp_path / name) for name in ("a.parquet", "b.parquet")]


def test_a_finished_stage_is_returned_as_it_is_unless_fresh(recipe: Path, done: api.RunResult) -> None:
    again = dcclip.distill(recipe, out=done.folder)
    assert again.already_finished and again.model == done.folder / "distill" / "model"
    with pytest.raises(dcclip.DcclipError, match=r"distill.steps was 3 and is now 4"):
        dcclip.distill(recipe, out=done.folder, steps=4)
    with pytest.raises(dcclip.DcclipError, match="contains no checkpoint to resume from"):
        dcclip.distill(recipe, out="new", resume=True)
    shutil.copytree(done.folder, "new")
    assert not dcclip.distill(recipe, out="new", fresh=True).already_finished


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"step": 3}, "arguments: distill.step: unknown key, did you mean 'steps'?"),
        ({"proces": 2}, "distill: unknown argument proces, did you mean 'processes'?"),
        (
            {"optimizer": {"kind": "adam"}},
            "arguments: distill.optimizer.kind: input should be 'adamw', 'muon' or 'sgd' (got 'adam')",
        ),
        ({"sets": {"studnt.preset": "S"}}, "arguments: studnt: unknown key, did you mean 'student'?"),
    ],
)
def test_keys_are_checked_like_those_of_the_recipe(recipe: Path, arguments: dict[str, Any], what: str) -> None:
    with pytest.raises(dcclip.DcclipError) as caught:
        dcclip.distill(recipe, **arguments)
    assert caught.value.what == what
    if "unknown argument" in what:
        assert caught.value.hint == "list all arguments with: help(dcclip.distill)"
        return
    assert caught.value.hint.startswith("list all keys" if "unknown key" in what else "list the allowed values")


def test_mistakes_are_the_exceptions_that_commands_print(tmp_path: Path) -> None:
    Path("recipe.yaml").write_text("name: x\ndata: {train: ./none.parquet}\nalign: {steps: 1, start: scratch}\n")
    for call, line in (
        (lambda: dcclip.align("nowhere.yaml"), "align nowhere.yaml"),
        (lambda: dcclip.align("recipe.yaml"), "align recipe.yaml"),
        (lambda: dcclip.distill("recipe.yaml"), "distill recipe.yaml"),
        (lambda: dcclip.evaluate(), "eval"),
        (lambda: dcclip.export(model="nowhere", out="bundle"), "export --model nowhere --out bundle"),
        (lambda: dcclip.export("recipe.yaml", precision="fp16"), "export recipe.yaml --precision fp16"),
        (lambda: dcclip.compare("nowhere", "nowhere"), "compare nowhere nowhere"),
    ):
        with pytest.raises(dcclip.DcclipError) as caught:
            call()
        printed = command(*line.split(), expect=1).stderr.splitlines()
        assert [f"error: {problem}" for problem in caught.value.what.splitlines()] == printed[:-1]
        assert printed[-1] == f"hint:  {caught.value.hint}"


def test_a_run_returns_each_stage_and_a_summary_of_its_models(done: api.RunResult) -> None:
    assert list(done.stages) == ["distill", "align", "eval", "export"]
    assert [model.name for model in done.models] == ["teacher", "student", "bundle"]
    assert set(done.models[0].scores["top1"]) == {"train en", "train zh"}
    assert all(min(model.parameters, model.size_bytes, model.image_ms) > 0 for model in done.models)


def test_collect_keeps_what_the_command_keeps() -> None:
    sample = Path(__file__).parent.parent / "recipes" / "collect-sample.yaml"
    result = dcclip.collect(sample, out="by-python", workers=1)
    command("collect", sample, "--out", "by-command", "--workers", "1", "-q")
    assert (result.pairs.read, result.pairs.kept, result.folder) == (15, 8, Path("by-python/collect"))
    tars = [next(Path(run).rglob("*.tar")).read_bytes() for run in ("by-python", "by-command")]
    assert tars[0] == tars[1]
    assert dcclip.collect(sample, out="by-python", limit=2, workers=1).folder.name == "collect-limit"


def test_progress_is_silent_lines_or_what_is_given(
    recipe: Path, done: api.RunResult, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dcclip.align(recipe, out=done.folder)
    assert capsys.readouterr() == ("", "")
    lines: list[str] = []
    dcclip.align(recipe, out=done.folder, progress=lines.append)
    assert lines == [f"align: already done: {done.folder}/align/model (use --fresh to redo)"]
    silent = Silent()
    assert progress_for(silent) is silent and isinstance(progress_for(True), Lines)
    monkeypatch.setenv("RANK", "1")
    assert isinstance(progress_for(True), Silent)


@pytest.mark.slow  # it trains in several cells
def test_the_cells_of_the_page_run_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("recipes", "docs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    scope: dict[str, Any] = {}
    for cell in blocks(ROOT / "docs/reference/python-api.md", "python"):
        exec(compile(cell, "python-api.md", "exec"), scope)
    printed = capsys.readouterr().out
    assert printed.startswith("('猫', 0.")
    assert "evaluate: unknown argument models, did you mean 'model'?" in printed
    assert [step for step, _ in scope["curve"]] == [1, 2, 3, 4]
    assert scope["result"].hits[0].image.name == "cat.jpg"
    assert [(row.variant, row.model) for row in scope["swept"].rows] == [
        *(("small", "teacher"), ("small", "student"), ("faster", "student"))
    ]


def test_new_index_and_datasets_return_what_the_commands_print(tmp_path: Path, pairs_file: Path) -> None:
    new_result = dcclip.new("我的.yaml", pairs_file, teacher=str(ROOT / "recipes/quickstart/teacher"))
    assert new_result.file == Path("我的.yaml") and (new_result.problem is None) == bool(new_result.estimates)
    with pytest.raises(dcclip.DcclipError, match=r"我的.yaml exists"):
        dcclip.new("我的.yaml", pairs_file)
    copied = shutil.copy(pairs_file, tmp_path)
    assert dcclip.index(copied) == api.IndexResult(files=1, images=40, pairs=40)
    assert "mnist" in [entry.name for entry in dcclip.datasets()] and dcclip.datasets(tmp_path) == []
