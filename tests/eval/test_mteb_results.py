"""Results are written in mteb's form only where one of its tasks measures the same, and without mteb."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcclip_cli.api import convert_results, evaluate
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.leaderboards import mteb
from dcclip_cli.eval.result import EvalResult, pack, save_results
from tests.eval.test_compare import guesses, result
from tests.eval.test_formats import zero_shot


def written(results: list[EvalResult], folder: Path) -> list[str]:
    return mteb.write(results, folder, None, {})


def retrieval(text_ranks: list[int], image_ranks: list[int]) -> EvalResult:
    details = {"text_ranks": pack(np.asarray(text_ranks)), "image_ranks": pack(np.asarray(image_ranks))}
    own = {"task": "retrieval", "metric": "mean_recall", "split": "test", "details": details}
    return replace(result("m", guesses(1)), dataset="flickr30k-cn", language="zh", **own)  # type: ignore[arg-type]


def test_a_result_becomes_mtebs_task_result_with_null_for_what_is_not_known(tmp_path: Path) -> None:
    save_results([replace(zero_shot("pets", "zh", model="学生 a/b"), model_fingerprint="0a1b")], tmp_path / "own")
    convert_results(tmp_path / "own", tmp_path / "out", formats=["mteb"], owner="some-org")
    [file] = (tmp_path / "out/mteb/results/some-org__学生-a-b").glob("*/OxfordPetsZeroShot-zh.json")
    written = json.loads(file.read_text("utf-8"))
    [[scores]] = written.pop("scores").values()
    assert written["task_name"] == "OxfordPetsZeroShot-zh" and written["dataset_revision"] == "no_revision_available"
    assert written["mteb_version"] is written["kg_co2_emissions"] is None and written["date"] == "2026-11-27"
    assert scores["languages"] == ["zho-Hans"] and scores["accuracy"] == 0.75  # 300 of 400 images
    meta = json.loads((file.parent / "model_meta.json").read_text("utf-8"))
    assert meta["name"] == "some-org/学生-a-b" and meta["revision"] == file.parent.name
    assert meta["n_parameters"] is meta["license"] is meta["training_datasets"] is None


def test_hit_rates_and_mrr_are_those_of_the_first_right_answer_each_way(tmp_path: Path) -> None:
    written([retrieval([0, 4, 9, 30], [0, 0, 2, 1])], tmp_path)
    scores = {}
    for name in ("Flickr30kCNT2IRetrieval", "Flickr30kCNI2TRetrieval"):
        [file] = tmp_path.glob(f"results/local__m/*/{name}.json")
        [scores[name]] = json.loads(file.read_text("utf-8"))["scores"]["test"]
    by_text, by_image = scores["Flickr30kCNT2IRetrieval"], scores["Flickr30kCNI2TRetrieval"]
    assert by_text["main_score"] == by_text["hit_rate_at_1"] == 0.5 and by_text["hit_rate_at_3"] == 1.0
    assert by_text["mrr_at_10"] == (1 + 1 + 1 / 3 + 1 / 2) / 4
    assert [by_image[f"hit_rate_at_{k}"] for k in (1, 5, 10, 100)] == [0.25, 0.5, 0.75, 1.0]
    assert by_image["mrr_at_10"] == pytest.approx((1 + 1 / 5 + 1 / 10) / 4)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"dataset": "imagenet", "language": "en"}, "has no task"),
        ({"dataset": "我的照片 photos"}, "has no task"),
        ({"task": "linear probe"}, "is a linear probe"),
        ({"corrupt": {"1.jpg": "cut"}}, "lacks 1 images that cannot be read"),
        ({"replaced": {"猞猁": "山猫"}}, r"asked for 1 names by alternates \(猞猁 as 山猫\)"),
    ],
)
def test_a_result_that_no_task_repeats_is_left_out_and_alone_an_error(
    changed: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    good = zero_shot("pets", "zh")
    other = replace(good, **changed)
    with pytest.raises(DcclipError, match=reason):
        written([other], tmp_path)
    assert not any(tmp_path.iterdir())
    left_out, _ = written([other, good], tmp_path)
    assert left_out.startswith(f"left out: {other.dataset} {other.language}")
    assert [file.name for file in tmp_path.rglob("*ZeroShot*")] == ["OxfordPetsZeroShot-zh.json"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"limit": 3}, "--limit 3"),
        ({"partial": "present"}, "--partial present"),
        ({"templates": "compact"}, "--templates compact"),
        ({"datasets": ["imagenet"]}, r"none of the data sets \(imagenet\)"),
    ],
)
def test_options_that_no_task_has_are_refused_before_measuring(
    options: dict[str, Any], what: str, tmp_path: Path
) -> None:
    with pytest.raises(DcclipError, match=f"--format mteb.*{what}"):
        evaluate(out=tmp_path, formats=["mteb"], **{"datasets": ["pets-cn"], **options})
