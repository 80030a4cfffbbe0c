"""The report shows the table, weak classes, confusions and wrong images, and loads nothing from outside."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dcclip_cli.api import convert_results
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Language, Pair
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.datasets import open_dataset
from dcclip_cli.eval.metrics import score_classes
from dcclip_cli.eval.report import errors_of, one_thing, write_report
from dcclip_cli.eval.result import save_results, table
from tests.eval import layouts
from tests.eval.test_compare import guesses, result

NAMES = ["猫", "狗", "<b>鸟</b>", "鱼"]


def test_weak_classes_and_confusions_are_counted() -> None:
    labels = np.asarray([0, 0, 0, 0, 1, 1, 2, 3])
    best = np.asarray([0, 1, 1, 2, 1, 0, 0, 3])
    one = result("a", score_classes(np.eye(4)[best], labels, "top1"), class_names=NAMES)
    found = errors_of(one, None)
    assert found is not None
    worst = [("<b>鸟</b>", 0.0, 1, "猫"), ("猫", 0.25, 4, "狗"), ("狗", 0.5, 2, "猫")]
    assert [tuple(weak.values()) for weak in found.worst] == worst
    confusions = [("猫", "狗", 2, 0.5), ("猫", "<b>鸟</b>", 1, 0.25)]
    assert [tuple(pair.values()) for pair in found.confusions[:2]] == confusions


def test_the_page_has_both_languages_and_shows_wrong_images(tmp_path: Path) -> None:
    names = ("猫", "狗", "鸟", "鱼")
    rows = [Pair(str(n), layouts.image(n % 4), zh=(names[n % 4],), en=(f"class {n % 4}",)) for n in range(400)]
    write_parquet(tmp_path / "四.parquet", rows)
    dataset = open_dataset(str(tmp_path / "四.parquet"))
    results = [
        result("模型", guesses(395), dataset="四", language="en"),
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
    assert not re.search(r"(?:src|href)=\"(?!data:|#)|<script|url\(", page)
    write_report(tmp_path / "again.html", results, [dataset])
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "report.html").read_bytes()


def test_probes_are_drawn_as_curves(tmp_path: Path) -> None:
    results = [result("a", guesses(100 + shots), task=f"linear probe, {shots} shots") for shots in (5, 20, 50)]
    write_report(tmp_path / "report.html", [*results, result("a", guesses(200), task="linear probe")])
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "Linear probes" in page and page.count("data:image/svg+xml") == 2
    assert "dtd, linear probe, 5 shots" in page


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
        each = [
            result(model, guesses(right), dataset=name, language=language, model_fingerprint=folder)
            for name, language in (("dtd", "en"), ("dtd-cn", "zh"))
        ]
        save_results([*each, result("other", guesses(8))], tmp_path / folder)
    folders = [tmp_path / name for name in ("甲", "乙", "丙")]
    convert_results(folders, tmp_path / "out")
    head, *rows = (tmp_path / "out/table.csv").read_text("utf-8").splitlines()
    first, second = (f"学生 in {folder}" for folder in folders[:2])
    own = [f"{model} {which}" for model in (first, "other", second, "teacher") for which in ("en", "zh", "zh - en")]
    assert head.split(",") == ["data set", "metric", *(name for name in own if name[:7] != "other z")]
    assert rows == ["dtd,top-1,75.0,75.0,+0.0,2.0,25.0,25.0,+0.0,100.0,100.0,+0.0"]
    for chart in ("bars.svg", "zh-en.svg"):
        drawn = (tmp_path / "out" / chart).read_text("utf-8")
        assert "甲" in drawn and "teacher" in drawn and "dtd" in drawn
    convert_results(tmp_path / "out/dtd.json", tmp_path / "out")  # English alone
    assert (tmp_path / "out/bars.svg").exists() and not (tmp_path / "out/zh-en.svg").exists()


def test_results_that_do_not_compare_are_not_side_by_side_without_a_remark(tmp_path: Path) -> None:
    one, other = result("甲", guesses(300)), result("乙", guesses(300), class_names_sha256="others", n=399)
    assert table([one, other]).rows[0].remark == "class names and numbers of images differ: do not compare"
    assert table([one, replace(one, model="乙")]).rows[0].remark == ""
    save_results([one], tmp_path / "a")
    save_results([replace(one, value=0.5)], tmp_path / "b")
    with pytest.raises(DcclipError, match=r"甲 on dtd en has 0\.7500 and 0\.5000"):
        convert_results([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
