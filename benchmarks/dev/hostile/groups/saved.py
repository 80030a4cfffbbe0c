"""What runs save: checkpoints, products of stages, and caches that no longer have the size that they were written with.

A cache whose bytes are others at the same size is not looked for: docs/explanation/design.md.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.dev.hostile.case import Case, Expect
from benchmarks.dev.hostile.corpus import DISTILL_HALF, EVAL, SEARCH
from benchmarks.dev.hostile.damage import NO_FIT, Change, damage_file, damage_json, emptied, file_for

_STATE = "stopped/distill/state/step-00000004"
_TRAINING = ("recipe.yaml", "train.parquet", "teacher", "cache/teacher-cache", "cache/index", "cache/teachers")
_RESUMED = ("stopped/distill/model/open_clip_model.safetensors",)


def _resumed(name: str, change: Change, expect: Expect = Expect.REFUSED_OR_SAME) -> Case:
    parts = ("stopped", *_TRAINING)
    return Case(f"distill {name}", DISTILL_HALF, parts, change, expect, _RESUMED, limit_s=60)


def state(random: Random) -> Case:
    """Damage to the tensors of a checkpoint, or to the JSON next to them, which lists their sum."""
    if random.random() < 0.6:
        return _resumed(*damage_file(random, f"{_STATE}/tensors.safetensors"))
    what, change = random.choice((damage_json, damage_file))(random, f"{_STATE}/state.json")
    return _resumed(what, change, Expect.ANY)


def _edit(**values: Any) -> Change:
    def change(here: Path) -> None:
        file = here / _STATE / "state.json"
        file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), "utf-8")

    return change


def _rewritten(name: str, content: bytes) -> Change:
    return lambda here: (here / "stopped" / name).write_bytes(content)


_EDITS: dict[str, Change] = {
    "step 5": _edit(step=5),
    "step 10^9": _edit(step=10**9),
    "step -1": _edit(step=-1),
    "step in words": _edit(step="4"),
    "step 4.5": _edit(step=4.5),
    "format 99": _edit(format=99),
    "format null": _edit(format=None),
    "no identity": _edit(identity=None),
    "an empty folder": emptied(_STATE),
    "a file for the folder": file_for(_STATE),
    "metrics.jsonl not UTF-8": _rewritten("distill/metrics.jsonl", b"\xff\n"),
    "metrics.jsonl cut": _rewritten("distill/metrics.jsonl", b'{"step": 1, "lo'),
    "metrics.jsonl a list": _rewritten("distill/metrics.jsonl", b"[]\n5\nnull\n"),
    "resolved.yaml empty": _rewritten("resolved.yaml", b""),
    "resolved.yaml binary": _rewritten("resolved.yaml", b"\xff\0"),
    "an older step": lambda here: shutil.copytree(here / _STATE, here / _STATE.replace("0004", "0002")),
    "an odd step": lambda here: (here / _STATE.replace("00000004", "x")).mkdir(),
    "model/ empty": lambda here: (here / "stopped/distill/model").mkdir(),
    "model/ a file": lambda here: (here / "stopped/distill/model").touch(),
}


def edited(random: Random) -> Case:
    """A state, or what is next to it, edited."""
    name = random.choice(list(_EDITS))
    return _resumed(name, _EDITS[name], Expect.ANY if "step" in name else Expect.REFUSED_OR_SAME)


_STAGES = ("distill/model/*", "align/model/*", "export/*", "*.*", "eval/*")
_AGAIN = (
    *(("run", "recipe.yaml"), ("align", "recipe.yaml"), ("distill", "recipe.yaml"), ("models",)),
    *(("predict", "pictures/red-circle.png", "--labels", "猫,dog"), ("eval", "recipe.yaml"), ("export", "recipe.yaml")),
)


def finished(random: Random) -> Case:
    """A finished run of which a file is damaged, and that is asked for again or used."""
    what, change = damage_file(random, f"runs/tiny/{random.choice(_STAGES)}")
    command = random.choice(_AGAIN)
    return Case(f"{command[0]} {what}", command, ("runs", "pictures", *_TRAINING), change, limit_s=60)


def collected(random: Random) -> Case:
    """Damage to what collect made, made again or used."""
    what, change = damage_file(random, "runs/gathered/collect/*")
    used = ("eval", *EVAL[1:4], "runs/gathered/collect", *EVAL[5:])
    command = random.choice((("collect", "collect.yaml", "-q"), ("index", "runs/gathered/collect"), used))
    parts = ("runs/gathered", "collect.yaml", "table.tsv", "folder", "model")
    return Case(f"{command[0]} {what}", command, parts, change)


_CACHES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {  # files: command, parts, products
    "cache/teacher-cache/**/*": (DISTILL_HALF, ("stopped", *_TRAINING), _RESUMED),
    "cache/index/*": (DISTILL_HALF, ("stopped", *_TRAINING), _RESUMED),
    "cache/features/**/*": (EVAL, ("model", "train.parquet", "cache/features", "cache/index"), ()),
    "cache/search/**/*": (SEARCH, ("bundle", "pictures", "cache"), ()),
    "indexed/*.arrow": (("index", "indexed", "-q"), ("indexed",), ()),
}


def cache(random: Random) -> Case:
    """A file of a cache cut, or something else in its place: it is made again, or the folder to delete is named."""
    pattern = random.choice(list(_CACHES))
    command, parts, products = _CACHES[pattern]
    what, change = damage_file(random, pattern, NO_FIT)
    return Case(f"{command[0]} {what}", command, parts, change, Expect.REFUSED_OR_SAME, products, limit_s=60)


RULES = (state, state, edited, finished, collected, cache, cache, cache)
