"""Model directories, dcclip's and others': configurations, tokenizers, preprocessing, safetensors and pickles."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.hostile.case import Case, Expect
from tests.hostile.damage import Change, at, both, damage_file, damage_json, deep, emptied, file_for, swap_for

_PICTURE = "pictures/red-circle.png"
_PARTS = ("model", _PICTURE)
_LABELS = ("--labels", "猫,dog", "--json", "-q", "--model")
_PREDICT = ("predict", _PICTURE, *_LABELS, "model")
_FILES = ("open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json", "dcclip.json")


def damaged(random: Random) -> Case:
    """A damaged or missing file of a model directory."""
    what, change = damage_file(random, f"model/{random.choice(_FILES)}")
    return Case(f"predict {what}", _PREDICT, _PARTS, change, Expect.REFUSED_OR_SAME)


def described(random: Random) -> Case:
    """One thing in a JSON file of a model directory changed."""
    name = random.choice((*_FILES[:1], *_FILES[2:]))
    what, change = damage_json(random, f"model/{name}")
    return Case(f"predict {what}", _PREDICT, _PARTS, change, Expect.REFUSED_OR_SAME)


def _without_sums(here: Path) -> None:
    file = here / "model/dcclip.json"
    about = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(about | {"files": {}}), "utf-8")


def old_described(random: Random) -> Case:
    """The same in a model directory without checksums, or in one of open_clip itself."""
    name = random.choice(("open_clip_config.json", "open_clip_config.json", "tokenizer.json"))
    what, change = damage_json(random, f"model/{name}")
    foreign = random.random() < 0.5

    def old(here: Path) -> None:
        (here / "model/dcclip.json").unlink() if foreign else _without_sums(here)

    kind = "open_clip's" if foreign else "without sums"
    return Case(f"predict {kind} {what}", _PREDICT, _PARTS, both(change, old))


_CONFIG: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("model_cfg", (None, [], "x", 1, {}, deep(500))),
    (
        "preprocess_cfg",
        (None, [], "x", {"size": []}, {"mean": 5}, {"size": "x"}, {"resize_mode": "longest"}, {"size": -1}),
    ),
    ("model_cfg.vision_cfg", (None, [], "x", {}, {"timm_model_name": None})),
    ("model_cfg.text_cfg", (None, [], "x", {}, {"layers": "x"})),
    ("model_cfg.embed_dim", (0, -1, 10**7, 1.5, "16", None, True, [16])),
    (
        "model_cfg.vision_cfg.timm_model_name",
        ("test_resnt", "", 5, None, "hf-hub:a/b", "local-dir:/etc", "../x", "a.b.c"),
    ),
    ("model_cfg.vision_cfg.timm_pool", ("x", 5, None, "", "map")),
    ("model_cfg.vision_cfg.timm_proj", ("x", 5, None, "mlp", "none")),
    ("model_cfg.vision_cfg.image_size", (0, -1, 10**6, "x", [32, 80], None, [])),
    ("model_cfg.vision_cfg.timm_model_pretrained", (True, "x", 5)),
    ("model_cfg.text_cfg.context_length", (0, -1, 10**9, "x", None, 1.5, 2)),
    ("model_cfg.text_cfg.vocab_size", (0, -1, 10**9, "x", None, 5)),
    ("model_cfg.text_cfg.layers", (0, -1, 10**6, "x", None)),
    ("model_cfg.text_cfg.width", (0, -1, 33, 10**6, "x", None)),
    ("model_cfg.text_cfg.heads", (0, -1, 7, 10**6, "x", None)),
    ("model_cfg.text_cfg.pool_type", ("x", 5, None, "first")),
    ("model_cfg.text_cfg.hf_model_name", ("bert-base", "a/b", "../x", 5)),
    ("model_cfg.text_cfg.hf_tokenizer_name", ("bert-base", "../x", 5, None, "/etc")),
    ("model_cfg.text_cfg.eos_id", (-1, 10**9, "x", None)),
)


def config(random: Random) -> Case:
    """A hostile value in open_clip_config.json, without checksums."""
    place, values = random.choice(_CONFIG)
    new, foreign = random.choice(values), random.random() < 0.3

    def change(here: Path) -> None:
        file = here / "model/open_clip_config.json"
        content = json.loads(file.read_text("utf-8"))
        *path, last = place.split(".")
        at(content, path)[last] = new
        file.write_text(json.dumps(content), "utf-8")
        (here / "model/dcclip.json").unlink() if foreign else _without_sums(here)

    kind = "open_clip's" if foreign else "without sums"
    return Case(f"predict {kind} {place} = {ascii(new)[:40]}", _PREDICT, _PARTS, change, limit_s=20)


def _header(change: Callable[[dict[str, Any]], object]) -> Change:
    """A change of a safetensors file's header."""

    def rewrite(here: Path) -> None:
        file = here / "model/open_clip_model.safetensors"
        content = file.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        change(header)
        new = json.dumps(header).encode()
        file.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + size :])
        _without_sums(here)

    return rewrite


