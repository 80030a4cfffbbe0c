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

from benchmarks.dev.hostile import damage
from benchmarks.dev.hostile.case import Case, Expect
from benchmarks.dev.hostile.corpus import COLLECT, RECIPE
from benchmarks.dev.hostile.damage import Change, at, damaged_bytes, nothing, places, short, write

_PARTS = ("train.parquet", "teacher")
_MORE: dict[str, dict[str, Any]] = yaml.safe_load("""
distill: {accumulate: 1, ema: 0.9, clip_norm: 1.0, augment: {rotate: 5.0, scale: [0.9, 1.1], blur: 0.5},
          captions: {first: 0.5}, losses: [{kind: embedding}, {kind: interactive, weight: 0.5}]}
align: {cross_lingual: 0.25, losses: [{kind: embedding}]}
export: {calibration_images: 8, parity: {min_agreement: 0.9}}
collect: {fetch: {retries: 1, max_bytes: 1000}, needs: [zh]}
""")
_WHOLE: dict[str, Any] = RECIPE | {
    section: (RECIPE | COLLECT).get(section, {}) | more for section, more in _MORE.items()
}
_COMMANDS = (("recipe", "show", "r.yaml"), ("run", "r.yaml", "--check"), ("distill", "r.yaml", "--check"))


def _dump(value: Any) -> str:
    return yaml.safe_dump(value, allow_unicode=True, sort_keys=False, width=10**9)


def _is_strictly_wrong(old: Any, new: Any) -> bool:
    """Whether no strict option with the value `old` takes `new`: a number takes no truth value, text or infinity."""
    if isinstance(old, bool) or not isinstance(old, int | float):
        return isinstance(old, list) and isinstance(new, int | float)
    if isinstance(new, float) and (new != new or abs(new) == float("inf") or isinstance(old, int)):
        return not (abs(new) < float("inf") and new.is_integer())
    return isinstance(new, str | bool | list | dict)


def value(random: Random) -> Case:
    """One value of a recipe with all stages."""
    recipe = copy.deepcopy(_WHOLE)
    place, command = random.choice(places(recipe)), random.choice(_COMMANDS)
    old, new = at(recipe, place), damage.hostile_value(random)
    at(recipe, place[:-1])[place[-1]] = new
    try:
        text = _dump(recipe).encode("utf-8")
    except UnicodeEncodeError:
        text = json.dumps(recipe).encode()
    name = f"{command[0]} {'.'.join(map(str, place))} = {short(new)}"
    expect = Expect.REFUSED if _is_strictly_wrong(old, new) else Expect.ANY
    return Case(name, command, _PARTS, write("r.yaml", text), expect)


_NUMBERS = "seed distill.steps student.image.size distill.threads".split()
_SET_KEYS = (
    *(
        "",
        ".",
        *_NUMBERS,
        *"name distill.optimizer.lr student.text.heads eval.limit student.image.timm data.train".split(),
    ),
    *"teacher.model teacher.kind distill.augment.scale nosuch.key distill.nosuch distill collect.shard_size".split(),
    *"eval.datasets a.b.c.d distill..x distill.losses.0.weight eval.datasets.0 data distill.steps.x".split(),
)
_WRONG = ("true", "'12'", "1e400", "nan", ".inf", "猫", "2026-01-01", "[1, 2")
_SET_VALUES = (
    *(*_WRONG, "", "1_000", "1e18", "-1", "0", "[", "{", "}", "&a *a", "*a", "!!python/object/apply:os.system [id]"),
    *("!!binary aGk=", "0x10", "0o17", "1:30", "~", "null", "\x1b[31m", "a: b: c", "- a", "9" * 400, "[" * 3000),
    *("{a: " * 500, *"%@`|>'\"\t", "? a"),
)


def override(random: Random) -> Case:
    """`--set` with a hostile key or value."""
    key, new = random.choice(_SET_KEYS), random.choice(_SET_VALUES)
    given = f"{key}={new}" if random.random() < 0.95 else random.choice((key, "=", f"={new}", f"{key} = {new}"))
    expect = Expect.REFUSED if key in _NUMBERS and new in _WRONG else Expect.ANY
    return Case(
        f"--set {short(given)}", ["recipe", "show", "recipe.yaml", "--set", given], ("recipe.yaml",), expect=expect
    )


def _shown(name: str, content: bytes | str, expect: Expect) -> Case:
    return Case(name, ["recipe", "show", "r.yaml"], (), write("r.yaml", content), expect)


def bytes_of(random: Random) -> Case:
    """A recipe whose bytes are damaged."""
    seed = random.randrange(2**32)
    what, damaged = damaged_bytes(Random(seed), _dump(RECIPE).encode())
    return _shown(f"recipe.yaml: {what} ({seed:08x})", damaged, Expect.ANY)


