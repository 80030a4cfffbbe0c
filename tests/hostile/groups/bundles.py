"""Export bundles: dcclip.json, graphs and tokenizer, with and without the checksums that notice the damage first."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

from tests.hostile.case import Case, Expect
from tests.hostile.damage import Change, both, damage_file, damage_json, deep, emptied, swap_for

_PICTURE = "pictures/red-circle.png"
_PARTS = ("bundle", "pictures/red-circle.png")
PREDICT = ("predict", _PICTURE, "--labels", "猫,狗,red circle", "--model", "bundle", "--json", "-q")
_EMBED = ("embed", "--text", "猫", "--text", "a dog", "--model", "bundle", "-q")
_FILES = ("bundle/dcclip.json", "bundle/image.onnx", "bundle/text.onnx", "bundle/tokenizer.json")


def without_sums(about: dict[str, Any]) -> dict[str, Any]:
    """A bundle's description that lists no files: what else is checked must hold alone."""
    return about | {"files": {}}


def _command(random: Random) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (PREDICT, ()) if random.random() < 0.7 else (_EMBED, ("embeddings.npy",))


def damaged(random: Random) -> Case:
    """A damaged or missing file."""
    command, products = _command(random)
    what, change = damage_file(random, random.choice(_FILES))
    return Case(f"{command[0]} {what}", command, _PARTS, change, Expect.REFUSED_OR_SAME, products)


def described(random: Random) -> Case:
    """One thing in dcclip.json changed."""
    command, products = _command(random)
    what, change = damage_json(random, "bundle/dcclip.json")
    return Case(f"{command[0]} {what}", command, _PARTS, change, Expect.REFUSED_OR_SAME, products)


def old_described(random: Random) -> Case:
    """The same in a bundle without checksums."""
    command, _ = _command(random)
    what, change = damage_json(random, "bundle/dcclip.json", without_sums)
    return Case(f"{command[0]} without sums {what}", command, _PARTS, change)


def old_damaged(random: Random) -> Case:
    """A damaged graph or tokenizer in a bundle without checksums."""
    command, _ = _command(random)
    name = random.choice(_FILES[1:])
    what, change = damage_file(random, name, also_gone=False)

    def resealed(here: Path) -> None:
        file = here / "bundle/dcclip.json"
        about = without_sums(json.loads(file.read_text("utf-8")))
        about["tokenizer_sha256"] = sha256((here / "bundle/tokenizer.json").read_bytes()).hexdigest()
        file.write_text(json.dumps(about), "utf-8")

    return Case(f"{command[0]} without sums {what}", command, _PARTS, both(change, resealed))


_KEYS = ("context_length", "padding_id", "logit_scale", "logit_bias", "prompts", "preprocessing", "name", "parameters")
_VALUES: tuple[Any, ...] = (
    *(2**63, -(2**63), 10**400, 1e400, float("nan"), -1, 0, 1, True, None, "", "x", [], {}, [1], {"a": 1}, deep(900)),
    *({"zh": ["{}"] * 10_000}, {"zh": [1]}, {"zh": "{}"}, {"": ["{}"]}, {"zh": ["{}", None]}, {"mean": [0.5, 0.5]}),
    *({"size": 32, "mean": "x"}, {"mean": [[0.5], 0.5, 0.5]}, {"size": "32"}, {"size": 10**9}, {"std": [0, 0, 0]}),
    *({"interpolation": "x"}, {"size": 32, "interpolation": 3}, {"size": -32}, {"size": 32.5}, {"size": True}),
)


def value(random: Random) -> Case:
    """A hostile value for a key, in a bundle without checksums."""
    key, new = random.choice(_KEYS), random.choice(_VALUES)

    def change(here: Path) -> None:
        file = here / "bundle/dcclip.json"
        about = without_sums(json.loads(file.read_text("utf-8")))
        if key == "preprocessing" and isinstance(new, dict):
            about[key] |= new
        else:
            about[key] = new
        file.write_text(json.dumps(about), "utf-8")

    text = ascii(new)[:40]
    return Case(f"predict {key} = {text}", PREDICT, _PARTS, change)


def _rewritten(name: str, content: bytes) -> Change:
    return lambda here: (here / f"bundle/{name}").write_bytes(content)


def whole(random: Random) -> Case:
    """Another file in the place of a whole one."""
    changes: dict[str, Change] = {
        "text.onnx for image.onnx": swap_for("bundle/image.onnx", "bundle/text.onnx"),
        "image.onnx for text.onnx": swap_for("bundle/text.onnx", "bundle/image.onnx"),
        "dcclip.json for tokenizer.json": swap_for("bundle/tokenizer.json", "bundle/dcclip.json"),
        "a picture for image.onnx": swap_for("bundle/image.onnx", _PICTURE),
        "no folder": lambda here: shutil.rmtree(here / "bundle"),
        "an empty folder": emptied("bundle"),
        "[] for dcclip.json": _rewritten("dcclip.json", b"[]"),
        "null for dcclip.json": _rewritten("dcclip.json", b"null"),
        "depth for dcclip.json": _rewritten("dcclip.json", b'{"a":' * 100_000),
        "UTF-16 for dcclip.json": _rewritten("dcclip.json", '{"kind": "bundle"}'.encode("utf-16")),
        "{} for tokenizer.json": _rewritten("tokenizer.json", b"{}"),
        "depth for tokenizer.json": _rewritten("tokenizer.json", b"[" * 100_000),
    }
    name = random.choice(list(changes))
    command, _ = _command(random)
    return Case(f"{command[0]} {name}", command, _PARTS, changes[name], Expect.REFUSED)


RULES = (damaged, damaged, described, old_described, old_described, old_damaged, value, value, whole)
