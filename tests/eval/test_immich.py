"""immich's metric: its recall, a model's memory and time, and its place on immich's own table."""

import csv

import pytest

from dcclip_cli.data.pair import Language
from dcclip_cli.eval.leaderboards.immich import _TABLE, Cost, ImmichMetric, metric, standings, table


@pytest.mark.parametrize("language", ["zh", "en"])
def test_the_rule_gives_what_immich_itself_calls_optimal(language: Language) -> None:
    lines = [line for line in _TABLE.read_text("utf-8").splitlines() if not line.startswith("#")]
    said = {row["model"]: row["optimal"] == "yes" for row in csv.DictReader(lines, delimiter="\t")
            if row["language"] == language}  # fmt: skip
    assert {one.row.model: one.optimal for one in standings(language, {})} == said
    assert len(said) == {"zh": 19, "en": 53}[language]


def test_a_small_model_of_middling_recall_is_optimal_and_outclasses_what_is_worse_in_all() -> None:
    found = metric({"image_recall@1": 0.5, "image_recall@5": 0.7, "image_recall@10": 0.786}, "zh", Cost(400, 0.6, 0.4))
    assert found.recall == pytest.approx(0.662) and found.optimal and not found.outclassed_by
    assert found.outclasses == [
        "ViT-L-16-SigLIP2-256__webli", "ViT-SO400M-14-SigLIP2__webli", "ViT-B-16-SigLIP2__webli",
        "ViT-B-32-SigLIP2-256__webli",
    ]  # fmt: skip


def test_the_time_of_both_towers_counts_and_an_equal_in_everything_does_not_outclass() -> None:
    [xlm] = [row for row in table("zh") if row.model.startswith("XLM-Roberta-Base")]
    equal = ImmichMetric(0.7252, 3030, 2.3, 0.9, True, [], []).row("学生")
    assert equal.ms == 3.2 and not xlm.outclasses(equal) and not equal.outclasses(xlm)
    slower = metric({f"image_recall@{k}": 0.7252 for k in (1, 5, 10)}, "zh", Cost(3030, 2.3, 1.0))
    assert not slower.optimal and slower.outclassed_by == [xlm.model]
