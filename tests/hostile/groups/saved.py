"""What runs save: resume state, teacher cache, eval cache, search index, shard index; and finished stages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

from tests.hostile.case import Case, Expect
from tests.hostile.corpus import COLLECT_HALF, DISTILL_HALF, EVAL, PICKLED, SEARCH
from tests.hostile.damage import Change, damage_file, damage_json, emptied, file_for

_STATE = "stopped/distill/state/step-00000004"
_TRAINING = ("recipe.yaml", "train.parquet", "teacher", "cache/teacher-cache", "cache/index", "cache/teachers")
_RESUMED = ("stopped/distill/model/open_clip_model.safetensors",)


def state(random: Random) -> Case:
    """Damage to a file of the state that a run resumes from."""
    if random.random() < 0.5:
        what, change = damage_file(random, f"{_STATE}/{random.choice(('tensors.safetensors', 'state.json'))}")
    else:
        what, change = damage_json(random, f"{_STATE}/state.json")
    return Case(
        f"distill {what}", DISTILL_HALF, ("stopped", *_TRAINING), change, Expect.REFUSED_OR_SAME, _RESUMED, limit_s=60
    )


def _edit(**values: Any) -> Change:
    def change(here: Path) -> None:
        file = here / _STATE / "state.json"
        file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), "utf-8")

    return change


_EDITS: dict[str, Change] = {
    "step 5": _edit(step=5),
    "step 10^9": _edit(step=10**9),
    "step -1": _edit(step=-1),
    "step in words": _edit(step="4"),
    "step 4.5": _edit(step=4.5),
    "format 99": _edit(format=99),
    "format null": _edit(format=None),
    "scaler": _edit(scaler={"scale": -1}),
    "no identity": _edit(identity=None),
    "an empty folder": emptied(_STATE),
    "a file for the folder": file_for(_STATE),
    "metrics.jsonl not UTF-8": lambda here: (here / "stopped/distill/metrics.jsonl").write_bytes(b"\xff\n"),
    "metrics.jsonl cut": lambda here: (here / "stopped/distill/metrics.jsonl").write_bytes(b'{"step": 1, "lo'),
    "metrics.jsonl a list": lambda here: (here / "stopped/distill/metrics.jsonl").write_bytes(b"[]\n5\nnull\n"),
    "computed_in.json empty": lambda here: (here / "stopped/distill/computed_in.json").write_bytes(b""),
    "computed_in.json a list": lambda here: (here / "stopped/distill/computed_in.json").write_bytes(b"[]"),
    "resolved.yaml empty": lambda here: (here / "stopped/resolved.yaml").write_bytes(b""),
    "resolved.yaml binary": lambda here: (here / "stopped/resolved.yaml").write_bytes(b"\xff\0"),
    "an older step": lambda here: shutil.copytree(here / _STATE, here / _STATE.replace("0004", "0002")),
    "an odd step": lambda here: (here / _STATE.replace("00000004", "x")).mkdir(),
    "model/ empty": lambda here: (here / "stopped/distill/model").mkdir(),
    "model/ a file": lambda here: (here / "stopped/distill/model").touch(),
    "partial folders": lambda here: (here / f"{_STATE}/../.step-00000008.999999.partial").mkdir(),
}


def edited(random: Random) -> Case:
    """A state, or what is next to it, edited."""
    name = random.choice(list(_EDITS))
    return Case(
        f"distill {name}",
        DISTILL_HALF,
        ("stopped", *_TRAINING),
        _EDITS[name],
        Expect.REFUSED_OR_SAME,
        _RESUMED,
        limit_s=60,
    )


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


def teacher_cache(random: Random) -> Case:
    """Damage to the teacher's features, which are computed again."""
    names = ("images-*/*.safetensors", "texts/*.safetensors", "*/*")
    what, change = damage_file(random, f"cache/teacher-cache/*/{random.choice(names)}")
    return _made_again(f"distill {what}", DISTILL_HALF, ("stopped", *_TRAINING), change, _RESUMED)


