"""Results are written for leaderboards of the hub, as its library reads them, and only what is comparable."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from dcclip_cli.api import convert_results
from dcclip_cli.data import prompts
from dcclip_cli.data.pair import Language
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval import registry
from dcclip_cli.eval.leaderboards import hub
from dcclip_cli.eval.metrics import score_retrieval
from dcclip_cli.eval.registry import ELEVATER
from dcclip_cli.eval.result import EvalResult, save_results, sha256_of
from tests.eval.test_compare import guesses, result

LANGUAGES: tuple[Language, ...] = ("en", "zh")


def boards(results: list[EvalResult], folder: Path) -> list[str]:
    return hub.write(results, folder, "o", {})


def zero_shot(name: str, language: Language, right: int = 300, model: str = "学生 a/b") -> EvalResult:
    """A result on a named data set with its own class names and prompts; `right` of 400 images are right."""
    known = registry.SETS[name]
    own = prompts.read(registry.prompts_of(known))
    one = replace(result(model, guesses(right), date="2026-11-27"), dataset=registry.name_in(known, language))
    names = sha256_of(own.names[language])
    return replace(
        one, language=language, class_names_sha256=names, templates_sha256=sha256_of(own.templates[language])
    )


def test_the_elevater_board_in_chinese_has_twenty_values_and_their_mean(tmp_path: Path) -> None:
    results = [
        zero_shot(known.name, language, 200 + 5 * n) for n, known in enumerate(ELEVATER) for language in LANGUAGES
    ]
    save_results(results, tmp_path / "results")
    convert_results(tmp_path / "results", tmp_path / "out", formats=["hub"], owner="some-org")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["hub"]
    file = tmp_path / "out/hub/models/b/.eval_results/elevater-zh.yaml"
    entries = {one.task_id: one for one in parse_eval_result_entries(yaml.safe_load(file.read_text("utf-8")))}
    assert len(entries) == 21 and {one.dataset_id for one in entries.values()} == {"some-org/elevater-zh"}
    assert (
        entries["Caltech101ZeroShot-zh"].value == 50.0 and entries["CIFAR10ZeroShot-zh"].value == 51.25
    )  # 200 and 205 of 400
    assert entries["elevater-zh"].value == 61.88  # (200 + 9.5 * 5) / 400
    mnist = entries["MNISTZeroShot-zh"]  # as mteb calls it
    assert mnist.date == "2026-11-27" and mnist.source_user == "some-org"
    assert mnist.notes == "top-1 in per cent, 400 images, fp32"

    board = tmp_path / "out/hub/datasets/elevater-zh"
    about = yaml.safe_load((board / "eval.yaml").read_text("utf-8"))
    assert {task["id"] for task in about["tasks"]} == entries.keys()
    card = (board / "README.md").read_text("utf-8")
    assert "with mteb" in card and "| mnist | MNISTZeroShot-zh | 10000 | 10 | top-1 |" in card
    assert "with mteb" not in (board.parent / "elevater-en/README.md").read_text("utf-8")
    english = yaml.safe_load((board.parent / "elevater-en/eval.yaml").read_text("utf-8"))["tasks"]
    assert english[1] == {"id": "caltech101", "config": "caltech101", "split": "test"}
    assert about["name"] == "elevater-zh" and about["evaluation_framework"] == "mteb"


def test_the_boards_repository_loads_as_a_data_set_of_class_names_and_prompts(tmp_path: Path) -> None:
    from datasets import load_dataset

    boards([zero_shot("cifar10", language) for language in LANGUAGES], tmp_path)
    for language, name, prompt in (("zh", "飞机", "飞机"), ("en", "airplane", "a photo of a airplane.")):
        folder = tmp_path / f"datasets/elevater-{language}"
        rows = load_dataset(str(folder), "cifar10", split="test", cache_dir=str(tmp_path / "cache"))
        assert len(rows) == 10 and (rows[0]["label"], rows[0]["name"]) == (0, name)
        assert any(prompt in one for one in rows[0]["prompts"])


def test_what_does_not_compare_is_on_no_board(tmp_path: Path) -> None:
    whole = zero_shot("pets", "zh")
    others = {
        "was not measured in full": replace(whole, limit=7),
        "is a linear probe": replace(whole, task="linear probe"),
        "was measured with other class names": replace(whole, class_names_sha256="x"),
        "is no named data set": replace(whole, dataset="我的"),
    }
    for reason, one in others.items():
        with pytest.raises(DcclipError, match="none of the results is of a whole named data set"):
            boards([one], tmp_path / "none")
        assert reason in boards([one, whole], tmp_path / "some")[0]
    assert not (tmp_path / "none").exists()
    part = replace(whole, partial="20 of 37 classes")
    assert "was not measured in full" in boards([part, whole], tmp_path / "some")[0]


def test_two_models_of_one_name_have_two_folders_and_retrieval_its_own_board(tmp_path: Path) -> None:
    score = score_retrieval(np.eye(3), np.eye(3), [(0,), (1,), (2,)], True)
    zh = result("模型", score, "mean_recall", "xm3600-cn", "zh", task="retrieval")
    boards([zh, replace(zh, model_fingerprint="0123456789", value=0.5)], tmp_path)
    values = {
        file.parent.parent.name: [entry["value"] for entry in yaml.safe_load(file.read_text("utf-8"))]
        for file in tmp_path.glob("models/*/.eval_results/retrieval-zh.yaml")
    }
    assert values == {"model": [100.0], "model-01234567": [50.0]}
    tasks = yaml.safe_load((tmp_path / "datasets/retrieval-zh/eval.yaml").read_text("utf-8"))["tasks"]
    assert [task["id"] for task in tasks] == ["flickr30k-cn", "coco-cn", "muge-cn", "xm3600", "xtd"]


@pytest.mark.parametrize(("formats", "owner", "said"), [
    (["hub"], None, "needs a name of the hub, not None"),
    (["hub"], "有名/字", "needs a name of the hub, not 有名/字"),
    (["csv"], None, "csv is not a format of results"),
])  # fmt: skip
def test_a_format_that_cannot_be_written_is_refused(
    formats: list[str], owner: str | None, said: str, tmp_path: Path
) -> None:
    with pytest.raises(DcclipError, match=said):
        convert_results(tmp_path / "missing", tmp_path / "out", formats=formats, owner=owner)
