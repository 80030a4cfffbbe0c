"""Commands as they are typed: help, usage, collect, index."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.shards import Columns
from tests.cli.conftest import dcclip
from tests.data.test_dataset import CAT, DOG, write_tar

RECIPES = Path(__file__).parent.parent.parent / "recipes"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


COMMANDS = "new run collect index distill align eval compare export trim predict search embed demo models datasets"
COMMANDS += " doctor recipe"


@pytest.mark.parametrize(
    ("language", "start"), [("zh", "'--format' 的值"), ("en", "Invalid value for '--format': 'foo'")]
)
def test_a_wrong_choice_is_named_without_the_parsers_words(
    language: str, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCCLIP_LANG", language)
    message = " ".join(dcclip("export", "starter", "--format", "foo", expect=2).output.split())
    assert start in message and "Value error" not in message and "onnx" in message


def test_datasets_lists_all_or_the_named_one() -> None:
    rows = [row.split()[0] for row in dcclip("datasets").stdout.splitlines() if re.search(r" \d", row)]
    assert len(rows) > 20
    lines = dcclip("datasets", "imagenet-cn").stdout.splitlines()
    assert [row.split()[:2] for row in lines if "50,000" in row] == [["imagenet,", "imagenet-cn"]]
    assert not any("10,000" in row for row in lines)
    assert "did you mean imagenet?" in dcclip("datasets", "imagnet", expect=1).output
    assert "--classes-yaml needs NAME" in dcclip("datasets", "--classes-yaml", expect=2).output


@pytest.mark.parametrize("command", ["", *COMMANDS.split()])
def test_every_command_explains_itself(command: str) -> None:
    assert "Usage:" in dcclip(*command.split(), "--help").stdout


def test_no_line_of_help_ends_within_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert "change no file in the folders. Photographs" in dcclip("mcp", "--help").stdout


def test_the_schema_is_json_with_the_sections_in_it() -> None:
    schema = json.loads(dcclip("recipe", "schema").stdout)
    assert {"name", "teacher", "student", "data", "collect", "distill", "align", "eval", "export", "variants"} == (
        set(schema["properties"]) - {"format", "seed", "track"}
    )


def test_check_prints_what_would_be_read_and_what_is_ready_and_does_nothing(tmp_path: Path) -> None:
    result = dcclip("collect", RECIPES / "collect-sample.yaml", "--check", "--set", "collect.shard_size=3")
    assert result.stdout.splitlines()[-3:] == [
        "ready to run in runs/collect-sample: collect",
        "pairs.tsv (table): about 15 pairs, 5 slices",
        "collect would read about 15 pairs in 5 slices",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("engine", "needs"), [("slurm", "collect.cluster.slurm.partition=NAME"), ("ray", "the package ray")]
)
def test_check_refuses_an_engine_that_cannot_run_here(tmp_path: Path, engine: str, needs: str) -> None:
    """No environment for tests has Ray."""
    recipe = RECIPES / "collect-sample.yaml"
    for check in ([], ["--check"]):
        refused = dcclip("collect", recipe, "--engine", engine, "--out", tmp_path / "out", *check, expect=1)
        assert needs in refused.stderr and "ready" not in refused.stdout


def test_collect_with_a_limit_tries_a_recipe_in_a_folder_of_its_own_and_opens_its_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("dcclip_cli.cli.stages.launch", opened.append)
    for has_screen in (False, True):
        monkeypatch.setattr("dcclip_cli.cli.console.has_screen", lambda has_screen=has_screen: has_screen)
        result = dcclip("collect", RECIPES / "collect-sample.yaml", "--limit", "4", "--workers", "1")
        assert result.stdout.splitlines()[-1] == "runs/collect-sample/collect-limit/report.html"
        assert re.search(r"^read +4 ", result.stdout, re.M) and re.search(r"^kept +\d ", result.stdout, re.M)
        assert Path("runs/collect-sample/collect-limit/000000.tar").is_file()
        assert not Path("runs/collect-sample/collect").exists()
        assert opened == ["runs/collect-sample/collect-limit/report.html"] * has_screen


WRONG = ["nope", "predict", "predict a.png --labels 猫 --json --csv", "eval --limit 0 --dataset x", "eval --check"]
WRONG += ["export", "export --out", "embed", "embed a.png --text x", "embed a.png --out x.csv", "search 猫"]


@pytest.mark.parametrize("line", WRONG)
def test_wrong_usage_exits_with_2_and_names_the_commands_help(line: str) -> None:
    command = "" if line == "nope" else f" {line.split()[0]}"
    assert f"Try 'dcclip{command} -h' for help." in dcclip(*line.split(), expect=2).stderr


def test_onnxruntime_tells_its_maker_nothing(tmp_path: Path) -> None:
    """Version 1.32 keeps `.ses`, an identifier of the session, in the folder for temporary files unless told not to."""
    picture = Path(__file__).parents[2] / "docs/images/cat.png"
    command = [sys.executable, "-m", "dcclip_cli", "predict", str(picture), "--labels", "猫,dog", "--model", "starter"]
    subprocess.run(command, env=os.environ | {"TMPDIR": str(tmp_path)}, check=True, capture_output=True)
    assert list(tmp_path.iterdir()) == []


def test_shards_are_indexed_once_and_counted(tmp_path: Path) -> None:
    for name, pairs in (("0", [CAT, DOG]), ("1", [DOG])):
        write_tar(tmp_path / f"{name}.tar", *pairs)
    assert dcclip("index", tmp_path).stdout == "3 pairs in 2 files\n"
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar.index.arrow")}
    assert len(written) == 2
    assert dcclip("index", f"{tmp_path}/*.tar").stdout == "3 pairs in 2 files\n"
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert dcclip("index", tmp_path, "--verify").stdout == "3 pairs in 2 files\n"
    dcclip("index", tmp_path, "--fresh")
    assert all(path.stat().st_mtime_ns > time_ns for path, time_ns in written.items())


def test_the_columns_of_others_are_options(tmp_path: Path) -> None:
    assert "contains no tar or Parquet file" in dcclip("index", tmp_path, expect=1).stderr
    pq.write_table(pa.table({"jpg": [b"1", b"2"], "alt": ["一只猫", "a dog"]}), tmp_path / "a.parquet")
    assert "has no column image (found: jpg, alt)" in dcclip("index", tmp_path, expect=1).stderr
    assert dcclip("index", tmp_path, "--image", "jpg", "--caption", "alt").stdout == "2 pairs in 1 file\n"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.parquet", "a.parquet.index.arrow"]
    pairs = open_pairs(tmp_path, Columns(image="jpg", caption="alt"))
    assert (pairs[0].zh, pairs[1].en) == (("一只猫",), ("a dog",))