_BOMB = [
    "a0: &a0 [x, x, x, x, x, x, x, x, x]",
    *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)),
]
_REFUSED: dict[str, bytes | str] = {
    "empty": "",
    "only a comment": "# nothing\n",
    "a list": "- a\n- b\n",
    "a number": "12\n",
    "two documents": "name: a\n---\nname: b\n",
    "a bomb of aliases": "\n".join(_BOMB),
    "an alias to itself": "name: a\neval: &e {datasets: [*e]}\n",
    "a python object": "name: !!python/object/apply:os.system ['touch pwned']\n",
    "a tag": "name: !cat a\n",
    "a key twice": "name: a\nname: b\n",
    "a merge key": "a: &a {x: 1}\nname: b\n<<: *a\n",
    "a key that is a list": "name: a\n? [1, 2]\n: 3\n",
    "a key that is null": "name: a\n~: 3\n",
    "a key that is a date": "name: a\n2026-01-01: 3\n",
    "tabs": "name: a\neval:\n\tdatasets: [x]\n",
    "NUL": "name: a\0b\n",
    "UTF-16": "name: 猫\n".encode("utf-16"),
    "GB18030": "name: 中文模型\n".encode("gb18030"),
    "a lone surrogate": 'name: "\\ud800"\n',
    "deep lists": "name: " + "[" * 20_000,
    "deep closed lists": f"name: a\neval: {'[' * 400}{']' * 400}\n",
    "a deep mapping": "\n".join(" " * n + "a:" for n in range(1500)),
    "80,000 unknown keys": "name: a\n" + "".join(f"k{n}: 1\n" for n in range(80_000)),
    "a name of 1 MB": f"name: {'a' * 10**6}\n",
    "escapes in a name": 'name: "a\\e[2Jb"\n',
    "a name with a slash": "name: ../../x\n",
    "a later format": "format: 2\nname: a\n",
    "a format in words": "format: one\nname: a\n",
    "an infinite rate": "name: a\nalign: {steps: 1, optimizer: {lr: 1.0e+400}}\ndata: {train: x}\n",
    "JSON, cut": '{"name": "a"',
    "HTML": "<!DOCTYPE html><html>404</html>",
    "a pickle": b"\x80\x04N.",
    "an endless quote": 'name: "a\n' * 1000,
}
_FINE: dict[str, bytes | str] = {
    "UTF-8 with a mark": b"\xef\xbb\xbfname: a\n",
    "a list of 1 MB": f"name: a\neval: {{datasets: [{', '.join(['a'] * 300_000)}]}}\n",
    "a number for a name": "name: 12\n",
    "JSON": '{"name": "a"}',
    "only CR": "name: a\rseed: 1\r",
    "percent directive": "%YAML 9.9\n---\nname: a\n",
}


def document(random: Random) -> Case:
    """A file that is no recipe."""
    name = random.choice([*_REFUSED, *_FINE])
    return _shown(f"recipe: {name}", (_REFUSED | _FINE)[name], Expect.REFUSED if name in _REFUSED else Expect.ANY)


def _loop(here: Path) -> None:
    (here / "loop").symlink_to("loop")


_file = write("file", "years of work")
_PATHS: dict[str, tuple[str, Change]] = {
    "none": ("none.yaml", nothing),
    "a folder": (".", nothing),
    "an empty name": ("", nothing),
    "below a file": ("file/r.yaml", _file),
    "300 letters": ("x" * 300 + ".yaml", nothing),
    "5,000 letters": ("x/" * 2500 + "r.yaml", nothing),
    "a loop": ("loop", _loop),
    "below a loop": ("loop/r.yaml", _loop),
    "/dev/null": (os.devnull, nothing),
    "a FIFO": ("fifo", damage.fifo("fifo")),
    "/dev/zero": ("/dev/zero", nothing),
    "a newline": ("a\nb.yaml", nothing),
    "an escape": ("\x1b[2J.yaml", nothing),
    "not UTF-8": ("\udcff.yaml", nothing),
}


def path(random: Random) -> Case:
    """A path that is no recipe."""
    name = random.choice(list(_PATHS))
    command = random.choice((["recipe", "show"], ["run"], ["distill", "--check"], ["collect"], ["eval"], ["export"]))
    return Case(f"{command[0]} {name}", [*command, _PATHS[name][0]], (), _PATHS[name][1], Expect.REFUSED, limit_s=15)


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
    "300 letters": ("x" * 300, nothing),
    "a loop": ("loop", _loop),
    "below a loop": ("loop/x", _loop),
    "below /proc": ("/proc/self/x", nothing),
    "a FIFO": ("fifo", damage.fifo("fifo")),
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
)
_ALL = ("recipe.yaml", "collect.yaml", "table.tsv", "folder", "model", "bundle", "pictures", *_PARTS, "cache")


def out(random: Random) -> Case:
    """A place where nothing can be written."""
    name, command = random.choice(list(_OUTS)), random.choice(_WRITING)
    arguments = command(_OUTS[name][0])

    def check(here: Path, stdout: str) -> str:
        file = here / "file"
        return "" if not file.exists() or file.read_text() == "years of work" else "a file was overwritten"

    return Case(f"{arguments[0]} --out {name}", arguments, _ALL, _OUTS[name][1], Expect.REFUSED, check=check)


def unknown(random: Random) -> Case:
    """A key that no section has."""
    section = random.choice(("", "teacher", "student", "student.image", "data", "distill", "distill.optimizer", "eval"))
    key, recipe = random.choice("stepz Steps 步数 lrs __class__ model_config 0 distil".split()), copy.deepcopy(RECIPE)
    at(recipe, section.split(".") if section else [])[key] = 1
    return _shown(f"key {key} in {section or 'the recipe'}", _dump(recipe), Expect.REFUSED)


RULES = (value, value, value, value, override, override, bytes_of, document, document, path, out, unknown)
