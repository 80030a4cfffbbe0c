"""Thresholds of labels: which one is best, and what `predict` does with them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import dcclip_cli
from dcclip_cli.photos.calibrate import best_thresholds
from tests.cli.conftest import dcclip


def best(scores: list[float], right: list[int]) -> float:
    [threshold] = best_thresholds(np.array(scores)[:, np.newaxis], np.array(right, bool)[:, np.newaxis])
    return float(threshold)


def test_a_threshold_is_in_the_middle_of_the_gap_with_the_highest_f1() -> None:
    assert best([0.9, 0.2, 0.8, 0.5, 0.1], [1, 0, 1, 0, 0]) == pytest.approx(0.65)
    # The first two: 2 * 1 / (2 + 2); the first three: 2 * 2 / (3 + 2); all: 2 * 2 / (4 + 2).
    assert best([0.9, 0.8, 0.5, 0.3], [0, 1, 1, 0]) == pytest.approx(0.4)
    assert best([0.5, 0.5, 0.5], [1, 0, 0]) == 0.25  # equal scores are on the same side


def test_a_label_that_the_model_cannot_tell_is_shown_with_no_picture() -> None:
    scores = np.array([[0.9, 0.9], [0.8, 0.8], [0.3, 0.7], [0.2, 0.6], [0.1, 0.5]])
    right = np.array([[1, 0], [1, 0], [0, 0], [0, 0], [0, 1]], bool)
    # Alone the second one is best with all pictures, 2 * 1 / (5 + 1); together that is 2 * 3 / (7 + 3), without it
    # 2 * 2 / (2 + 3).
    assert best_thresholds(scores, right) == pytest.approx([0.55, 0.95])


def test_predict_leaves_out_labels_below_their_own_thresholds(
    bundle_folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    model = shutil.copytree(bundle_folder, tmp_path / "model")
    folder = tmp_path / "labelled"
    for name, picture in zip(("红色的圆", "green moon", "none"), pictures, strict=False):
        (folder / name).mkdir(parents=True)
        shutil.copy(picture, folder / name / picture.name)
    thresholds = json.loads(dcclip("calibrate", folder, "--model", model, "--json", "-q").stdout)
    assert [row["label"] for row in thresholds] == ["green moon", "红色的圆"] and all(
        row["pictures"] == 1 for row in thresholds
    )
    same = dcclip_cli.calibrate(folder, model=model, out=tmp_path / "new/same.json")
    assert [vars(threshold) for threshold in same.thresholds] == thresholds and same.file == tmp_path / "new/same.json"
    ask = ("predict", pictures[0], "--model", model, "--labels", "红色的圆,green moon", "--multi-label", "--json", "-q")
    shown = json.loads(dcclip(*ask).stdout)[0]["labels"]
    all_labels = json.loads(dcclip(*ask, "--threshold", 1e-9).stdout)[0]["labels"]
    least = {row["label"]: row["threshold"] for row in thresholds}
    assert shown == [prediction for prediction in all_labels if prediction["probability"] >= least[prediction["label"]]]
    file = model / "thresholds.json"
    content = json.loads(file.read_text("utf-8"))
    for row, threshold in zip(all_labels, (1.0, 1e-9), strict=True):
        content["labels"][row["label"]]["threshold"] = threshold
    file.write_text(json.dumps(content), "utf-8")
    dcclip(*ask, "--xmp")
    tags = [f"<rdf:li>{row['label']}<" in Path(f"{pictures[0]}.xmp").read_text("utf-8") for row in all_labels]
    assert tags == [False, True]  # though both have more than 0.5, the least that --xmp tags by itself
    content["labels"]["红色的圆"]["threshold"] = content["labels"]["green moon"]["threshold"] = 1.0
    file.write_text(json.dumps(content), "utf-8")
    assert json.loads(dcclip(*ask).stdout)[0]["labels"] == []
    file.write_text(json.dumps(content | {"fingerprint": "other"}), "utf-8")
    assert "has thresholds for a model other than" in dcclip(*ask, expect=1).stderr
    for name in ("green moon", "none"):
        shutil.rmtree(folder / name)
    assert "all images show the label 红色的圆" in dcclip("calibrate", folder, "--model", model, expect=1).stderr


def test_the_starters_thresholds_need_a_file(tmp_path: Path) -> None:
    stderr = dcclip("calibrate", tmp_path, "--model", "starter", expect=1).stderr
    assert "error: thresholds cannot be written into" in stderr and "--out thresholds.json" in stderr
