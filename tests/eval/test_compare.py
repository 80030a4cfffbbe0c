"""Two results are compared with an interval, and only where they were measured alike."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcclip_cli.api import compare
from dcclip_cli.core.errors import DcclipError
from dcclip_cli.eval.compare import bootstrap_interval, compare_results, read_results
from dcclip_cli.eval.metrics import Score, score_classes, score_retrieval
from dcclip_cli.eval.registry import ELEVATER
from dcclip_cli.eval.report import markdown
from dcclip_cli.eval.result import (
    MEAN,
    EvalResult,
    elevater_mean,
    pack,
    percent,
    save_results,
    sha256_of,
    table,
)  # fmt: skip


def result(
    model: str, score: Score, metric: str = "top1", dataset: str = "dtd", language: str = "en", **more: Any
) -> EvalResult:
    """A result of a score, as `evaluate` would write it."""
    values: dict[str, Any] = {
        "model": model, "model_fingerprint": model, "dataset": dataset, "language": language,
        "task": "zero-shot classification", "metric": metric, "value": score.metrics[metric], "metrics": score.metrics,
        "n": 400, "classes": 4, "class_names_sha256": sha256_of(["猫", "dog"]), "templates_sha256": sha256_of(["{}"]),
        "preprocessing": {"size": 224}, "seconds": 1.0, "images_per_second": 400.0, "versions": {"dcclip": "0"},
        "truth_sha256": "t", "class_names": ["猫", "狗", "鸟", "鱼"], "templates": ["一张{}的照片。"],
        "details": {name: pack(array) for name, array in score.details.items()},
    }  # fmt: skip
    return EvalResult(**{**values, **more})


def guesses(right: int, of: int = 400, metric: str = "top1") -> Score:
    """The first `right` images are right, the others are taken for the next class."""
    labels = np.arange(of) % 4
    best = np.where(np.arange(of) < right, labels, (labels + 1) % 4)
    return score_classes(np.eye(4)[best], labels, metric)  # type: ignore[arg-type]


def test_a_difference_on_the_same_images_is_clear_sooner() -> None:
    first = result("a", guesses(200))
    second = result("b", guesses(212))
    [paired] = compare_results([first], [second])
    assert paired.value == pytest.approx(0.03) and paired.paired and paired.is_clear
    # 12 of 400 images differ: the standard deviation of their number is 3.4 by the binomial.
    assert (paired.high - paired.low) / 2 == pytest.approx(1.96 * np.sqrt(12 * (1 - 12 / 400)) / 400, rel=0.15)
    low, high = bootstrap_interval(first)
    assert (high - low) / 2 == pytest.approx(1.96 * 0.5 / 20, rel=0.15) and low < 0.5 < high
    [loose] = compare_results([first], [replace(second, truth_sha256="other")])
    assert not loose.paired and not loose.is_clear
    # Two shares of 400 images, each with a standard deviation of a half over the root of 400.
    assert (loose.high - loose.low) / 2 == pytest.approx(1.96 * np.sqrt(2) * 0.5 / 20, rel=0.15)


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        ({"class_names_sha256": "x"}, "class names"),
        ({"templates_sha256": "x", "limit": 7}, "prompts and samples"),
        ({"n": 399}, "numbers of images"),
    ],
)
def test_unlike_results_are_compared_only_by_force(change: dict[str, Any], differing: str) -> None:
    first = result("a", guesses(200))
    second = result("b", guesses(210), **change)
    with pytest.raises(DcclipError, match=f"dtd en: the {differing} differ") as caught:
        compare_results([first], [second])
    assert "--force" in caught.value.hint
    [difference] = compare_results([first], [second], force=True)
    assert " and ".join(difference.unlike) == differing
    with pytest.raises(DcclipError, match=r"no data set in common.*dtd and pets"):
        compare_results([first], [replace(second, dataset="pets")])


def test_every_metric_has_an_interval() -> None:
    random = np.random.default_rng(1)
    rows = []
    for seed in (0, 1):
        truth = random.random((60, 3)) < 0.4
        voc = score_classes(truth + random.normal(size=(60, 3)), truth, "map11")
        memes = score_classes(random.normal(size=(60, 2)), np.arange(60) % 2, "roc_auc")
        vectors = random.normal(size=(2, 60, 8))
        flickr = score_retrieval(vectors[0], vectors[0] + vectors[1], [(number,) for number in range(60)])
        classes = result(str(seed), voc, "map11", "voc2007"), result(str(seed), memes, "roc_auc", "hateful-memes")
        rows.append([*classes, result(str(seed), flickr, "mean_recall", "flickr30k", task="retrieval")])
    for difference in compare_results(rows[0], rows[1], resamples=200):
        assert difference.low < difference.value < difference.high


def test_equal_values_that_differ_in_their_last_bits_are_equal() -> None:
    first = result("a", guesses(200))
    second = replace(result("b", guesses(200)), value=0.5 - 1e-16)
    [difference] = compare_results([second], [first])
    assert (difference.value, difference.is_clear) == (0, False)
    assert percent(-1e-18, signed=True) == "+0.0" and percent(-0.0006, signed=True) == "-0.1"


def test_a_side_is_a_file_a_folder_or_one_model_of_them(tmp_path: Path) -> None:
    save_results([result("a", guesses(200)), result("猫@1", guesses(300))], tmp_path)
    save_results([result("a", guesses(8), dataset="pets")], tmp_path)
    with pytest.raises(DcclipError, match="has results of 2 models") as caught:
        read_results(str(tmp_path / "dtd.json"))
    assert caught.value.hint.endswith("dtd.json@a")
    assert [of_model.value for of_model in read_results(f"{tmp_path}@a")] == [0.5, 0.02]
    save_results([result("seed-0", guesses(100))], tmp_path / "运行" / "eval")  # as in a run
    run = str(tmp_path / "运行")
    file = str(tmp_path / "运行/eval/dtd.json")
    comparison = compare(run, file)
    assert (comparison.first, comparison.second) == (run, file)  # both are seed-0
    with pytest.raises(DcclipError, match="has no results for the model b"):
        read_results(f"{tmp_path}@b")
    (tmp_path / "bad.json").write_text("[{]", "utf-8")
    with pytest.raises(DcclipError, match=r"bad\.json does not contain eval results"):
        read_results(str(tmp_path / "bad.json"))
    with pytest.raises(DcclipError, match=r"nowhere\.json does not exist"):
        read_results(str(tmp_path / "nowhere.json"))


def test_the_table_has_a_row_for_each_model_and_languages_side_by_side_with_their_gap() -> None:
    results = [
        result("a", guesses(200)),
        result("a", guesses(180), dataset="dtd-cn", language="zh"),
        result("b_1", guesses(300), limit=400),
        replace(result("c", guesses(300), limit=400), value=0.75 - 1e-15),  # a tie
    ]
    table_of_all = table(results)
    [row] = table_of_all.rows
    assert row.name == "dtd" and row.remark == "samples differ: not comparable, a sample of 400 images"
    assert [value and round(value, 3) for value in row.values] == [0.5, 0.45, -0.05, 0.75, 0.75]
    assert markdown(table_of_all).splitlines() == [
        "| data set | metric | model | en | zh | zh - en |",
        "| --- | --- | --- | ---: | ---: | ---: |",
        "| dtd | top-1 | a | 50.0 | **45.0** | -5.0 |",
        "| dtd | top-1 | b_1 | **75.0** |  |  |",
        "| dtd | top-1 | c | **75.0** |  |  |",
    ]


def test_elevaters_mean_is_over_all_twenty_or_none() -> None:
    results = [result("a", guesses(10 * number), dataset=entry.label) for number, entry in enumerate(ELEVATER)]
    assert elevater_mean(results, "a", "en") == pytest.approx(np.mean(np.arange(20)) * 10 / 400)
    assert elevater_mean(results, "a", "zh") is None and elevater_mean(results[1:], "a", "en") is None
    assert elevater_mean([replace(results[0], limit=5), *results[1:]], "a", "en") is None
    assert table(results).rows[-1].name == MEAN
    assert markdown(table(results)).splitlines()[-1].startswith(f"| {MEAN} |")
