"""Runs of a recipe's variants with several seeds: weights as each alone, one table, resumed like any run."""

import csv
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import dcclip_cli as dcclip_api
from dcclip_cli.core.run_dir import RunDir
from dcclip_cli.eval.compare import read_results
from dcclip_cli.recipe import sweep
from tests.cli.conftest import dcclip
from tests.train.jobs import need_libuv, refused, send


@pytest.fixture
def recipe(whole_recipe: dict[str, Any]) -> dict[str, Any]:
    variants = {"plain": {"align.optimizer": {"lr": 1e-3}}, "只有第二阶段": {"distill": None, "align.start": "scratch"}}
    return {name: value for name, value in whole_recipe.items() if name != "export"} | {"variants": variants}


def weights(run: str) -> bytes:
    return Path(run, "align/model/open_clip_model.safetensors").read_bytes()


def compiles(latex: str) -> None:
    """Every row of a LaTeX table has as many cells as it has columns, and every brace and group is closed."""
    begin, *rows = latex.splitlines()
    columns = begin.removeprefix(r"\begin{tabular}{").removesuffix("}")
    assert set(columns) == {"l", "r"} and rows[-1] == r"\end{tabular}"
    for row in (row for row in rows if row.endswith(r" \\")):
        assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1
    plain = re.sub(r"\\[{}]", "", latex)
    assert plain.count("{") == plain.count("}") and not re.search(r"(?<!\\)[%#_]", plain)


def test_each_run_has_the_weights_of_its_seed_alone_and_a_second_call_runs_nothing(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), "utf-8")
    done = dcclip("run", "recipe.yaml", "--seeds", "0", "1")
    again = dcclip("run", "recipe.yaml", "--seeds", "0 1")
    assert again.stdout.split("\n\n")[0] == done.stdout.split("\n\n")[0]
    assert "done in" in done.stderr and "done in" not in again.stderr
    assert "runs/一生/plain/seed-1" in dcclip("models").stdout
    assert "--model runs/一生/VARIANT/seed-N" in dcclip("eval", "recipe.yaml", expect=1).stderr
    assert dcclip("distill", "recipe.yaml", "--check", "--device", "cpu").stdout.endswith(" in runs/一生: distill\n")

    alone = {name: value for name, value in recipe.items() if name != "variants"}
    for train in (dcclip_api.distill, dcclip_api.align):
        train(alone, sets={"seed": 1, "align.optimizer.lr": 1e-3}, out="alone")
    assert weights("runs/一生/plain/seed-1") == weights("alone") != weights("runs/一生/plain/seed-0")

    rows, runs = (
        [
            record
            for record in csv.DictReader(text.splitlines())
            if record["variant"] == "只有第二阶段" and record["test set"] == "train zh"
        ]
        for text in (Path(f"runs/一生/{name}.csv").read_text("utf-8") for name in ("table", "runs"))
    )
    [row] = rows
    (first, second) = [float(run["value"]) for run in runs]
    assert float(row["mean"]) == (first + second) / 2
    assert float(row["standard deviation"]) == pytest.approx(abs(first - second) / 2**0.5)
    assert float(row["low"]) <= float(row["difference"]) <= float(row["high"])
    latex = Path("runs/一生/table.tex").read_text("utf-8")
    assert f"{float(row['mean']):.1%}"[:-1] + r" $\pm$ " in latex and latex.count(r"\midrule") == 3
    cells = [line.split(" & ") for line in latex.splitlines() if line.startswith(("plain & ", "只有第二阶段 & "))]
    models, pairs = latex.split("\n\n")
    for table in (models, pairs):
        compiles(table)
    compared = json.loads(dcclip("compare", "runs/一生", "--json").stdout)
    assert {(record["a"], record["b"]) for record in compared} == {("plain", "只有第二阶段")}
    zh = next(record for record in compared if record["language"] == "zh")
    assert [zh["difference"], zh["low"], zh["high"]] == [float(row[key]) for key in ("difference", "low", "high")]
    clear = sum(record["low"] > 0 or record["high"] < 0 for record in compared)
    students = sum(cell.startswith(r"\textbf") for cells_of_row in cells for cell in cells_of_row)
    assert students == 2 * clear  # bold: in the first table the better student, in the second the difference

    alone_of_seed = dcclip("compare", "runs/一生/plain/seed-0", "runs/一生/plain/seed-1@student", "--json").stdout
    assert json.loads(alone_of_seed)[0]["paired"]
    run = "runs/一生/plain/seed-0"
    references = [f"{run}@teacher", f"{run}@student", run, f"{run}/eval"]
    teacher, student, default, folder = (read_results(reference)[0].model for reference in references)
    assert teacher != student == default == folder
    assert "with two variants" in dcclip("compare", "runs/一生/plain/seed-0", expect=1).stderr
    assert Path("runs/一生/sweep.svg").read_text("utf-8").startswith("<?xml")
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_runs_at_a_time_in_their_own_processes_have_the_same_weights_and_twins_also_after_an_interruption(
    recipe: dict[str, Any], downloaded_folder: Path
) -> None:
    only = {name: value for name, value in recipe.items() if name != "variants"}
    only["eval"] = {**only["eval"], "task": "twins"}
    for section in ("teacher", "distill", "align"):  # conftest.py decides what `auto` means in this process only
        only[section] = {**only[section], "precision": "fp32"}
    with pytest.raises(KeyboardInterrupt):
        dcclip_api.sweep(only, [0, 1], out="by-1", progress=send("altclip on train", 1))
    assert Path("by-1/seed-0/align/model").exists() and not Path("by-1/seed-0/eval").exists()
    results = [dcclip_api.sweep(only, [0, 1], out=f"by-{number}", at_a_time=number) for number in (1, 2)]
    assert weights("by-1/seed-1") == weights("by-2/seed-1")
    assert [row.model for row in results[1].rows] == ["teacher", "student"]
    runs = [Path(f"by-{number}/runs.csv").read_text("utf-8") for number in (1, 2)]
    assert runs[0] == runs[1] and ",student,overlap@10,train zh,1," in runs[0]
    *_, student = dcclip_api.sweep(only, [0], out="by-1").rows
    assert student.intervals["train zh"][0] <= student.scores()["overlap@10", "train zh"][0]


