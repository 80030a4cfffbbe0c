"""immich's metric: its recall, a model's memory and time, and its place on immich's own table."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from dcclip_cli.api import convert_results, evaluate
from dcclip_cli.data.pair import Language, Pair
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.leaderboards.immich import TABLE, Cost, Row, recall_of, row_of, table
from dcclip_cli.eval.registry import KnownSet
from dcclip_cli.eval.result import EvalResult
from tests.eval import layouts
from tests.eval.test_compare import guesses, result


def recalls(*values: float) -> EvalResult:
    metrics = {f"image_recall@{k}": value for k, value in zip((1, 5, 10), values, strict=True)}
    return replace(result("学生", guesses(1)), metrics=metrics)


def outclassed(own: Row, language: Language = "zh") -> list[str]:
    return [row.model for row in table(language) if own.outclasses(row)]


@pytest.mark.parametrize("language", ["zh", "en"])
def test_the_rule_gives_what_immich_itself_calls_optimal(language: Language) -> None:
    lines = [line for line in TABLE.read_text("utf-8").splitlines() if not line.startswith("#")]
    said = {row["model"]: row["optimal"] == "yes" for row in csv.DictReader(lines, delimiter="\t")
            if row["language"] == language}  # fmt: skip
    rows = table(language)
    assert {row.model: not any(other.outclasses(row) for other in rows) for row in rows} == said
    assert len(said) == {"zh": 19, "en": 53}[language]


def test_a_small_model_of_middling_recall_outclasses_what_is_worse_in_all() -> None:
    middling = recalls(0.5, 0.7, 0.786)
    assert recall_of(middling.metrics) == pytest.approx(0.662)
    assert outclassed(row_of(middling, Cost(400, 0.6, 0.4))) == [
        "ViT-L-16-SigLIP2-256__webli", "ViT-SO400M-14-SigLIP2__webli", "ViT-B-16-SigLIP2__webli",
        "ViT-B-32-SigLIP2-256__webli",
    ]  # fmt: skip


def test_the_time_of_both_towers_counts_and_an_equal_in_everything_does_not_outclass() -> None:
    [xlm] = [row for row in table("zh") if row.model.startswith("XLM-Roberta-Base")]
    equal, slower = (row_of(recalls(*[0.7252] * 3), Cost(3030, 2.3, text_ms)) for text_ms in (0.9, 1.0))
    assert equal.ms == 3.2 and not xlm.outclasses(equal) and not equal.outclasses(xlm)
    assert xlm.outclasses(slower)


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
    for one, found in zip(results, json.loads((out / "immich/metric.json").read_text("utf-8")), strict=True):
        assert (found["model"], found["language"]) == (one.model, one.language)
        assert found["recall"] == pytest.approx(sum(one.metrics[f"image_recall@{k}"] for k in (1, 5, 10)) / 3)
        assert 20 < found["memory_mib"] < 1000 and 0 < found["text_ms"] < 1000 and 0 < found["image_ms"] < 1000
        assert found["optimal"] == (not found["outclassed_by"])
    page = (out / "immich/table.md").read_text("utf-8")
    assert f"| **{results[0].model}** | {100 * found['recall']:.2f} |" in page
    assert "## immich's table, XM3600, en" in page and "XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k" in page
    with pytest.raises(DcclipError, match="no model is measured on all of XM3600"):
        convert_results(out, tmp_path / "again", formats=["immich"])
    with pytest.raises(DcclipError, match="no model is measured on all of XM3600"):  # fewer are found more easily
        evaluate(model=bundle_folder, datasets=both, data_root=tmp_path, out=out, formats=["immich"], limit=6)
