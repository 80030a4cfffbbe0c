"""Queries in Chinese and English should return the same images; wrong translations come first in the list."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcclip_cli.api import compare, evaluate
from dcclip_cli.data import prompts
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair
from dcclip_cli.eval import registry
from dcclip_cli.eval.evaluate import EvalOptions, open_datasets
from dcclip_cli.eval.registry import KnownSet
from dcclip_cli.eval.twins import open_twins, score_twins
from tests.cli.conftest import dcclip
from tests.conftest import COLOURS
from tests.eval import layouts
from tests.eval.conftest import small
from tests.train.jobs import refused

__all__ = ["small"]  # a fixture
PHOTOS = Path(__file__).parents[2] / "recipes/starter/photos.parquet"


def test_overlap_rank_correlation_and_margin_are_those_computed_by_hand() -> None:
    """Images on a half circle: a query orders them from its end, so the other end has them in reverse."""
    angles = np.linspace(0, np.pi, 12)
    images = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    first = images[0]
    last = images[-1]
    middle = images[5] * np.asarray([1.0, 0.99], np.float32)
    english = np.stack([first, last, first])
    chinese = np.stack([first, first, middle])
    texts = [("cat", "猫"), ("dog", "狗"), ("bird", "鸟")]
    is_traditional = np.asarray([False, True, True])
    is_known = np.asarray([True, True, False])
    score = score_twins([english, chinese, np.stack([last, first, middle])], images, texts, is_traditional, is_known)
    details = score.details
    # Of 12 images the first ten of an order and of its reverse have eight in common, the first five none.
    assert details["overlap@10"][:2].tolist() == pytest.approx([1, 0.8])
    assert details["overlap@5"][:2].tolist() == [1, 0]
    assert details["rank_correlation"][:2].tolist() == pytest.approx([1, -1])
    cosines = [english @ images.T, chinese @ images.T]
    correlation = np.asarray(np.corrcoef(np.concatenate(cosines)))[:3, 3:]
    others = np.where(np.eye(3, dtype=bool), -1, correlation)
    expected = np.diag(correlation) - (others.max(axis=0) + others.max(axis=1)) / 2
    assert details["margin"] == pytest.approx(expected, abs=1e-5) and details["margin"][1] == details["margin"].min()
    assert score.metrics["known"] == pytest.approx(0.9) and score.metrics["traditional"] == 1


@pytest.mark.any_cpu
def test_planted_wrong_translations_come_first_and_words_that_the_starter_does_not_know_are_not_ranked(
    tmp_path: Path,
) -> None:
    english, chinese = ([*prompts.read("imagenet").names[language][::25]] for language in ("en", "zh"))
    wrong = {3: 11, 11: 27, 27: 3, 18: 30, 30: 18}
    lines = [f"{text}\t{chinese[wrong.get(number, number)]}" for number, text in enumerate(english)]
    (tmp_path / "词.tsv").write_text("\n".join(["en\tzh", *lines, "iPod\tiPod", "qwzzk\t饕餮"]), "utf-8")
    data: dict[str, Any] = {"datasets": [str(PHOTOS)], "queries": str(tmp_path / "词.tsv"), "task": "twins"}
    [result] = evaluate(model="starter", cache=False, device="cpu", **data)
    assert {row["en"] for row in result.twins[:5]} == {english[number] for number in wrong}
    assert result.twins[0]["nearest"] in {chinese[number] for number in wrong}
    assert result.classes == 41 and len(result.twins) == 40  # iPod is no evidence, and 饕餮 is unknown
    assert result.metrics["known"] > result.value and result.metrics["traditional"] > 0.9
    assert result.language == "zh" and result.metric == "overlap@10"


@pytest.mark.any_cpu
def test_twins_of_a_folder_are_the_same_for_a_model_and_its_bundle_and_in_every_output(
    pairs: list[Pair], model_folder: Path, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for pair in pairs:
        layouts.write(tmp_path / f"照片/里面/{pair.key}.png", pair.image)
    layouts.write(tmp_path / "照片/bad.png", b"no image")
    write_parquet(tmp_path / "pairs.parquet", pairs)
    queries = "\n".join(f'{{"en": "{en}", "zh": "{zh}色"}}' for en, zh in COLOURS.items())
    layouts.write(tmp_path / "queries.jsonl", f'{queries}\n{{"en": "Logo", "zh": "logo"}}')
    shared = ["eval", "--task", "twins", "--model", model_folder, "--model", bundle_folder, "--queries"]
    folder = [*shared, "queries.jsonl", "--dataset", "照片"]
    assert "--partial all" in dcclip(*folder, expect=1).stderr
    monkeypatch.setenv("DCCLIP_LANG", "zh")
    done = dcclip(*folder, "--partial", "all", "--out", "out")
    monkeypatch.delenv("DCCLIP_LANG")
    assert "差别最大" in done.stdout and f"{len(COLOURS)}" in done.stderr
    model, bundle = json.loads((tmp_path / "out/照片.json").read_text("utf-8"))
    assert model["value"] == bundle["value"] and model["n"] == 40 and model["classes"] == len(COLOURS)
    assert [row["en"] for row in model["twins"]] == [row["en"] for row in bundle["twins"]]
    assert "overlap@10" in (tmp_path / "out/table.md").read_text("utf-8")
    assert model["twins"][0]["zh"] in (tmp_path / "out/report.html").read_text("utf-8")
    again = dcclip("eval", "--results", "out", "--out", "again", "--json")
    assert json.loads(again.stdout)[0]["twins"] == model["twins"]
    shutil.copy("out/照片.json", "one.json")
    names = [result["model"] for result in (model, bundle)]
    [difference] = compare(f"one.json@{names[0]}", f"one.json@{names[1]}").differences
    assert (difference.value, difference.low, difference.high, difference.paired) == (0, 0, 0, True)
    few = dcclip(*folder, "--partial", "all", "--limit", "8", expect=1)
    assert "overlap@10 is not defined for 8 images" in few.stderr
    captions = json.loads(dcclip(*shared[:-1], "--dataset", "pairs.parquet", "--dims", "8", "--json").stdout)
    assert captions[0]["classes"] == 40 and captions[0]["class_names"][0] == f"{pairs[0].en[0]} = {pairs[0].zh[0]}"


def test_queries_are_classes_of_a_named_set_or_a_folder_and_need_both_languages(
    small: dict[str, KnownSet], tmp_path: Path
) -> None:
    layouts.class_folders(tmp_path / "root/mnist/test", [f"alpha_{number}" for number in range(4)])
    dataset = open_twins("mnist-cn", tmp_path / "root", partial="present")
    assert dataset.truth["en"].names == tuple(f"Thing {number}" for number in range(4))  # type: ignore[union-attr]
    assert dataset.truth["zh"].names[3] == "东西3"  # type: ignore[union-attr]
    assert dataset.truth["zh"].templates == ("一张{}的照片。",)  # type: ignore[union-attr]
    over = open_twins("mnist", tmp_path / "root", "name", "present", "cifar100")
    assert len(over.truth["en"].names) == 100 and over.truth["en"].templates == ("{}",)  # type: ignore[union-attr]
    layouts.class_folders(tmp_path / "own", ["cat", "dog"])
    with refused("has no queries that differ between English and Chinese", "--queries FILE.tsv"):
        open_twins(str(tmp_path / "own"))
    (tmp_path / "own/classes.yaml").write_text("cat: {en: cat, zh: 猫}\ndog: {en: 狗, zh: 狗}\n", "utf-8")
    assert open_twins(str(tmp_path / "own"), templates="compact").truth["zh"].names == ("猫",)  # type: ignore[union-attr]
    shared = ["eval", "--model", "starter", "--dataset", tmp_path / "own"]
    for options, option in (
        (["--queries", "mnist"], "queries"),
        (["--task", "twins", "--languages", "zh"], "languages"),
        (["--task", "twins", "--shots", "5"], "shots"),
    ):
        assert f"--{option} has no effect" in dcclip(*shared, *options, expect=1).stderr
    missing = dcclip(*shared, "--task", "twins", "--queries", "nothing.tsv", expect=1)
    assert "unknown data set nothing.tsv" in missing.stderr


def test_a_group_is_without_the_sets_whose_names_are_the_same_in_both_languages(
    small: dict[str, KnownSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = {"names": [*"0123456789"], "templates": ["{}"]}
    folders = [f"alpha_{number}" for number in range(10)]
    content = {"folders": folders, "en": digits, "zh": digits}
    (prompts.FOLDER / "mnist.json").write_text(json.dumps(content), "utf-8")
    monkeypatch.setitem(registry.GROUPS, "elevater", (small["cifar10"], small["mnist"]))
    layouts.class_folders(tmp_path / "root/cifar10/test", folders)
    group: dict[str, Any] = {"datasets": ("elevater",), "task": "twins", "data_root": str(tmp_path / "root")}
    [dataset] = open_datasets(EvalOptions(**group))
    assert dataset.name == "cifar10-cn" and "and Chinese: mnist" in str(dataset.notes[-1])
    assert EvalOptions(**group, queries="cifar100").names == ["cifar10-cn", "mnist-cn"]
    with refused("retrieval has no queries that differ", "--queries FILE.tsv"):
        open_datasets(EvalOptions(**group | {"datasets": ("retrieval",)}))