def test_models_cost_what_runs_measured_once_and_the_same_where_only_weights_differ(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    alone = {name: value for name, value in recipe.items() if name not in ("teacher", "distill")}
    alone["align"] = {**alone["align"], "start": "scratch", "precision": "fp32"}
    alone["variants"] = {"plain": {}, "慢": {"align.optimizer": {"lr": 1e-4}}, "大图": {"student.image.size": 320}}
    shown = dcclip_api.sweep(alone, [0], out=tmp_path).rows
    assert shown[0].runs[0].pairs == 40
    files = [tmp_path / variant / "seed-0/summary.json" for variant in alone["variants"]]
    stored = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    plain, slow, large = (json.loads(content)["rows"][0]["image_ms"] for content, _ in stored.values())
    least = min(plain, slow)
    assert plain != slow and large > 2 * least  # 25 times the pixels

    costs = {row.variant: row.runs[0] for row in shown}
    assert {variant: cost.image_ms for variant, cost in costs.items()} == {"plain": least, "慢": least, "大图": large}
    assert len({cost.size_bytes for cost in costs.values()}) == 1
    assert all(100e6 < cost.memory_bytes < 2000e6 for cost in costs.values())

    assert dcclip_api.sweep(alone, [0], out=tmp_path).rows == shown
    assert stored == {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


_LOSS = """
import os
from dcclip_cli.train.losses.embeddings import EmbeddingLoss

class Failing(EmbeddingLoss):
    kind: str

    def __call__(self, *_):
        raise ValueError(f"one of {os.environ.get('WORLD_SIZE')} processes")
"""


def test_the_error_of_a_run_in_processes_of_its_own_is_raised_and_not_an_earlier_one(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_libuv()
    (tmp_path / "failing_loss.py").write_text(_LOSS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("DCCLIP_LANG", "zh")
    alone = {name: recipe[name] for name in ("name", "teacher", "student", "data", "distill")}
    alone["distill"] = {**alone["distill"], "losses": [{"kind": "failing_loss:Failing"}]}
    for name, text in (("log.txt", "error: of an earlier day\n"), ("error.json", "{}")):
        (tmp_path / "run/seed-0").mkdir(parents=True, exist_ok=True)
        (tmp_path / "run/seed-0" / name).write_text(text)
    with refused("seed-0: failing_loss:Failing.ValueError: one of 2 processes", "log.txt"):
        dcclip_api.sweep(alone, [0], out=tmp_path / "run", at_a_time=2, processes=2)


def test_a_fresh_sweep_removes_nothing_while_one_of_its_runs_is_in_use(recipe: dict[str, Any], tmp_path: Path) -> None:
    state = tmp_path / "plain" / "seed-0" / "align" / "state"
    state.mkdir(parents=True)
    with RunDir(tmp_path / "plain" / "seed-1").claimed(), refused("seed-1 is in use by another command", "wait until"):
        dcclip_api.sweep(recipe, [0, 1], out=tmp_path, fresh=True)
    assert state.exists()


@pytest.mark.parametrize(
    ("variants", "what"),
    [
        ("  fast:\n    align.step: 3", "recipe.yaml:3: align.step: unknown key, did you mean 'steps'"),
        ("  table.csv: {}", "variants: 'table.csv' is the name of a file that the command writes"),
        ("  a: {}\n  A: {}", "variants: 'a' and 'A' differ only in upper and lower case"),
    ],
)
def test_a_mistake_in_variants_is_named_with_its_line(
    recipe: dict[str, Any], tmp_path: Path, variants: str, what: str
) -> None:
    file = tmp_path / "recipe.yaml"
    text = yaml.safe_dump({name: value for name, value in recipe.items() if name != "variants"}, allow_unicode=True)
    file.write_text(f"variants:\n{variants}\n{text}", "utf-8")
    with refused(what, ""):
        dcclip_api.sweep(file, [0])


def test_a_run_that_hangs_is_killed_and_others_end_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_STOP_S", 1.0)
    hanging = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    ending = hanging.replace("signal.SIG_IGN", "lambda *_: exit(3)")
    commands = [[sys.executable, "-c", code] for code in (hanging, ending)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in commands]
    for process in processes:
        assert process.stdout
        process.stdout.readline()
    sweep._stop(processes)
    assert [process.returncode for process in processes] == [-signal.SIGKILL, 3]