def _first(header: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(value for name, value in header.items() if name.endswith("weight"))
    return found


def _raw_header(start: bytes) -> Change:
    def rewrite(here: Path) -> None:
        file = here / "model/open_clip_model.safetensors"
        file.write_bytes(start + file.read_bytes()[len(start) :])
        _without_sums(here)

    return rewrite


_HEADERS: dict[str, Change] = {
    "a dtype that is none": _header(lambda header: _first(header).update(dtype="X99")),
    "another dtype": _header(lambda header: _first(header).update(dtype="I32")),
    "a negative shape": _header(lambda header: _first(header).update(shape=[-1])),
    "a huge shape": _header(lambda header: _first(header).update(shape=[2**62])),
    "an empty shape": _header(lambda header: _first(header).update(shape=[])),
    "offsets outside": _header(lambda header: _first(header).update(data_offsets=[0, 2**60])),
    "offsets backwards": _header(lambda header: _first(header).update(data_offsets=[8, 0])),
    "offsets in words": _header(lambda header: _first(header).update(data_offsets="x")),
    "a tensor fewer": _header(lambda header: header.pop(next(iter(header)))),
    "a tensor renamed": _header(lambda header: header.update({"x": header.pop(next(iter(header)))})),
    "no tensors": _header(lambda header: header.clear()),
    "metadata in numbers": _header(lambda header: header.update(__metadata__={"a": 1})),
    "a header of 2**63 bytes": _raw_header((2**63).to_bytes(8, "little")),
    "a header of 0 bytes": _raw_header(bytes(8)),
    "no JSON": _raw_header((100).to_bytes(8, "little") + b"[" * 100),
}


def safetensors(random: Random) -> Case:
    """A safetensors header that lies, without checksums."""
    name = random.choice(list(_HEADERS))
    parts, foreign = _PARTS, random.random() < 0.4
    change = both(_HEADERS[name], lambda here: (here / "model/dcclip.json").unlink()) if foreign else _HEADERS[name]
    expect = Expect.ANY if name in ("metadata in numbers", "another dtype") else Expect.REFUSED
    return Case(f"predict {'foreign ' if foreign else ''}{name}", _PREDICT, parts, change, expect)


_TEACHERS = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")


def teacher(random: Random) -> Case:
    """One thing changed or damaged in a model directory of transformers."""
    folder = random.choice(("teacher", "teacher", "pickled"))
    name = random.choice(_TEACHERS)
    if random.random() < 0.6:
        what, change = damage_json(random, f"{folder}/{name}")
    else:
        what, change = damage_file(random, f"{folder}/{random.choice((name, '*model*'))}")
    arguments = ["predict", _PICTURE, *_LABELS, folder]
    return Case(f"predict {what}", arguments, (folder, _PICTURE), change, limit_s=60)


def _pwn(here: Path) -> None:
    import pickle

    class Pwn:
        def __reduce__(self) -> tuple[Any, ...]:
            import os

            return os.system, ("touch pwned",)

    (here / "pickled/pytorch_model.bin").write_bytes(pickle.dumps({"a": Pwn()}))


def whole(random: Random) -> Case:
    """Another file in the place of a whole one."""
    changes: dict[str, tuple[str, Change]] = {
        "a pickle that runs code": ("pickled", _pwn),
        "tokenizer.json of another model": ("model", swap_for("model/tokenizer.json", "teacher/tokenizer.json")),
        "weights of another model": (
            "model",
            swap_for("model/open_clip_model.safetensors", "teacher/model.safetensors"),
        ),
        "an empty folder": ("model", emptied("model")),
        "no folder": ("model", lambda here: shutil.rmtree(here / "model")),
        "a file": ("model", file_for("model")),
        "a recipe for weights": ("model", swap_for("model/open_clip_model.safetensors", "recipe.yaml")),
        "no tokenizer": ("teacher", lambda here: (here / "teacher/tokenizer.json").unlink()),
        "no configuration": ("teacher", lambda here: (here / "teacher/config.json").unlink()),
    }
    name = random.choice(list(changes))
    folder, change = changes[name]
    arguments = ["predict", _PICTURE, *_LABELS, folder]
    parts = ("model", "teacher", "pickled", "recipe.yaml", _PICTURE)

    def check(here: Path, stdout: str) -> str:
        return "code from a pickle ran" if (here / "pwned").exists() else ""

    return Case(f"predict {name}", arguments, parts, change, Expect.REFUSED, check=check)


RULES = (damaged, described, old_described, old_described, config, config, safetensors, teacher, teacher, whole)
