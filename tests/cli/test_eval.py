"""`dcclip eval` and `dcclip datasets` as they are typed."""

import json
import re
from pathlib import Path

import pytest

from dcclip_cli.data.pair import Pair
from dcclip_cli.eval.registry import KnownSet
from tests.cli.conftest import dcclip
from tests.eval import layouts
from tests.eval.conftest import small

__all__ = ["small"]  # a fixture


@pytest.fixture
def mnist(tmp_path: Path, small: dict[str, KnownSet], pairs: list[Pair]) -> Path:
    """A root with `mnist`: a drawn image in each of its ten class folders, of both splits."""
    for number in range(10):
        for split in ("test", "train"):
            layouts.write(tmp_path / f"data/mnist/{split}/alpha_{number}/1.png", pairs[number].image)
    return tmp_path / "data"


def test_models_are_the_rows_of_a_table_for_each_data_set_that_fits_80_columns(
    mnist: Path, model_folder: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    models = [option for model in (model_folder, bundle_folder) for option in ("--model", model)]
    sets = ["--dataset", "mnist", "--dataset", "mnist-cn"]
    shown = dcclip("eval", "--data-root", mnist, *models, *sets, "--out", tmp_path / "out", "-q").stdout.splitlines()
    by_language = {
        name: json.loads((tmp_path / f"out/{file}.json").read_text("utf-8"))
        for name, file in (("en", "mnist"), ("zh", "mnist-cn"))
    }
    assert shown[0].startswith("mnist, top-1")
    heads = [part.strip() for part in re.split("  +", shown[1].strip())]
    assert heads == ["model", "en", "zh", "zh - en", "mean per class en", "mean per class zh"]
    rows = [line.split()[-5:] for line in shown[3:5]]
    for number, row in enumerate(rows):
        en, zh = (by_language[name][number] for name in ("en", "zh"))
        assert row[:3] == [f"{en['value']:.1%}", f"{zh['value']:.1%}", f"{zh['value'] - en['value']:+.1%}"]
        assert row[3:] == [f"{result['metrics']['mean_per_class']:.1%}" for result in (en, zh)]
    assert max(map(len, shown)) <= 80
    written = {file.name for file in (tmp_path / "out").iterdir() if file.suffix != ".json"}
    assert written == {"bars.svg", "zh-en.svg", "report.html", "table.csv", "table.md"}


def test_results_are_merged_without_measuring_again(mnist: Path, model_folder: Path, tmp_path: Path) -> None:
    shared = ["eval", "--data-root", mnist, "--model", model_folder, "--quiet", "--dataset", "mnist-cn"]
    measured = dcclip(*shared, "--out", tmp_path / "a")
    again = ["eval", "--results", tmp_path / "a"]
    assert dcclip(*again, "--out", tmp_path / "b").stdout == measured.stdout
    assert (tmp_path / "b/table.csv").read_bytes() == (tmp_path / "a/table.csv").read_bytes()
    assert "--results needs --out DIR" in dcclip(*again, expect=2).stderr


def test_compare_tells_differences_and_refuses_unlike_prompts(mnist: Path, model_folder: Path, tmp_path: Path) -> None:
    shared = ["eval", "--data-root", mnist, "--model", model_folder, "--quiet", "--dataset", "mnist"]
    dcclip(*shared, "--out", tmp_path / "a")
    dcclip(*shared, "--out", tmp_path / "b", "--templates", "name")
    files = tmp_path / "a/mnist.json", tmp_path / "b/mnist.json"
    refused = dcclip("compare", *files, expect=1)
    assert "error: mnist en: the prompts differ" in refused.stderr and "--force" in refused.stderr
    forced = dcclip("compare", *files, "--force")
    assert "95 % interval" in forced.stdout and "mnist en" in forced.stdout
    assert re.search(r"is better on [01] of 1 test sets: clearly on [01], clearly worse on [01]", forced.stdout)
    same = json.loads(dcclip("compare", files[0], files[0], "--json").stdout)
    assert same[0]["difference"] == same[0]["low"] == same[0]["high"] == 0 and same[0]["paired"]


@pytest.mark.parametrize("folder", ["test", "train"])
def test_an_image_that_cannot_be_read_ends_eval_with_1_unless_a_part_is_accepted(
    folder: str, mnist: Path, tmp_path: Path, model_folder: Path
) -> None:
    layouts.write(mnist / f"mnist/{folder}/alpha_3/1.png", b"no image")
    shared = ["eval", "--dataset", "mnist", "--data-root", mnist, "--model", model_folder, "--quiet"]
    shared += ["--task", "probe", "--shots", "1"] if folder == "train" else []
    refused = dcclip(*shared, "--out", str(tmp_path / "out"), expect=1)
    title = refused.stdout.splitlines()[0]
    error = "error: the results lack 1 unreadable images: "
    assert title.endswith("(excluding 1 unreadable images)")
    assert refused.stderr.startswith(f"{error}mnist: {'train ' * (folder == 'train')}alpha_3/1.png (")
    assert "--partial all" in refused.stderr
    [written] = json.loads((tmp_path / "out/mnist.json").read_text("utf-8"))
    assert len(written["corrupt"]) == 1
    accepted = dcclip(*shared, "--partial", "all")
    assert accepted.stdout == refused.stdout and accepted.stderr == ""
