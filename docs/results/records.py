"""The measurements in this folder's CSV files, and the means that pages and plots make of them.

One row is one number: model, setup, data, split, language, metric, value, unit, seeds, machine
class, date, command.
"""

import csv
import re
import statistics
from collections.abc import Iterable
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
LANGUAGES = ("en", "zh")
# Test sets of the quick start and their images.
IMAGES = {"twemoji": 940, "emojione2": 696, "unseen": 210}
KNOWN, UNSEEN = "known classes, more drawings", "unseen classes, more drawings"
# The paper's questions: variants on photographs with the like ones of ablation.csv, if there are
# any; their teachers.
QUESTIONS = {
    "contrast alone": "contrast-only",
    "contrast alone, inherited tower": "",
    "feature maps, then contrast": "maps",
    "embeddings, then contrast": "embeddings",
    "embeddings, then contrast, inherited tower": "",
    "ours": "default",
}
TEACHERS = ("starter", "starter after align")
SENTENCES = "photographs with sentences"

Record = dict[str, str]


@cache
def records(name: str) -> tuple[Record, ...]:
    """The rows of NAME.csv, in the order of the file."""
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def select(found: Iterable[Record], **where: str) -> list[Record]:
    """The records that have these values, e.g. `select(rows, model="student", metric="top-1")`."""
    return [one for one in found if all(one[column] == value for column, value in where.items())]


def exact(record: Record) -> float:
    """The percentage before it was rounded to a tenth, where the number of images gives it away."""
    percentage, images = float(record["value"]), IMAGES.get(record["data"])
    return 100 * round(percentage * images / 100) / images if images else percentage


def runs(
    data: str, language: str, model: str, machine: str = "", metric: str = "top-1"
) -> list[float]:
    """A model's values, one for each run; with `machine` of those on it alone."""
    where = {"data": data, "language": language, "model": model, "metric": metric, "setup": ""}
    return [
        exact(one)
        for one in select(records("emoji"), **where, **({"machine": machine} if machine else {}))
    ]


def mean(data: str, language: str, model: str, machine: str = "", metric: str = "top-1") -> float:
    """The mean of a model's runs."""
    return statistics.mean(runs(data, language, model, machine, metric))


def over_seeds(found: Iterable[Record]) -> list[Record]:
    """A record for each group of runs that differ in the seed alone: its mean and standard
    deviation.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for one in found:
        model = re.sub(r", seed \d", "", one["model"])
        same = (model, *(one[name] for name in ("setup", "data", "language", "metric")))
        groups.setdefault(same, []).append(one | {"model": model, "seeds": ""})
    return [
        one[0] if len({run["value"] for run in one}) == 1 else averaged(one)
        for one in groups.values()
    ]


def averaged(found: list[Record]) -> Record:
    return found[0] | {"value": spread([exact(one) for one in found])}


def spread(values: list[float]) -> str:
    """The mean of runs, with the standard deviation of several."""
    return f"{statistics.mean(values):.1f}" + (
        f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    )


def only(file: str = "emoji", **where: str) -> float:
    """The one value with these properties."""
    (record,) = select(records(file), **where)
    return float(record["value"])
