"""Covering arrays over the options of distill and align, from the tables in pairs.yaml.

A row names a value of each option. Unless it breaks a rule, it is ready to run and trains well.
"""

import random
from collections.abc import Mapping, Set
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml
from allpairspy import AllPairs

from dcclip_cli.train.lora import is_projection
from tests.train.jobs import Job

Row = Mapping[str, str]  # the label of a value by option
Pair = tuple[tuple[str, str], tuple[str, str]]
Table = Mapping[str, Mapping[str, Job]]  # what a value sets in a job, by option and label
_FILE = yaml.safe_load(Path(__file__).with_name("pairs.yaml").read_text("utf-8"))
STAGES = ("distill", "align")
TABLES: dict[str, Table] = {
    stage: {
        option: _FILE["both"].get(option, {}) | _FILE[stage].get(option, {}) for option in _FILE[stage] | _FILE["both"]
    }
    for stage in STAGES
}
RULES: dict[str, list[dict[str, str]]] = _FILE["rules"]
RELATIONS: dict[str, dict[str, Any]] = _FILE["relations"]
# Values with which processes have the weights of one.
EXACT = {"norms": "frozen", "image": "network", "optimizer": "sgd", "precision": "fp32"}


def follows_rules(stage: str, row: Row, broken: Row | None = None) -> bool:
    """Whether a row, or the first values of one, breaks no rule but `broken`."""
    return not any(
        all(row.get(option) in labels.split() for option, labels in rule.items())
        for rule in RULES[stage]
        if rule != broken
    )


def pairs_of(row: Row) -> set[Pair]:
    """The pairs of values of two options that a row covers."""
    return set(combinations(row.items(), 2))


def all_pairs(table: Table) -> set[Pair]:
    """All pairs of values of two options."""
    values = [(option, label) for option, labels in table.items() for label in labels]
    return {(first, second) for first, second in combinations(values, 2) if first[0] != second[0]}


@cache
def quick_rows(stage: str) -> list[Row]:
    """Rows that cover all pairs of dangerous values; other options are plain."""
    table = {
        option: {
            label: values[label]
            for label in _FILE["dangerous"].get(option, next(iter(values))).split()
            if label in values
        }
        for option, values in TABLES[stage].items()
    }
    return _covering(stage, table, [])


@cache
def rows(stage: str) -> list[Row]:
    """Rows that cover all pairs of values that follow the rules, the quick ones first."""
    return _covering(stage, TABLES[stage], quick_rows(stage))


def _covering(stage: str, table: Table, rows: list[Row]) -> list[Row]:
    """These rows and others, which together cover all pairs of the table's values that follow the rules."""
    array = AllPairs(
        [[*values] for values in table.values()],
        lambda labels: follows_rules(stage, dict(zip(table, labels, strict=False))),
        [[*row.values()] for row in rows],
    )
    rows = [*rows, *(dict(zip(table, labels, strict=True)) for labels in array)]
    missing = all_pairs(table).difference(*map(pairs_of, rows))
    for pair in sorted(missing):  # where AllPairs stops: it looks for the next row from the first option on
        if pair in missing and (row := completed(stage, table, dict(pair), missing)):
            rows.append(row)
            missing -= pairs_of(row)
    return rows


def completed(
    stage: str, table: Table, fixed: Row, wanted: Set[Pair] = frozenset(), broken: Row | None = None
) -> Row | None:
    """A row with these values and many `wanted` pairs, which breaks no rule but `broken`; None if there is none."""

    def complete(row: Row, options: list[str]) -> Row | None:
        if not follows_rules(stage, {**fixed, **row}, broken):
            return None
        if not options:
            return row
        option, *further = options

        def new_pairs(label: str) -> int:
            return sum((value, (option, label)) in wanted for value in row.items())

        labels = [fixed[option]] if option in fixed else sorted(table[option], key=new_pairs, reverse=True)
        return next(filter(None, (complete({**row, option: label}, further) for label in labels)), None)

    return complete({}, [*table])


