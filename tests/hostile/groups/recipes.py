"""Recipes, `--set` and `--out`: values, keys, YAML and paths that are none."""

from __future__ import annotations

import copy
import json
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.hostile.case import Case, Expect
from tests.hostile.corpus import COLLECT, RECIPE
from tests.hostile.damage import Change, at, damaged_bytes, deep, fifo, hostile_value, places, short, write

_PARTS = ("train.parquet", "teacher")
_WHOLE: dict[str, Any] = RECIPE | {
    "distill": RECIPE["distill"]
    | {"accumulate": 1, "ema": 0.9, "clip_norm": 1.0, "augment": {"rotate": 5.0, "scale": [0.9, 1.1], "blur": 0.5}}
    | {"captions": {"first": 0.5}, "losses": [{"kind": "embedding"}, {"kind": "interactive", "weight": 0.5}]},
    "align": RECIPE["align"] | {"cross_lingual": 0.25, "losses": [{"kind": "embedding"}]},
    "export": RECIPE["export"] | {"calibration_images": 8, "parity": {"min_agreement": 0.9}},
    "collect": COLLECT["collect"] | {"fetch": {"retries": 1, "max_bytes": 1000}, "needs": ["zh"]},
}
_COMMANDS = (("recipe", "show", "r.yaml"), ("run", "r.yaml", "--check"), ("distill", "r.yaml", "--check"))


def _dump(value: Any) -> str:
    return yaml.safe_dump(value, allow_unicode=True, sort_keys=False, width=10**9)


def is_strictly_wrong(old: Any, new: Any) -> bool:
    """Whether no strict option with the value `old` takes `new`: a number takes no truth value, text or infinity."""
    if isinstance(old, bool) or not isinstance(old, int | float):
        return isinstance(old, list) and isinstance(new, int | float)
    if isinstance(new, str | bool | list | dict):
        return True
    if isinstance(new, float) and (new != new or abs(new) == float("inf")):
        return True
    return isinstance(old, int) and isinstance(new, float) and not new.is_integer()


def value(random: Random) -> Case:
    """One value of a recipe with all stages."""
    recipe = copy.deepcopy(_WHOLE)
    place = random.choice(places(recipe))
    old, new = at(recipe, place), hostile_value(random)
    at(recipe, place[:-1])[place[-1]] = new
    wrong = is_strictly_wrong(old, new)
    command = random.choice(_COMMANDS)
    try:
        text = _dump(recipe).encode("utf-8")
    except UnicodeEncodeError:
        text = json.dumps(recipe).encode()
    name = f"{command[0]} {'.'.join(map(str, place))} = {short(new)}"
    expect = Expect.REFUSED if wrong else Expect.ANY
    return Case(name, command, _PARTS, write("r.yaml", text), expect)


_SET_KEYS = (
    *(
        "seed",
        "name",
        "distill.steps",
        "distill.optimizer.lr",
        "student.image.size",
        "student.text.heads",
        "eval.limit",
    ),
    *("student.image.timm", "data.train", "teacher.model", "teacher.kind", "distill.threads", "distill.augment.scale"),
    *(
        "nosuch.key",
        "distill.nosuch",
        "distill",
        "collect.shard_size",
        "eval.datasets",
        "a.b.c.d",
        "",
        ".",
        "distill..x",
    ),
    *("distill.losses.0.weight", "distill.losses.9.weight", "eval.datasets.0", "data", "distill.steps.x"),
)
_SET_VALUES = (
    *("", "true", "'12'", "1_000", "1e18", "-1", "0", "nan", ".inf", "1e400", "[", "{", "}", "[1, 2", "&a *a", "*a"),
    *("!!python/object/apply:os.system [id]", "!!binary aGk=", "2026-01-01", "0x10", "0o17", "1:30", "~", "null", "猫"),
    *(
        "\x1b[31m",
        "a: b: c",
        "- a",
        "9" * 400,
        "[" * 3000,
        "{a: " * 500,
        "%",
        "@",
        "`",
        "|",
        ">",
        "'",
        '"',
        "\t",
        "? a",
    ),
)


def override(random: Random) -> Case:
    """`--set` with a hostile key or value."""
    key, new = random.choice(_SET_KEYS), random.choice(_SET_VALUES)
    given = f"{key}={new}" if random.random() < 0.95 else random.choice((key, "=", f"={new}", f"{key} = {new}"))
    known_number = key in ("seed", "distill.steps", "student.image.size", "distill.threads")
    wrong = known_number and new in ("true", "'12'", "1e400", "nan", ".inf", "猫", "2026-01-01", "[1, 2")
    arguments = ["recipe", "show", "recipe.yaml", "--set", given]
    return Case(f"--set {short(given)}", arguments, ("recipe.yaml",), expect=Expect.REFUSED if wrong else Expect.ANY)


