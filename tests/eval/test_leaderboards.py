"""Results are written for the leaderboards of the hub, mteb and immich, and only what is comparable."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from dcclip_cli.api import convert_results, evaluate
from dcclip_cli.data import prompts
from dcclip_cli.data.pair import Language, Pair
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval import registry
from dcclip_cli.eval.leaderboards import hub, mteb
from dcclip_cli.eval.leaderboards.immich import TABLE, table
from dcclip_cli.eval.metrics import score_retrieval
from dcclip_cli.eval.registry import ELEVATER, KnownSet
from dcclip_cli.eval.result import EvalResult, pack, save_results, sha256_of
from tests.eval import layouts
from tests.eval.test_compare import guesses, result

LANGUAGES: tuple[Language, ...] = ("en", "zh")


def boards(results: list[EvalResult], folder: Path) -> list[str]:
    return hub.write(results, folder, "o", {})


def zero_shot(name: str, language: Language, right: int = 300, model: str = "学生 a/b") -> EvalResult:
    """A result on a named data set with its own class names and prompts; `right` of 400 images are right."""
    entry = registry.SETS[name]
    class_texts = prompts.read(registry.prompts_of(entry))
    row = replace(result(model, guesses(right), date="2026-11-27"), dataset=registry.name_in(entry, language))
    names = sha256_of(class_texts.names[language])
    return replace(
        row, language=language, class_names_sha256=names, templates_sha256=sha256_of(class_texts.templates[language])
    )


def test_the_elevater_board_in_chinese_has_twenty_values_and_their_mean(tmp_path: Path) -> None:
    results = [
        zero_shot(entry.name, language, 200 + 5 * n) for n, entry in enumerate(ELEVATER) for language in LANGUAGES
    ]
    save_results(results, tmp_path / "results")
    convert_results(tmp_path / "results", tmp_path / "out", formats=["hub"], owner="some-org")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["hub"]
    file = tmp_path / "out/hub/models/b/.eval_results/elevater-zh.yaml"
    entries = {entry.task_id: entry for entry in parse_eval_result_entries(yaml.safe_load(file.read_text("utf-8")))}
    assert len(entries) == 21 and {entry.dataset_id for entry in entries.values()} == {"some-org/elevater-zh"}
    assert (
        entries["Caltech101ZeroShot-zh"].value == 50.0 and entries["CIFAR10ZeroShot-zh"].value == 51.25
    )  # 200 and 205 of 400
    assert entries["elevater-zh"].value == 61.88  # (200 + 9.5 * 5) / 400
    mnist = entries["MNISTZeroShot-zh"]  # as mteb calls it
    assert mnist.date == "2026-11-27" and mnist.source_user == "some-org"
    assert mnist.notes == "top-1 in per cent, 400 images, fp32"

    board = tmp_path / "out/hub/datasets/elevater-zh"
    content = yaml.safe_load((board / "eval.yaml").read_text("utf-8"))
    assert {task["id"] for task in content["tasks"]} == entries.keys()
    card = (board / "README.md").read_text("utf-8")
    assert "with mteb" in card and "| mnist | MNISTZeroShot-zh | 10000 | 10 | top-1 |" in card
    assert "with mteb" not in (board.parent / "elevater-en/README.md").read_text("utf-8")
    english = yaml.safe_load((board.parent / "elevater-en/eval.yaml").read_text("utf-8"))["tasks"]
    assert english[1] == {"id": "caltech101", "config": "caltech101", "split": "test"}
    assert content["name"] == "elevater-zh" and content["evaluation_framework"] == "mteb"


def test_the_boards_repository_loads_as_a_data_set_of_class_names_and_prompts(tmp_path: Path) -> None:
    from datasets import load_dataset

    boards([zero_shot("cifar10", language) for language in LANGUAGES], tmp_path)
    for language, name, prompt in (("zh", "飞机", "飞机"), ("en", "airplane", "a photo of a airplane.")):
        folder = tmp_path / f"datasets/elevater-{language}"
        rows = load_dataset(str(folder), "cifar10", split="test", cache_dir=str(tmp_path / "cache"))
        assert len(rows) == 10 and (rows[0]["label"], rows[0]["name"]) == (0, name)
        assert any(prompt in texts for texts in rows[0]["prompts"])


def test_what_does_not_compare_is_on_no_board(tmp_path: Path) -> None:
    full = zero_shot("pets", "zh")
    unfit = {
        "not all images were evaluated": replace(full, limit=7),
        "not zero-shot classification": replace(full, task="linear probe"),
        "class names or prompts differ": replace(full, class_names_sha256="x"),
        "not a named data set": replace(full, dataset="我的"),
    }
    for reason, row in unfit.items():
        with pytest.raises(DcclipError, match="no result covers a complete named data set"):
            boards([row], tmp_path / "none")
        assert reason in boards([row, full], tmp_path / "some")[0]
    assert not (tmp_path / "none").exists()
    part = replace(full, partial="20 of 37 classes")
    assert "not all images were evaluated" in boards([part, full], tmp_path / "some")[0]


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


def mteb_form(results: list[EvalResult], folder: Path) -> list[str]:
    return mteb.write(results, folder, None, {})


def retrieval(text_ranks: list[int], image_ranks: list[int]) -> EvalResult:
    details = {"text_ranks": pack(np.asarray(text_ranks)), "image_ranks": pack(np.asarray(image_ranks))}
    changes = {"task": "retrieval", "metric": "mean_recall", "split": "test", "details": details}
    return replace(result("m", guesses(1)), dataset="flickr30k-cn", language="zh", **changes)  # type: ignore[arg-type]


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
    mteb_form([retrieval([0, 4, 9, 30], [0, 0, 2, 1])], tmp_path)
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
        ({"dataset": "imagenet", "language": "en"}, "no such task in mteb"),
        ({"dataset": "我的照片 photos"}, "no such task in mteb"),
        ({"task": "linear probe"}, "not zero-shot classification"),
        ({"corrupt": {"1.jpg": "cut"}}, "1 unreadable images"),
        ({"replaced": {"猞猁": "山猫"}}, r"1 class names are replaced, unlike in mteb \(猞猁 as 山猫\)"),
    ],
)
def test_a_result_that_no_task_repeats_is_left_out(changed: dict[str, Any], reason: str, tmp_path: Path) -> None:
    good = zero_shot("pets", "zh")
    variant = replace(good, **changed)
    with pytest.raises(DcclipError, match=reason):
        mteb_form([variant], tmp_path)
    assert not any(tmp_path.iterdir())
    left_out, _ = mteb_form([variant, good], tmp_path)
    assert left_out.startswith(f"left out: {variant.dataset} {variant.language}")
    assert [file.name for file in tmp_path.rglob("*ZeroShot*")] == ["OxfordPetsZeroShot-zh.json"]


@pytest.mark.parametrize("language", ["zh", "en"])
def test_the_rule_gives_what_immich_itself_calls_optimal(language: Language) -> None:
    lines = [line for line in TABLE.read_text("utf-8").splitlines() if not line.startswith("#")]
    optimal = {row["model"]: row["optimal"] == "yes" for row in csv.DictReader(lines, delimiter="\t")
            if row["language"] == language}  # fmt: skip
    rows = table(language)
    assert {row.model: not any(rival.outclasses(row) for rival in rows) for row in rows} == optimal
    assert len(optimal) == {"zh": 19, "en": 53}[language]


def test_a_bundle_measured_on_xm3600_gets_its_place_in_both_languages(
    bundle_folder: Path, pairs: list[Pair], small: dict[str, KnownSet], tmp_path: Path
) -> None:
    lines = []
    for number, pair in enumerate(pairs[:12]):
        layouts.write(tmp_path / f"xm3600/images/{number:016x}.jpg", pair.image)
        captions = {"en": {"caption": [pair.en[0]]}, "zh": {"caption": [pair.zh[0]]}}
        lines.append(json.dumps({"image/key": f"{number:016x}", **captions}, ensure_ascii=False) + "\n")
    layouts.write(tmp_path / "xm3600/captions.jsonl", "".join(lines))
    both, out = ["xm3600", "xm3600-cn"], tmp_path / "out"
    results = evaluate(model=bundle_folder, datasets=both, data_root=tmp_path, out=out, formats=["dcclip", "immich"])
    for row, metrics in zip(results, json.loads((out / "immich/metric.json").read_text("utf-8")), strict=True):
        assert (metrics["model"], metrics["language"]) == (row.model, row.language)
        assert metrics["recall"] == pytest.approx(sum(row.metrics[f"image_recall@{k}"] for k in (1, 5, 10)) / 3)
        assert 20 < metrics["memory_mib"] < 1000 and 0 < metrics["text_ms"] < 1000 and 0 < metrics["image_ms"] < 1000
        assert metrics["optimal"] == (not metrics["outclassed_by"])
    page = (out / "immich/table.md").read_text("utf-8")
    assert f"| **{results[0].model}** | {100 * metrics['recall']:.2f} |" in page
    assert "## immich's table, XM3600, en" in page and "XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k" in page
    with pytest.raises(DcclipError, match="no result covers all of XM3600"):
        convert_results(out, tmp_path / "again", formats=["immich"])
    with pytest.raises(DcclipError, match="no result covers all of XM3600"):  # fewer are found more easily
        evaluate(model=bundle_folder, datasets=both, data_root=tmp_path, out=out, formats=["immich"], limit=6)
