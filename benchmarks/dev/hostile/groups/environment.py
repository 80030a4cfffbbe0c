"""Environment of the program: locale, closed descriptors, folders, variables. Here the real program is run."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

from benchmarks.dev.hostile.case import Case, Expect
from benchmarks.dev.hostile.damage import Change, both, fifo, write

_PICTURE = "pictures/red-circle.png"
_PARTS = ("bundle", "pictures", "recipe.yaml", "train.parquet")
_LIGHT: tuple[tuple[str, ...], ...] = (
    ("predict", _PICTURE, "--labels", "猫,dog", "--model", "bundle"),
    ("predict", _PICTURE, "none.png", "--labels", "猫,dog", "--model", "bundle", "--json"),
    ("search", "红圆", "pictures", "--model", "bundle"),
    ("embed", "--text", "猫", "--model", "bundle"),
    ("recipe", "show", "recipe.yaml"),
    ("recipe", "schema"),
    *(("models",), ("datasets",), ("--help",)),
)
# Cases: NAME=VALUE sets a variable, -NAME removes one.
_VARIABLES = """LANG=C; LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0; LC_ALL=POSIX PYTHONCOERCECLOCALE=0; -LANG;
LC_ALL=xx_YY.UTF-8; PYTHONIOENCODING=ascii; PYTHONIOENCODING=latin-1; PYTHONIOENCODING=utf-16; LANG=zh_CN.GB18030;
-HOME; HOME=/dev/null -DCCLIP_CACHE; HOME=/none/here -DCCLIP_CACHE; HOME= -DCCLIP_CACHE; DCCLIP_CACHE=/dev/null;
DCCLIP_CACHE=recipe.yaml; DCCLIP_CACHE=recipe.yaml/cache; DCCLIP_CACHE=; DCCLIP_CACHE=LONG; DCCLIP_CACHE=/proc/none;
TMPDIR=/none/here; -DCCLIP_CACHE XDG_CACHE_HOME=recipe.yaml; DCCLIP_MODEL=none; DCCLIP_MODEL=; WORLD_SIZE=2;
WORLD_SIZE=x RANK=y; RANK=1 LOCAL_RANK=1; COLUMNS=100000000; COLUMNS=0; COLUMNS=-5; COLUMNS=x LINES=y;
TERM=none FORCE_COLOR=1; OMP_NUM_THREADS=x; OMP_NUM_THREADS=0; OMP_NUM_THREADS=100000; CUDA_VISIBLE_DEVICES=7;
HF_ENDPOINT=x; HF_HOME=/dev/null; PYTHONOPTIMIZE=2; PYTHONWARNINGS=error::UserWarning;
-HOME -TMPDIR -LANG -DCCLIP_CACHE -OMP_NUM_THREADS""".replace("LONG", "x" * 300)


def variable(random: Random) -> Case:
    """An odd environment variable and a light command."""
    given, command = random.choice(_VARIABLES.split(";")).split(), random.choice(_LIGHT)
    environment = {one.lstrip("-").partition("=")[0]: None if one[0] == "-" else one.partition("=")[2] for one in given}
    name = f"{' '.join(given)[:60]}: {' '.join(command[:2])} {command[-1]}"
    return Case(name, command, _PARTS, environment=environment, program=True, limit_s=30)


def closed(random: Random) -> Case:
    """Closed standard streams."""
    which = random.choice(((0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)))
    command = random.choice((*_LIGHT, ("predict", "-", "--labels", "猫,dog", "--model", "bundle")))
    name = f"without {which}: {' '.join(command[:2])} {command[-1]}"
    return Case(name, command, _PARTS, program=True, closed=which, limit_s=30)


_LINES = """nosuch; --nosuch; predict; predict --nosuch; predict a.png --labels; search 猫; embed; embed PIC --text 猫;
embed PIC --out e.txt; export --check; eval; eval --set a=b; compare none PIC; index none; index *.none;
index recipe.yaml; index s3://none/x.tar; index https://127.0.0.1:9/x.tar; models x; doctor x; recipe nosuch;
datasets --data-root none; datasets --data-root recipe.yaml; recipe; recipe show; collect recipe.yaml;
collect recipe.yaml --engine none; collect recipe.yaml --engine slurm; collect recipe.yaml --limit 0;
collect recipe.yaml --workers -1; distill recipe.yaml --device cuda; predict PIC --labels 猫 --device cuda;
predict PIC --labels 猫 --json --csv; predict PIC --labels 猫 --template {} --no-template; distill --resume"""
_ARGUMENTS: tuple[tuple[str, ...], ...] = (
    *((), ("",), ("\udcff",), ("predict", "\udcff"), ("-" * 1000,), ("index", ""), ("index", "\x1b[2J")),
    *(("search", "", "pictures"), ("embed", _PICTURE, "--out", "")),
    *(tuple(line.split()) for line in _LINES.replace("PIC", _PICTURE).split(";")),
)
_FINE: tuple[tuple[str, ...], ...] = ((), ("recipe",), ("datasets", "--data-root", "none"))


def arguments(random: Random) -> Case:
    """Command lines that ask for nothing."""
    command = random.choice(_ARGUMENTS)
    expect = Expect.ANY if command in _FINE else Expect.REFUSED
    name = f"dcclip {ascii(' '.join(command))[:60]}"
    return Case(name, command, (*_PARTS, "teacher"), expect=expect, limit_s=30)


def _runs(*changes: tuple[str, bytes]) -> Change:
    def change(here: Path) -> None:
        for name, content in changes:
            write(f"runs/{name}", content)(here)

    return change


def runs(random: Random) -> Case:
    """A folder `runs` with odd things in it, which commands without --model look through."""
    odd: dict[str, Change] = {
        "a file": lambda here: (here / "runs").touch(),
        "a loop": lambda here: (here / "runs").symlink_to("runs"),
        "an empty run": lambda here: (here / "runs/a").mkdir(parents=True),
        "an odd export": _runs(("a/export/dcclip.json", b"[]")),
        "an empty model": lambda here: (here / "runs/a/align/model").mkdir(parents=True),
        "an odd model": _runs(("a/align/model/dcclip.json", b"\xff"), ("a/align/model/open_clip_config.json", b"{}")),
        "a name not UTF-8": lambda here: os.makedirs(os.fsencode(here / "runs/\udcff/export")),
        "an escape": lambda here: os.makedirs(here / "runs/\x1b[2J/export"),
        "a FIFO": both(_runs(("a/export/x", b"")), fifo("runs/a/export/dcclip.json")),
    }
    name = random.choice(list(odd))
    command = random.choice(
        (("models",), ("predict", _PICTURE, "--labels", "猫,dog"), ("doctor",), ("export", "--out", "o"))
    )
    return Case(f"{command[0]} with runs/: {name}", command, _PARTS[1:], odd[name], limit_s=60)


RULES = (variable, variable, closed, arguments, arguments, runs)
