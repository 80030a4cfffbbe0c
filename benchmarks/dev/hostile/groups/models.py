"""Bundles, model directories of dcclip, and those of others: descriptions, tokenizers, graphs, safetensors, pickles."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.dev.hostile.case import Case, Expect
from benchmarks.dev.hostile.damage import Change, at, both, damage_file, damage_json, deep, emptied, file_for, swap_for

_PICTURE = "pictures/red-circle.png"
_LABELS = ("--labels", "猫,狗,red circle", "--json", "-q", "--model")
_EMBED = ("embed", "--text", "猫", "--text", "a dog", "-q", "--model")
_BUNDLE = ("dcclip.json", "image.onnx", "text.onnx", "tokenizer.json")
_MODEL = ("dcclip.json", "open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json")
_TEACHER = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")


def _command(random: Random, model: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A command that uses a model, and what it writes."""
    if random.random() < 0.7:
        return ("predict", _PICTURE, *_LABELS, model), ()
    return (*_EMBED, model), ("embeddings.npy",)


def damaged(random: Random) -> Case:
    """A damaged or missing file of a bundle or of a model directory of dcclip."""
    folder, files = random.choice((("bundle", _BUNDLE), ("model", _MODEL)))
    command, products = _command(random, folder)
    name = random.choice(files)
    what, change = damage_file(random, f"{folder}/{name}")
    expect = Expect.ANY if name == "dcclip.json" else Expect.REFUSED_OR_SAME  # which lists the sums of the others
    return Case(f"{command[0]} {what}", command, (folder, _PICTURE), change, expect, products)


def described(random: Random) -> Case:
    """One thing in a JSON file of a bundle or model directory changed."""
    name = random.choice(("bundle/dcclip.json", "model/dcclip.json", "model/open_clip_config.json"))
    command, products = _command(random, name.split("/")[0])
    what, change = damage_json(random, name)
    expect = Expect.ANY if "dcclip" in name else Expect.REFUSED_OR_SAME
    return Case(f"{command[0]} {what}", command, (name.split("/")[0], _PICTURE), change, expect, products)


# ---- directories of others: nothing says how they were


def _foreign(here: Path) -> None:
    (here / "model/dcclip.json").unlink()


def foreign(random: Random) -> Case:
    """One thing changed in a model directory of open_clip."""
    what, change = damage_json(random, f"model/{random.choice(('open_clip_config.json',) * 2 + ('tokenizer.json',))}")
    command, _ = _command(random, "model")
    return Case(f"{command[0]} open_clip's {what}", command, ("model", _PICTURE), both(change, _foreign))


_SIZES = (0, -1, 10**6, 10**9, "x", None, 1.5)
_CONFIG: dict[str, tuple[Any, ...]] = {
    "model_cfg": (None, [], "x", 1, {}, deep(500)),
    "preprocess_cfg": (None, [], "x", {"size": []}, {"mean": 5}, {"size": "x"}, {"resize_mode": "x"}, {"size": -1}),
    "model_cfg.vision_cfg": (None, [], "x", {}, {"timm_model_name": None}),
    "model_cfg.text_cfg": (None, [], "x", {}, {"layers": "x"}),
    "model_cfg.embed_dim": (*_SIZES, "16", True, [16]),
    "model_cfg.vision_cfg.timm_model_name": ("test_resnt", "", 5, None, "hf-hub:a/b", "local-dir:/etc", "../x", "a.b"),
    "model_cfg.vision_cfg.timm_pool": ("x", 5, None, "", "map"),
    "model_cfg.vision_cfg.timm_proj": ("x", 5, None, "mlp", "none"),
    "model_cfg.vision_cfg.image_size": (*_SIZES, [32, 80], []),
    "model_cfg.vision_cfg.timm_model_pretrained": (True, "x", 5),
    "model_cfg.text_cfg.context_length": (*_SIZES, 2),
    "model_cfg.text_cfg.vocab_size": (*_SIZES, 5),
    "model_cfg.text_cfg.layers": _SIZES,
    "model_cfg.text_cfg.width": (*_SIZES, 33),
    "model_cfg.text_cfg.heads": (*_SIZES, 7),
    "model_cfg.text_cfg.pool_type": ("x", 5, None, "first"),
    "model_cfg.text_cfg.hf_model_name": ("bert-base", "a/b", "../x", 5),
    "model_cfg.text_cfg.hf_tokenizer_name": ("bert-base", "../x", 5, None, "/etc"),
    "model_cfg.text_cfg.eos_id": (-1, 10**9, "x", None),
}


def config(random: Random) -> Case:
    """A hostile value in open_clip_config.json."""
    place = random.choice(list(_CONFIG))
    new = random.choice(_CONFIG[place])

    def change(here: Path) -> None:
        file = here / "model/open_clip_config.json"
        content = json.loads(file.read_text("utf-8"))
        *path, last = place.split(".")
        at(content, path)[last] = new
        file.write_text(json.dumps(content), "utf-8")
        _foreign(here)

    command = ("predict", _PICTURE, *_LABELS, "model")
    return Case(f"predict {place} = {ascii(new)[:40]}", command, ("model", _PICTURE), change, limit_s=20)


