"""immich's metric: recall of search on XM3600 with memory and time of a model, and its place on immich's table.

Recall is the mean of recall at 1, 5 and 10 of images by texts. Memory is the peak resident set of a process that
loads the model and embeds images and texts one at a time on the CPU; time is what an image and a text take then.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dcclip_cli.data.pair import Language
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.eval.evaluate import EvalOptions
from dcclip_cli.eval.registry import base_name
from dcclip_cli.eval.result import EvalResult
from dcclip_cli.files import atomic_write, write_json
from dcclip_cli.inference.bench import Bench, bench
from dcclip_cli.model.reference import ModelSource

DATASET = "xm3600"
TABLE = Path(__file__).with_name("immich.tsv")
_CAVEAT = """Memory is the peak RSS, ms are those of an image and a text, one at a time. Models in bold were measured on
another machine's CPU, on one thread, the others by immich on a Ryzen 7 7800X3D: only large differences compare.
"""


@dataclass(frozen=True)
class PublishedModel:
    """A model on the table; `recall` is in per cent, `ms` is the time of both towers."""

    model: str
    memory_mib: float
    ms: float
    recall: float

    def outclasses(self, other: Self) -> bool:
        """Whether it is at least as good in memory, time and recall and better in one, as immich defines it."""
        pairs = ((other.memory_mib, self.memory_mib), (other.ms, self.ms), (self.recall, other.recall))
        return all(mine >= theirs for mine, theirs in pairs) and any(mine > theirs for mine, theirs in pairs)


def table(language: Language) -> list[PublishedModel]:
    """immich's table for a language, best recall first."""
    lines = [line for line in TABLE.read_text("utf-8").splitlines() if not line.startswith("#")]
    rows = [row for row in csv.DictReader(lines, delimiter="\t") if row["language"] == language]
    return [
        PublishedModel(row["model"], float(row["memory_mib"]), float(row["ms"]), float(row["recall"])) for row in rows
    ]


def check(options: EvalOptions | None, owner: str | None) -> None:
    """Raise DcclipError where no result of these options would be of all of XM3600."""
    if options and (options.limit or not any(base_name(name) == DATASET for name in options.names)):
        raise _nothing()


def _nothing() -> DcclipError:
    return DcclipError(
        "--format immich: no result covers all of XM3600",
        "evaluate a model on xm3600 or xm3600-cn, without --limit",
    )


def write(
    results: Sequence[EvalResult], folder: Path, owner: str | None, models: Mapping[str, ModelSource]
) -> list[str]:
    """Write metric.json, and table.md with the models in bold among those of immich's table, best recall first.

    Results on less than all of XM3600 are left out: fewer images are found more easily. A model is `optimal` if none of
    immich's table outclasses it.
    """
    in_full = [result for result in results if base_name(result.dataset) == DATASET and not result.limit]
    fit = [result for result in in_full if result.model_fingerprint in models]
    if not fit:
        raise _nothing()
    costs: dict[str, Bench] = {}
    for fingerprint, precision in {result.model_fingerprint: result.precision for result in fit}.items():
        [costs[fingerprint]] = bench([models[fingerprint]], precision="bf16" if precision == "bf16" else "fp32")
    metrics, pages = [], []
    for language in dict.fromkeys(result.language for result in fit):
        measured, published = [], table(language)
        for result in (result for result in fit if result.language == language):
            cost = costs[result.model_fingerprint]
            # The table's time contains the text tower: XLM-R's 3.2 ms have the image tower of ViT-B-32's 2.3 ms.
            ms = round(cost.image_ms + cost.text_ms, 2)
            recall = sum(result.metrics[f"image_recall@{k}"] for k in (1, 5, 10)) / 3
            memory_mib = round(cost.memory_bytes / 2**20, 1)
            row = PublishedModel(result.model, round(memory_mib), ms, round(100 * recall, 2))
            measured.append(row)
            better = [rival.model for rival in published if rival.outclasses(row)]
            worse = [rival.model for rival in published if row.outclasses(rival)]
            values = {"model": result.model, "language": language, "recall": recall}
            costs_of_model = {"memory_mib": memory_mib, "image_ms": cost.image_ms, "text_ms": cost.text_ms}
            places = {"optimal": not better, "outclassed_by": better, "outclasses": worse}
            metrics.append(values | costs_of_model | places)
        rows = sorted([*measured, *published], key=lambda row: -row.recall)
        lines = [f"## immich's table, XM3600, {language}\n", "| model | recall % | memory MiB | ms | Pareto optimal |"]
        lines.append("| --- | ---: | ---: | ---: | --- |")
        for row in rows:
            name = f"**{row.model}**" if row in measured else row.model
            optimal = "" if any(rival.outclasses(row) for rival in rows) else "yes"
            lines.append(f"| {name} | {row.recall:.2f} | {row.memory_mib:,.0f} | {row.ms:.2f} | {optimal} |")
        pages.append("\n".join([*lines, ""]))
    write_json(folder / "metric.json", metrics)
    atomic_write(folder / "table.md", "\n".join([*pages, _CAVEAT]))
    return [Message("immich's table with these models: {}", folder / "table.md")]