def bytes_of(random: Random) -> Case:
    """A recipe whose bytes are damaged."""
    content, seed = _dump(RECIPE).encode(), random.randrange(2**32)
    what, damaged = damaged_bytes(Random(seed), content)
    return Case(f"recipe.yaml: {what} ({seed:08x})", ["recipe", "show", "r.yaml"], (), write("r.yaml", damaged))


def _bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    return "\n".join(lines)


_SMALL = "name: a\n"
_DOCUMENTS: dict[str, tuple[bytes | str, Expect]] = {
    "empty": ("", Expect.REFUSED),
    "only a comment": ("# nothing\n", Expect.REFUSED),
    "a list": ("- a\n- b\n", Expect.REFUSED),
    "a number": ("12\n", Expect.REFUSED),
    "two documents": ("name: a\n---\nname: b\n", Expect.REFUSED),
    "a bomb of aliases": (_bomb(), Expect.REFUSED),
    "an alias to itself": ("name: a\neval: &e {datasets: [*e]}\n", Expect.REFUSED),
    "a python object": ("name: !!python/object/apply:os.system ['touch pwned']\n", Expect.REFUSED),
    "a python name": ("name: !!python/name:os.system\n", Expect.REFUSED),
    "a tag": ("name: !cat a\n", Expect.REFUSED),
    "a key twice": ("name: a\nname: b\n", Expect.REFUSED),
    "a merge key": ("a: &a {x: 1}\nname: b\n<<: *a\n", Expect.REFUSED),
    "a key that is a list": ("name: a\n? [1, 2]\n: 3\n", Expect.REFUSED),
    "a key that is null": ("name: a\n~: 3\n", Expect.REFUSED),
    "a key that is a date": ("name: a\n2026-01-01: 3\n", Expect.REFUSED),
    "tabs": ("name: a\neval:\n\tdatasets: [x]\n", Expect.REFUSED),
    "NUL": ("name: a\0b\n", Expect.REFUSED),
    "UTF-16": ("name: 猫\n".encode("utf-16"), Expect.REFUSED),
    "GB18030": ("name: 中文模型\n".encode("gb18030"), Expect.REFUSED),
    "UTF-8 with a mark": (b"\xef\xbb\xbfname: a\n", Expect.ANY),
    "a lone surrogate": ('name: "\\ud800"\n', Expect.REFUSED),
    "deep lists": ("name: " + "[" * 20_000, Expect.REFUSED),
    "deep closed lists": (f"name: a\neval: {'[' * 400}{']' * 400}\n", Expect.REFUSED),
    "a deep mapping": ("\n".join(" " * n + "a:" for n in range(1500)), Expect.REFUSED),
    "80,000 unknown keys": (_SMALL + "".join(f"k{n}: 1\n" for n in range(80_000)), Expect.REFUSED),
    "a list of 1 MB": (f"name: a\neval: {{datasets: [{', '.join(['a'] * 300_000)}]}}\n", Expect.ANY),
    "a name of 1 MB": (f"name: {'a' * 10**6}\n", Expect.REFUSED),
    "escapes in a name": ('name: "a\\e[2Jb"\n', Expect.REFUSED),
    "a name with a slash": ("name: ../../x\n", Expect.REFUSED),
    "a name of dots": ("name: ..\n", Expect.REFUSED),
    "a number for a name": ("name: 12\n", Expect.ANY),
    "a later format": ("format: 2\nname: a\n", Expect.REFUSED),
    "a format in words": ("format: one\nname: a\n", Expect.REFUSED),
    "an infinite rate": ("name: a\nalign: {steps: 1, optimizer: {lr: 1.0e+400}}\ndata: {train: x}\n", Expect.REFUSED),
    "JSON": ('{"name": "a"}', Expect.ANY),
    "JSON, cut": ('{"name": "a"', Expect.REFUSED),
    "HTML": ("<!DOCTYPE html><html>404</html>", Expect.REFUSED),
    "a pickle": (b"\x80\x04N.", Expect.REFUSED),
    "only CR": ("name: a\rseed: 1\r", Expect.ANY),
    "percent directive": ("%YAML 9.9\n---\nname: a\n", Expect.ANY),
    "an endless quote": ('name: "a\n' * 1000, Expect.REFUSED),
}


def document(random: Random) -> Case:
    """A file that is no recipe."""
    name = random.choice(list(_DOCUMENTS))
    content, expect = _DOCUMENTS[name]
    return Case(f"recipe: {name}", ["recipe", "show", "r.yaml"], (), write("r.yaml", content), expect)


def _loop(here: Path) -> None:
    (here / "loop").symlink_to("loop")


def _file(here: Path) -> None:
    (here / "file").write_text("years of work")