def _header(change: Callable[[dict[str, Any], dict[str, Any]], object] | bytes) -> Change:
    """A change of a safetensors file's header, given it and its first weight; or other bytes to begin with."""

    def rewrite(here: Path) -> None:
        file = here / "model/open_clip_model.safetensors"
        content = file.read_bytes()
        if isinstance(change, bytes):
            file.write_bytes(change + content[len(change) :])
        else:
            size = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + size])
            change(header, next(value for name, value in header.items() if name.endswith("weight")))
            new = json.dumps(header).encode()
            file.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + size :])
        _foreign(here)

    return rewrite


_HEADERS: dict[str, Change] = {
    "a dtype that is none": _header(lambda header, first: first.update(dtype="X99")),
    "another dtype": _header(lambda header, first: first.update(dtype="I32")),
    "a negative shape": _header(lambda header, first: first.update(shape=[-1])),
    "a huge shape": _header(lambda header, first: first.update(shape=[2**62])),
    "an empty shape": _header(lambda header, first: first.update(shape=[])),
    "offsets outside": _header(lambda header, first: first.update(data_offsets=[0, 2**60])),
    "offsets backwards": _header(lambda header, first: first.update(data_offsets=[8, 0])),
    "offsets in words": _header(lambda header, first: first.update(data_offsets="x")),
    "a tensor fewer": _header(lambda header, first: header.pop(next(iter(header)))),
    "a tensor renamed": _header(lambda header, first: header.update({"x": header.pop(next(iter(header)))})),
    "no tensors": _header(lambda header, first: header.clear()),
    "metadata in numbers": _header(lambda header, first: header.update(__metadata__={"a": 1})),
    "a header of 2**63 bytes": _header((2**63).to_bytes(8, "little")),
    "a header of 0 bytes": _header(bytes(8)),
    "no JSON": _header((100).to_bytes(8, "little") + b"[" * 100),
}


def safetensors(random: Random) -> Case:
    """A safetensors header that lies."""
    name = random.choice(list(_HEADERS))
    expect = Expect.ANY if name in ("metadata in numbers", "another dtype") else Expect.REFUSED
    command, _ = _command(random, "model")
    return Case(f"{command[0]} {name}", command, ("model", _PICTURE), _HEADERS[name], expect)


def teacher(random: Random) -> Case:
    """One thing changed or damaged in a model directory of transformers."""
    name = random.choice(_TEACHER)
    if random.random() < 0.6:
        what, change = damage_json(random, f"teacher/{name}")
    else:
        what, change = damage_file(random, f"teacher/{random.choice((name, '*model*'))}")
    command, _ = _command(random, "teacher")
    return Case(f"{command[0]} {what}", command, ("teacher", _PICTURE), change, limit_s=60)


class _Pwn:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def _pwn(here: Path) -> None:
    (here / "teacher/model.safetensors").unlink()
    (here / "teacher/pytorch_model.bin").write_bytes(pickle.dumps({"a": _Pwn()}))


def _rewritten(name: str, content: bytes) -> Change:
    return lambda here: (here / name).write_bytes(content)


_WHOLE: dict[str, Change] = {
    "text.onnx for bundle/image.onnx": swap_for("bundle/image.onnx", "bundle/text.onnx"),
    "image.onnx for bundle/text.onnx": swap_for("bundle/text.onnx", "bundle/image.onnx"),
    "dcclip.json for bundle/tokenizer.json": swap_for("bundle/tokenizer.json", "bundle/dcclip.json"),
    "a picture for bundle/image.onnx": swap_for("bundle/image.onnx", _PICTURE),
    "nothing for bundle/": lambda here: shutil.rmtree(here / "bundle"),
    "an empty folder for bundle/": emptied("bundle"),
    "[] for bundle/dcclip.json": _rewritten("bundle/dcclip.json", b"[]"),
    "null for bundle/dcclip.json": _rewritten("bundle/dcclip.json", b"null"),
    "depth for bundle/dcclip.json": _rewritten("bundle/dcclip.json", b'{"a":' * 100_000),
    "UTF-16 for bundle/dcclip.json": _rewritten("bundle/dcclip.json", '{"kind": "bundle"}'.encode("utf-16")),
    "{} for bundle/tokenizer.json": _rewritten("bundle/tokenizer.json", b"{}"),
    "depth for bundle/tokenizer.json": _rewritten("bundle/tokenizer.json", b"[" * 100_000),
    "code in a pickle for teacher/model.safetensors": _pwn,
    "another's for model/tokenizer.json": swap_for("model/tokenizer.json", "teacher/tokenizer.json"),
    "another's for model/*.safetensors": swap_for("model/open_clip_model.safetensors", "teacher/model.safetensors"),
    "an empty folder for model/": emptied("model"),
    "a file for model/": file_for("model"),
    "a recipe for model/*.safetensors": swap_for("model/open_clip_model.safetensors", "recipe.yaml"),
    "nothing for teacher/tokenizer.json": lambda here: (here / "teacher/tokenizer.json").unlink(),
    "nothing for teacher/config.json": lambda here: (here / "teacher/config.json").unlink(),
}


def whole(random: Random) -> Case:
    """Another file in the place of a whole one."""
    name = random.choice(list(_WHOLE))
    command, _ = _command(random, name.split(" for ")[1].split("/")[0])
    parts = ("bundle", "model", "teacher", "recipe.yaml", _PICTURE)

    def check(here: Path, stdout: str) -> str:
        return "code from a pickle ran" if (here / "pwned").exists() else ""

    return Case(f"{command[0]} {name}", command, parts, _WHOLE[name], Expect.REFUSED, check=check)


RULES = (damaged, damaged, damaged, described, described, foreign, config, config, safetensors, teacher, teacher, whole)
