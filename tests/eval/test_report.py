"""Reports and cards of models show the results, keep what the user wrote, and load nothing from outside."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from dcclip_cli.api import compare, merge_results
from dcclip_cli.core.errors import DcclipError, translated
from dcclip_cli.core.progress import Silent
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Language, Pair
from dcclip_cli.eval.card import update_card
from dcclip_cli.eval.datasets import open_dataset
from dcclip_cli.eval.metrics import score_classes, score_retrieval
from dcclip_cli.eval.report import errors_of, one_thing, save_report, write_report
from dcclip_cli.eval.result import load_results, save_results, table
from dcclip_cli.model.model_dir import load_model
from tests.eval import layouts
from tests.eval.test_compare import guesses, result

NAMES = ["猫", "狗", "<b>鸟</b>", "鱼"]


def test_weak_classes_and_confusions_are_counted() -> None:
    labels = np.asarray([0, 0, 0, 0, 1, 1, 2, 3])
    best = np.asarray([0, 1, 1, 2, 1, 0, 0, 3])
    first = result("a", score_classes(np.eye(4)[best], labels, "top1"), class_names=NAMES)
    errors = errors_of(first, None)
    assert errors is not None
    worst = [("<b>鸟</b>", 0.0, 1, "猫"), ("猫", 0.25, 4, "狗"), ("狗", 0.5, 2, "猫")]
    assert [tuple(weak.values()) for weak in errors.worst] == worst
    confusions = [("猫", "狗", 2, 0.5), ("猫", "<b>鸟</b>", 1, 0.25)]
    assert [tuple(pair.values()) for pair in errors.confusions[:2]] == confusions
    matrix = {"猫": [1, 2, 1, 0], "狗": [1, 1, 0, 0], "<b>鸟</b>": [1, 0, 0, 0], "鱼": [0, 0, 0, 1]}
    assert errors.matrix == matrix


def test_the_page_has_both_languages_and_shows_wrong_images(tmp_path: Path) -> None:
    names = ("猫", "狗", "鸟", "鱼")
    rows = [Pair(str(n), layouts.image(n % 4), zh=(names[n % 4],), en=(f"class {n % 4}",)) for n in range(400)]
    write_parquet(tmp_path / "四.parquet", rows)
    dataset = open_dataset(str(tmp_path / "四.parquet"))
    results = [
        result("模型", guesses(395), dataset="四", language="en", indistinct=[[*"一二三四五六七八九十"], ["a", "b"]]),
        result("模型", guesses(300), dataset="四", language="zh", class_names=NAMES, corrupt={}),
        replace(result("b", guesses(100), dataset="四", language="zh"), corrupt={"9.jpg": "cut"}),
    ]
    write_report(tmp_path / "report.html", results, [dataset])
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "98.8" in page and "75.0" in page and "-23.8" in page  # English, Chinese, their gap
    assert "&lt;b&gt;鸟" in page and "<b>鸟" not in page
    assert page.count('src="data:image/jpeg;base64,') == 5 + 12 + 12
    assert page.count('src="data:image/svg+xml;base64,') == 2  # bars, Chinese against English
    assert "9.jpg: cut" in page
    assert page.count("<h4>Confusion matrix") == 3 and '<td class="n best">75</td><td class="n">25</td>' in page
    assert "<bdi>一 = 二 = 三 = 四 = 五 = 六 = 七 = 八 = … (10)</bdi>, <bdi>a = b</bdi>" in page
    assert not re.search(r"(?:src|href)=\"(?!data:|#)|<script|url\(", page)
    write_report(tmp_path / "again.html", results, [dataset])
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "report.html").read_bytes()


def test_the_report_says_where_languages_do_not_compare_and_which_classes_are_one_thing(tmp_path: Path) -> None:
    names: list[tuple[str, Language]] = [("gtsrb", "en"), ("gtsrb-cn", "zh"), ("imagenet", "en"), ("imagenet-cn", "zh")]
    names.append(("imagenet-r", "en"))
    results = [replace(result("a", guesses(300)), dataset=name, language=language) for name, language in names]
    remarks = {row.name: row.remark for row in table(results).rows}
    assert remarks["gtsrb"].startswith("Chinese names say what a sign means") and remarks["imagenet"] == ""
    pairs = one_thing(results)
    assert list(pairs) == ["imagenet"] and len(pairs["imagenet"]) == 6  # of ImageNet-R's 200, no two
    assert "太阳镜 / sunglasses = 墨镜 / sunglasses" in pairs["imagenet"]
    write_report(tmp_path / "report.html", results)
    assert "太阳镜 / sunglasses = 墨镜 / sunglasses" in (tmp_path / "report.html").read_text("utf-8")


def test_results_of_several_folders_are_one_table_with_charts(tmp_path: Path) -> None:
    for folder, right, model in (("甲", 300, "学生"), ("乙", 100, "学生"), ("丙", 400, "teacher")):
        expected = [
            result(model, guesses(right), dataset=name, language=language, model_fingerprint=folder)
            for name, language in (("dtd", "en"), ("dtd-cn", "zh"))
        ]
        save_results([*expected, result("other", guesses(8))], tmp_path / folder)
    folders = [tmp_path / name for name in ("甲", "乙", "丙")]
    merge_results(folders, tmp_path / "out")
    head, *rows = (tmp_path / "out/table.csv").read_text("utf-8").splitlines()
    first, second = (f"学生 in {folder}" for folder in folders[:2])
    columns = [f"{model} {which}" for model in (first, "other", second, "teacher") for which in ("en", "zh", "zh - en")]
    assert head.split(",") == ["data set", "metric", *(name for name in columns if name[:7] != "other z")]
    assert rows == ["dtd,top-1,75.0,75.0,+0.0,2.0,25.0,25.0,+0.0,100.0,100.0,+0.0"]
    assert "| dtd | top-1 | teacher | **100.0** | **100.0** | +0.0 |" in (tmp_path / "out/table.md").read_text("utf-8")
    for chart in ("bars.svg", "zh-en.svg"):
        drawn = (tmp_path / "out" / chart).read_text("utf-8")
        assert "甲" in drawn and "teacher" in drawn and "dtd" in drawn
    merge_results(tmp_path / "out/dtd.json", tmp_path / "en")
    assert (tmp_path / "en/bars.svg").exists() and not (tmp_path / "en/zh-en.svg").exists()


def test_the_table_of_a_folder_has_all_its_data_sets_in_one_order(tmp_path: Path) -> None:
    sets: dict[str, Language] = {"pets-cn": "zh", "dtd": "en", "cars": "en"}
    for name in (*sets, "pets-cn"):
        save_report([result("学生", guesses(300), dataset=name, language=sets[name])], [], tmp_path / "out", Silent())
    lines = (tmp_path / "out/table.csv").read_text("utf-8").splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["pets", "dtd", "cars"]
    merge_results(tmp_path / "out", tmp_path / "again")
    for name in ("summary.json", "table.csv", "table.md"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    second = [result("学生", guesses(8), dataset="mnist", model_fingerprint="other weights")]
    save_report(second, [], tmp_path / "out", Silent())
    assert len((tmp_path / "out/table.csv").read_text("utf-8").splitlines()) == 2


def test_results_of_replaced_weights_do_not_come_back_with_those_of_another_model(tmp_path: Path) -> None:
    for dataset, models in {"dtd": {"学生": "a", "教师": "t"}, "cars": {"学生": "b"}, "pets": {"教师": "t"}}.items():
        rows = [result(name, guesses(9), dataset=dataset, model_fingerprint=models[name]) for name in models]
        save_results(rows, tmp_path)
    listed = [("教师", "dtd"), ("学生", "cars"), ("教师", "pets")]
    assert [(row["model"], row["dataset"]) for row in json.loads((tmp_path / "summary.json").read_bytes())] == listed
    assert [(row.model, row.dataset) for row in load_results(tmp_path)] == listed


def test_another_precision_than_fp32_is_named_next_to_the_model(tmp_path: Path) -> None:
    results = [result("学生", guesses(right), precision=name) for right, name in ((300, "fp32"), (299, "bf16"))]
    save_report(results, [], tmp_path, Silent())
    for name in ("table.md", "table.csv", "report.html", "bars.svg"):
        text = (tmp_path / name).read_text("utf-8")
        assert "学生 (bf16)" in text and "学生 (fp32)" not in text
    for row in results:
        save_results([row], tmp_path / row.precision)
    comparison = compare(str(tmp_path / "fp32"), str(tmp_path / "bf16"))
    assert (comparison.first, comparison.second) == ("学生", "学生 (bf16)")


def test_results_that_do_not_compare_are_not_side_by_side_without_a_remark(tmp_path: Path) -> None:
    first = result("甲", guesses(300))
    second = result("乙", guesses(300), class_names_sha256="others", n=399)
    remark = table([first, second]).rows[0].remark
    assert remark == "class names and numbers of images differ: not comparable"
    assert translated(remark, "zh") == "类别名和图片数量不同：不可比较"
    alike = replace(first, model="乙", indistinct=[["猫", "狗"]])
    assert table([first, alike]).rows[0].remark == "2 classes share an embedding with another class (乙)"
    assert table([alike]).rows[0].remark == "2 classes share an embedding with another class"
    save_results([first], tmp_path / "a")
    save_results([replace(first, value=0.5)], tmp_path / "b")
    with pytest.raises(DcclipError, match=r"甲 on dtd en is 0\.7500 and 0\.5000"):
        merge_results([tmp_path / "a", tmp_path / "b"], tmp_path / "out")


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "模型"))


def entries(folder: Path) -> dict[tuple[str, str], float]:
    data = ModelCard.load(folder / "README.md").data
    return {(entry.dataset_name, entry.dataset_config): entry.metric_value for entry in data.eval_results or []}


def test_both_languages_are_in_the_card_and_the_model_still_loads(folder: Path) -> None:
    en = result("学生", guesses(300))
    zh = result("学生", guesses(250), dataset="dtd-cn", language="zh")
    score = score_retrieval(np.eye(3), np.eye(3), [(0,), (1,), (2,)], True)
    ours = result("学生", score, "mean_recall", "我的图", "zh", task="retrieval")
    before = ModelCard.load(folder / "README.md")
    assert before.data.eval_results is None
    without = replace(en, dataset="mnist", corrupt={"3.png": "cut"})
    update_card(folder, [en, zh, ours, replace(en, dataset="pets", limit=7), replace(zh, task="linear probe"), without])
    card = ModelCard.load(folder / "README.md")
    assert entries(folder) == {("dtd", "en"): 75.0, ("dtd-cn", "zh"): 62.5, ("我的图", "zh"): 100.0}
    assert card.data.model_name == "学生" and card.text == before.text
    fields = {name: value for name, value in card.data.to_dict().items() if name != "model-index"}
    assert fields == before.data.to_dict() and fields["language"] == ["zh", "en"]
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
    file.unlink()
    update_card(folder, [result("m", guesses(200))])
    assert not file.exists()
