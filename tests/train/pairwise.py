"""Covering arrays over the options of distill and align, from the tables in pairs.yaml.

A row names a value of each option. Unless it breaks a rule, it is ready to run and trains well.
"""

import random
from pathlib import Path
from typing import Any

import yaml

from dcclip_cli.train.lora import is_projection
from tests.covering import CoveringArray, Row
from tests.train.jobs import Job

_FILE = yaml.safe_load(Path(__file__).with_name("pairs.yaml").read_text("utf-8"))
STAGES = ("distill", "align")
ARRAYS = {
    stage: CoveringArray(
        {key: _FILE["both"].get(key, {}) | _FILE[stage].get(key, {}) for key in _FILE[stage] | _FILE["both"]},
        _FILE["rules"][stage],
        _FILE["dangerous"],
    )
    for stage in STAGES
}
RELATIONS: dict[str, dict[str, Any]] = _FILE["relations"]
# Values with which processes have the weights of one.
EXACT = {"norms": "frozen", "image": "network", "optimizer": "sgd", "precision": "fp32"}


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
        for key, value in ARRAYS[stage].table[option][label].items():
            *path, last = key.split(".")
            section = job if key.split(".")[0] in job else job["options"]
            for name in path:
                section[name] = dict(section.get(name, {}))
                section = section[name]
            section[last] = value
    return job


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


def related_rows(name: str, stage: str, count: int = 6) -> list[Row]:
    """A random sample of the rows in which a relation holds, with the values that it needs."""
    relation = RELATIONS[name]
    related = []
    for row in ARRAYS[stage].rows:
        row = {**row, **{option: label for option, label in relation["within"].items() if option in row}}
        both = [{**row, **relation["first"]}, {**row, **relation["second"]}]
        if row["losses"] not in relation["but"].split() and all(map(ARRAYS[stage].follows_rules, both)):
            related.append(row)
    return random.Random(name).sample(related, min(count, len(related)))


def rows_for_processes(processes: int, count: int, stage: str) -> list[Row]:
    """A random sample of the rows whose batches can be split among processes, every second one with `EXACT` values."""
    labels = {2: "one two auto size cached2 cachedauto cachedsize", 4: "one auto cachedauto"}[processes].split()
    sample = random.Random(processes).sample([row for row in ARRAYS[stage].rows if row["parts"] in labels], count)
    exact = [{option: EXACT.get(option, label) for option, label in row.items()} for row in sample[::2]]
    allowed = ARRAYS[stage].follows_rules
    sample[::2] = [new if allowed(new) else row for new, row in zip(exact, sample[::2], strict=True)]
    return sample
