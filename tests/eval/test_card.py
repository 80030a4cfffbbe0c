"""Cards of models carry the results as the hub's library reads them, and keep what the user wrote."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.card import update_card
from dcclip_cli.eval.metrics import score_retrieval
from dcclip_cli.model.model_dir import load_model
from tests.eval.test_compare import guesses, result


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "模型"))


def entries(folder: Path) -> dict[tuple[str, str], float]:
    data = ModelCard.load(folder / "README.md").data
    return {(one.dataset_name, one.dataset_config): one.metric_value for one in data.eval_results or []}


def test_both_languages_are_in_the_card_and_the_model_still_loads(folder: Path) -> None:
    en, zh = result("学生", guesses(300)), result("学生", guesses(250), dataset="dtd-cn", language="zh")
    score = score_retrieval(np.eye(3), np.eye(3), [(0,), (1,), (2,)], True)
    own = result("学生", score, "mean_recall", "我的图", "zh", task="retrieval")
    before = ModelCard.load(folder / "README.md")
    assert before.data.eval_results is None
    without = replace(en, dataset="mnist", corrupt={"3.png": "cut"})
    update_card(folder, [en, zh, own, replace(en, dataset="pets", limit=7), replace(zh, task="linear probe"), without])
    card = ModelCard.load(folder / "README.md")
    assert entries(folder) == {("dtd", "en"): 75.0, ("dtd-cn", "zh"): 62.5, ("我的图", "zh"): 100.0}
    assert card.data.model_name == "学生" and card.text == before.text
    kept = {name: value for name, value in card.data.to_dict().items() if name != "model-index"}
    assert kept == before.data.to_dict() and kept["language"] == ["zh", "en"]
    [first, *_] = card.data.to_dict()["model-index"][0]["results"]
    assert first["task"] == {"type": "zero-shot-image-classification", "name": "zero-shot classification"}
    assert first["dataset"]["type"] == "clip-benchmark/wds_vtab-dtd"
    assert first["metrics"] == [{"type": "accuracy", "value": 75.0, "name": "top-1, per cent"}]
    load_model(folder)


def test_new_results_replace_those_on_the_same_data_and_keep_the_users_own(folder: Path) -> None:
    file = folder / "README.md"
    update_card(folder, [result("m", guesses(300)), result("m", guesses(100), dataset="pets-cn", language="zh")])
    file.write_text(file.read_text("utf-8").replace("# ", "# 我的 "), "utf-8")
    update_card(folder, [result("m", guesses(200))])
    assert entries(folder) == {("dtd", "en"): 50.0, ("pets-cn", "zh"): 25.0}
    assert "# 我的 " in file.read_text("utf-8")
    once = file.read_bytes()
    update_card(folder, [result("m", guesses(200))])
    assert file.read_bytes() == once


@pytest.mark.parametrize("header", ["---\nlanguage: [zh\n---\n", "---\n- 一\n---\n", "---\nmodel-index: 7\n---\n"])
def test_a_header_that_is_no_yaml_is_named_and_left(folder: Path, header: str) -> None:
    (folder / "README.md").write_text(header, "utf-8")
    with pytest.raises(DcclipError, match=r"the header of .*README.md cannot be read"):
        update_card(folder, [result("m", guesses(200))])
    assert (folder / "README.md").read_text("utf-8") == header


def test_a_folder_without_a_card_stays_without(folder: Path) -> None:
    (folder / "README.md").unlink()
    update_card(folder, [result("m", guesses(200))])
    assert not (folder / "README.md").exists()
