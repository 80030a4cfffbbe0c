"""The report shows the table, weak classes, confusions and wrong images, and loads nothing from outside."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Language, Pair
from dcclip_cli.eval.datasets import open_dataset
from dcclip_cli.eval.metrics import score_classes
from dcclip_cli.eval.report import errors_of, one_thing, table, write_report
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
    assert page.count('src="data:image/svg+xml;base64,') == 1
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