def name_of(stage: str, row: Row) -> str:
    """The values that are not plain, for the name of a test."""
    plain = {option: next(iter(values)) for option, values in TABLES[stage].items()}
    return "-".join(f"{option}.{label}" for option, label in row.items() if label != plain[option]) or "plain"


def job_of(stage: str, row: Row, root: Path) -> Job:
    """The job that a row describes, on the data in the current directory."""
    text = {"layers": 1, "width": 32, "context_length": 24, "vocabulary": {"from": "data", "size": 300}}
    image = {"timm": "test_efficientnet", "size": 32}
    job: Job = {
        "stage": stage,
        "root": str(root),
        "seed": 0,
        "teacher": None,
        "data": {"validation": "validation.parquet"},
        "student": {"image": image, "text": text, "embed_dim": 16 if stage == "align" else None},
        "options": {"steps": 4, "warmup_steps": 1, "log_every_steps": 1, "augmentations": 2},
    }
    if stage == "align":
        job["options"]["start"] = "tiny"
    for option, label in row.items():
        for key, value in TABLES[stage][option][label].items():
            *path, last = key.split(".")
            section = job if key.split(".")[0] in job else job["options"]
            for name in path:
                section[name] = dict(section.get(name, {}))
                section = section[name]
            section[last] = value
    return job


# ---- what a run must change, and what it must not


def is_frozen(row: Row, tensor: str) -> bool:
    """Whether a tensor of the model keeps its bytes."""
    tower = tensor.partition(".")[0]
    if tower == {"image": "visual", "text": "text"}.get(row.get("lock", "")):
        return True
    if tower == "visual" and "teacher" in (row.get("image"), row.get("start")):
        return True
    if "running_" in tensor or "num_batches_tracked" in tensor:
        return row["norms"] == "frozen"
    return tower == "visual" and row["rates"] == "noimage" and not is_projection(f".{tensor}")


def learning_towers(row: Row) -> set[str]:
    """The towers that have data and a loss to learn from."""
    data = {"visual": {row["train"], row["images"]} - {"points"}, "text": {row["train"], row["texts"]}}
    if row["losses"] == "layers" and row["rates"] == "noimage":  # no loss reaches the projection
        data["visual"] = set()
    return {tower for tower, kinds in data.items() if kinds - {"none"} and not is_frozen(row, f"{tower}.head.weight")}


def is_whole(row: Row) -> bool:
    """Whether the losses of a step do not depend on how its batch is split among processes."""
    compares = "lock" in row or row["losses"] in RELATIONS["accumulated"]["but"].split()  # the samples of a part
    return row["norms"] == "frozen" and row.get("image") != "mlp" and not (compares and row["parts"] in ("two", "four"))


# ---- samples of rows


def related_rows(name: str, stage: str, count: int = 6) -> list[Row]:
    """A random sample of the rows in which a relation holds, with the values that it needs."""
    relation, related = RELATIONS[name], []
    for row in rows(stage):
        row = {**row, **{option: label for option, label in relation["within"].items() if option in row}}
        both = [{**row, **relation["first"]}, {**row, **relation["second"]}]
        if row["losses"] not in relation["but"].split() and all(follows_rules(stage, row) for row in both):
            related.append(row)
    return random.Random(name).sample(related, min(count, len(related)))


def rows_for_processes(processes: int, count: int, stage: str) -> list[Row]:
    """A random sample of the rows whose batches can be split among processes, every second one with `EXACT` values."""
    labels = {2: "one two auto cached2 cachedauto", 4: "one auto cachedauto"}[processes].split()
    sample = random.Random(processes).sample([row for row in rows(stage) if row["parts"] in labels], count)
    exact = [{option: EXACT.get(option, label) for option, label in row.items()} for row in sample[::2]]
    sample[::2] = [new if follows_rules(stage, new) else row for new, row in zip(exact, sample[::2], strict=True)]
    return sample