def teacher_facts(random: Random) -> Case:
    """Damage to what is known of a teacher, or to the index of the training data."""
    what, change = damage_file(
        random, random.choice(("cache/teachers/*.json", "cache/index/*.arrow", "cache/blocks/*.block"))
    )
    return _made_again(f"distill {what}", DISTILL_HALF, ("stopped", "cache/blocks", *_TRAINING), change, _RESUMED)


def weights(random: Random) -> Case:
    """Damage to the copy of pickled weights."""
    what, change = damage_file(random, "cache/weights/*/*")
    return _made_again(f"predict {what}", PICKLED, ("pickled", "pictures", "cache/weights"), change)


def slices(random: Random) -> Case:
    """Damage to what a killed collect has done."""
    names = ("read/*/*.parquet", "read/*/*.json", "dedup/*", "plan.json")
    what, change = damage_file(random, f"half/.collect.partial/{random.choice(names)}")
    parts = ("half", "collect.yaml", "table.tsv", "folder")
    return _made_again(f"collect {what}", COLLECT_HALF, parts, change, ("half/collect/*.tar",))


def parent(random: Random) -> Case:
    """Damage to the model that stage 2 begins with."""
    what, change = damage_file(random, "runs/tiny/distill/model/*")
    made = ("runs/tiny/align/model/open_clip_model.safetensors",)
    command = ("align", "recipe.yaml", "--fresh", "-q")
    return Case(f"align {what}", command, ("runs", *_TRAINING), change, Expect.REFUSED_OR_SAME, made, limit_s=60)


def collected(random: Random) -> Case:
    """Damage to what collect made, made again or used."""
    what, change = damage_file(random, "runs/gathered/collect/*")
    command = random.choice(
        (("collect", "collect.yaml", "-q"), ("index", "runs/gathered/collect"), ("eval", *EVAL[1:4]))
    )
    command = (*command, "runs/gathered/collect", *EVAL[5:]) if command[0] == "eval" else command
    parts = ("runs/gathered", "collect.yaml", "table.tsv", "folder", "model")
    return Case(f"{command[0]} {what}", command, parts, change)


def eval_cache(random: Random) -> Case:
    """Damage to cached embeddings of test sets."""
    what, change = damage_file(random, f"cache/features/*/{random.choice(('*.safetensors', '*.safetensors', '*'))}")
    parts = ("model", "train.parquet", "cache/features", "cache/index")
    return _made_again(f"eval {what}", EVAL, parts, change)


def search_index(random: Random) -> Case:
    """Damage to the index of a folder of pictures."""
    inside = random.choice(("cache/**/*.safetensors", "pictures/.dcclip/*/*"))
    what, change = damage_file(random, inside)

    def spoil(here: Path) -> object:
        pattern = inside.removeprefix("cache/")
        root = here.parent / "cache" if inside.startswith("cache/") else here
        return change(here) if any(path.is_file() for path in root.glob(pattern)) else "there is none"

    return _made_again(f"search {what}", SEARCH, ("bundle", "pictures", "cache"), spoil)


def shard_index(random: Random) -> Case:
    """Damage to the index of a shard."""
    what, change = damage_file(random, "indexed/*.index.arrow")
    command = random.choice((("index", "indexed", "-q"), ("eval", *EVAL[1:4], "indexed/pairs.tar", *EVAL[5:])))
    return _made_again(f"{command[0]} {what}", command, ("indexed", "model"), change)


def _made_again(
    name: str, command: tuple[str, ...], parts: tuple[str, ...], change: Change, products: tuple[str, ...] = ()
) -> Case:
    """What can be made again is made again, whatever is wrong with it, unless it is a folder or a link by now."""
    replaced = name.endswith((": folder", ": loop", ": dangling"))
    expect = Expect.REFUSED_OR_SAME if replaced else Expect.SAME
    return Case(name, command, parts, change, expect, products, limit_s=60)


RULES = (
    *(state, state, edited, finished, teacher_cache, teacher_facts, eval_cache, eval_cache),
    *(search_index, search_index, shard_index, weights, slices, slices, parent, collected),
)
