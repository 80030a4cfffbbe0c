"""immich's metric: recall of search on XM3600 with memory and time of a model, and its place on immich's table.

Recall is the mean of recall at 1, 5 and 10 of images by texts. Memory is the peak resident set of a process that
loads the model and embeds images and texts one at a time on the CPU; time is what an image and a text take then.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dcclip_cli.data.pair import Language
from dcclip_cli.errors import Message
from dcclip_cli.machine import peak_memory_bytes
from dcclip_cli.model import Precision
from dcclip_cli.model.reference import ModelReference
from dcclip_cli.processes import calls, process_pool

DATASET = "xm3600"
CAVEAT = Message(
    "Memory is the peak RSS, ms are those of an image and a text, one at a time. Yours were measured on this machine's "
    "CPU, on one thread, immich's on a Ryzen 7 7800X3D: only large differences compare."
)
_TABLE = Path(__file__).with_name("immich.tsv")


@dataclass(frozen=True)
class Row:
    """A model on the table; `recall` is in per cent."""

    model: str
    memory_mib: float
    ms: float
    recall: float

    def outclasses(self, other: Row) -> bool:
        """Whether it is at least as good in memory, time and recall and better in one, as immich defines it."""
        pairs = ((other.memory_mib, self.memory_mib), (other.ms, self.ms), (self.recall, other.recall))
        return all(one >= two for one, two in pairs) and any(one > two for one, two in pairs)


@dataclass(frozen=True)
class Cost:
    """What a model takes on this machine's CPU; times are medians for one image and one short text."""

    memory_mib: float
    image_ms: float
    text_ms: float


@dataclass(frozen=True)
class ImmichMetric:
    """The metric of one model in one language; `recall` is in 0..1.

    `optimal`: no model of immich's table is at least as good in everything and better in something. `outclassed_by`
    and `outclasses` are the models of the table that are, or to which it is.
    """

    recall: float
    memory_mib: float
    image_ms: float
    text_ms: float
    optimal: bool
    outclassed_by: list[str]
    outclasses: list[str]

    def row(self, model: str) -> Row:
        """It as a row of the table."""
        return _row(model, self.recall, Cost(self.memory_mib, self.image_ms, self.text_ms))


def _row(model: str, recall: float, cost: Cost) -> Row:
    # The table's time contains the text tower: XLM-R's 3.2 ms have the image tower of ViT-B-32's 2.3 ms.
    return Row(model, round(cost.memory_mib), round(cost.image_ms + cost.text_ms, 2), round(100 * recall, 2))


@functools.cache
def table(language: Language) -> tuple[Row, ...]:
    """immich's table for a language, best recall first."""
    lines = [line for line in _TABLE.read_text("utf-8").splitlines() if not line.startswith("#")]
    rows = [row for row in csv.DictReader(lines, delimiter="\t") if row["language"] == language]
    return tuple(Row(row["model"], float(row["memory_mib"]), float(row["ms"]), float(row["recall"])) for row in rows)


def metric(metrics: Mapping[str, float], language: Language, cost: Cost) -> ImmichMetric:
    """The metric of retrieval `metrics` in a language."""
    recall = sum(metrics[f"image_recall@{k}"] for k in (1, 5, 10)) / 3
    own = _row("", recall, cost)
    better = [row.model for row in table(language) if row.outclasses(own)]
    worse = [row.model for row in table(language) if own.outclasses(row)]
    return ImmichMetric(recall, cost.memory_mib, cost.image_ms, cost.text_ms, not better, better, worse)


@dataclass(frozen=True)
class Standing:
    """A row among others: `optimal` if none of them outclasses it, `own` if it is not immich's."""

    row: Row
    optimal: bool
    own: bool


def standings(language: Language, own: Mapping[str, ImmichMetric]) -> list[Standing]:
    """immich's table for a language with one's `own` models by name, best recall first."""
    mine = [one.row(model) for model, one in own.items()]
    rows = sorted([*mine, *table(language)], key=lambda row: -row.recall)
    return [Standing(row, not any(other.outclasses(row) for other in rows), row in mine) for row in rows]


def cost_of(reference: ModelReference, precision: Precision) -> Cost:
    """Memory and time of a model on the CPU, measured in a process that does nothing else."""
    hint = Message("free some memory, and run the command again: embeddings are cached")
    with process_pool(1, fresh=True) as pool:
        [cost] = calls(pool, _measure, [(reference, precision)], hint)
    return cost


def _measure(given: tuple[ModelReference, Precision]) -> Cost:
    from dcclip_cli.predict.encoder import footprint, load_encoder

    reference, precision = given
    found = footprint(load_encoder(reference, "cpu", precision))
    return Cost(round(peak_memory_bytes() / 2**20, 1), found.image_ms, found.text_ms)