_PATHS: dict[str, tuple[str, Change]] = {
    "none": ("none.yaml", lambda here: None),
    "a folder": (".", lambda here: None),
    "an empty name": ("", lambda here: None),
    "below a file": ("file/r.yaml", _file),
    "300 letters": ("x" * 300 + ".yaml", lambda here: None),
    "5,000 letters": ("x/" * 2500 + "r.yaml", lambda here: None),
    "a loop": ("loop", _loop),
    "below a loop": ("loop/r.yaml", _loop),
    "/dev/null": (os.devnull, lambda here: None),
    "a FIFO": ("fifo", fifo("fifo")),
    "/dev/zero": ("/dev/zero", lambda here: None),
    "a newline": ("a\nb.yaml", lambda here: None),
    "an escape": ("\x1b[2J.yaml", lambda here: None),
    "not UTF-8": ("\udcff.yaml", lambda here: None),
}
_READING: tuple[Callable[[str], Sequence[str]], ...] = (
    lambda path: ["recipe", "show", path],
    lambda path: ["run", path],
    lambda path: ["distill", path, "--check"],
    lambda path: ["collect", path],
    lambda path: ["eval", path],
    lambda path: ["export", path],
)


def path(random: Random) -> Case:
    """A path that is no recipe."""
    name, command = random.choice(list(_PATHS)), random.choice(_READING)
    given, change = _PATHS[name]
    arguments = command(given)
    return Case(f"{arguments[0]} {name}", arguments, (), change, Expect.REFUSED, limit_s=15)


def _null(here: Path) -> None:
    """A device of its own: what moves a file into place would replace the machine's, run by root."""
    try:
        os.mknod(here / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        (here / "null").symlink_to(os.devnull)


_OUTS: dict[str, tuple[str, Change]] = {
    "a file": ("file", _file),
    "below a file": ("file/run", _file),
    "/dev/null": ("null", _null),
    "below /dev/null": ("null/x", _null),
    "300 letters": ("x" * 300, lambda here: None),
    "a loop": ("loop", _loop),
    "below a loop": ("loop/x", _loop),
    "below /proc": ("/proc/self/x", lambda here: None),
    "a FIFO": ("fifo", fifo("fifo")),
}
_WRITING: tuple[Callable[[str], Sequence[str]], ...] = (
    lambda out: ["distill", "recipe.yaml", "--out", out],
    lambda out: ["align", "recipe.yaml", "--out", out, "--set", "align.start=scratch"],
    lambda out: ["run", "recipe.yaml", "--out", out],
    lambda out: ["collect", "collect.yaml", "--out", out, "--workers", "1"],
    lambda out: ["export", "--model", "model", "--out", out],
    lambda out: ["eval", "--model", "bundle", "--dataset", "./train.parquet", "--out", out],
    lambda out: ["embed", "pictures", "--model", "bundle", "--out", f"{out}/e.npy"],
    lambda out: ["search", "猫", "pictures", "--model", "bundle", "--html", f"{out}/e.html"],
    lambda out: ["search", "猫", "pictures", "--model", "bundle", "--html", out],
)
_ALL = ("recipe.yaml", "collect.yaml", "table.tsv", "folder", "model", "bundle", "pictures", *_PARTS, "cache")


def out(random: Random) -> Case:
    """A place where nothing can be written."""
    name, command = random.choice(list(_OUTS)), random.choice(_WRITING)
    given, change = _OUTS[name]
    arguments = command(given)

    def check(here: Path, stdout: str) -> str:
        file = here / "file"
        return "" if not file.exists() or file.read_text() == "years of work" else "a file was overwritten"

    page = arguments[-2:] == ["--html", given] and name in ("a file", "/dev/null")
    expect = Expect.ANY if page else Expect.REFUSED
    checked = check if not page else lambda here, stdout: ""
    kind = "page" if "--html" in arguments else ""
    return Case(f"{arguments[0]}{kind} --out {name}", arguments, _ALL, change, expect, check=checked)


_UNKNOWN = ("stepz", "Steps", "steps ", "步数", "lr", "__class__", "model_config", "0", "distill")


def unknown(random: Random) -> Case:
    """A key that no section has."""
    section = random.choice(("", "teacher", "student", "student.image", "data", "distill", "distill.optimizer", "eval"))
    key, recipe = random.choice(_UNKNOWN), copy.deepcopy(RECIPE)
    holder = at(recipe, section.split(".") if section else [])
    if key in holder or (section == "distill.optimizer" and key == "lr"):
        key = "stepz"
    holder[key] = 1
    change = write("r.yaml", _dump(recipe))
    return Case(
        f"key {short(key)} in {section or 'the recipe'}", ["recipe", "show", "r.yaml"], (), change, Expect.REFUSED
    )


def nested(random: Random) -> Case:
    """A section that is nested too deep, or too long."""
    section, levels = random.choice(list(RECIPE)), random.choice((50, 500, 900, 5000))
    text = json.dumps(deep(levels)) if levels < 900 else "[" * levels + "]" * levels
    recipe = {key: value for key, value in RECIPE.items() if key != section}
    change = write("r.yaml", f"{_dump(recipe)}{section}: {text}\n")
    return Case(f"{section}: {levels} lists deep", ["recipe", "show", "r.yaml"], (), change, Expect.REFUSED)


RULES = (value, value, value, value, override, override, bytes_of, document, document, path, out, unknown, nested)
