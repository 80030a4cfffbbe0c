"""Environment of the program: locale, closed descriptors, folders, limits, variables. Here the real program is run."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

from tests.hostile.case import Case, Expect
from tests.hostile.damage import Change, both, fifo, write

_PICTURE = "pictures/red-circle.png"
_PARTS = ("bundle", "pictures", "recipe.yaml", "train.parquet", "results")
_LIGHT: tuple[tuple[str, ...], ...] = (
    ("predict", _PICTURE, "--labels", "猫,dog", "--model", "bundle"),
    ("predict", _PICTURE, "none.png", "--labels", "猫,dog", "--model", "bundle", "--json"),
    ("search", "红圆", "pictures", "--model", "bundle"),
    ("embed", "--text", "猫", "--model", "bundle"),
    ("recipe", "show", "recipe.yaml"),
    ("recipe", "schema"),
    ("models",),
    ("--help",),
    ("eval", "--help"),
    ("datasets",),
)
_VARIABLES: dict[str, dict[str, str | None]] = {
    "LANG=C": {"LANG": "C"},
    "LC_ALL=C without UTF-8 mode": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "LC_ALL=POSIX": {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"},
    "no locale": {"LANG": None},
    "a locale that is none": {"LC_ALL": "xx_YY.UTF-8"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "UTF-16": {"PYTHONIOENCODING": "utf-16"},
    "an encoding that is none": {"LANG": "zh_CN.GB18030"},
    "no HOME": {"HOME": None},
    "HOME=/dev/null": {"HOME": "/dev/null", "DCCLIP_CACHE": None},
    "HOME=none": {"HOME": "/none/here", "DCCLIP_CACHE": None},
    "HOME=''": {"HOME": "", "DCCLIP_CACHE": None},
    "DCCLIP_CACHE=/dev/null": {"DCCLIP_CACHE": "/dev/null"},
    "DCCLIP_CACHE a file": {"DCCLIP_CACHE": "recipe.yaml"},
    "DCCLIP_CACHE below a file": {"DCCLIP_CACHE": "recipe.yaml/cache"},
    "DCCLIP_CACHE=''": {"DCCLIP_CACHE": ""},
    "DCCLIP_CACHE of 300 letters": {"DCCLIP_CACHE": "x" * 300},
    "DCCLIP_CACHE=/proc": {"DCCLIP_CACHE": "/proc/none"},
    "TMPDIR=none": {"TMPDIR": "/none/here"},
    "XDG_CACHE_HOME a file": {"DCCLIP_CACHE": None, "XDG_CACHE_HOME": "recipe.yaml"},
    "DCCLIP_MODEL=none": {"DCCLIP_MODEL": "none"},
    "DCCLIP_MODEL=''": {"DCCLIP_MODEL": ""},
    "WORLD_SIZE=2": {"WORLD_SIZE": "2"},
    "WORLD_SIZE=x": {"WORLD_SIZE": "x", "RANK": "y"},
    "RANK=1": {"RANK": "1", "LOCAL_RANK": "1"},
    "COLUMNS=100000000": {"COLUMNS": "100000000"},
    "COLUMNS=0": {"COLUMNS": "0"},
    "COLUMNS=-5": {"COLUMNS": "-5"},
    "COLUMNS=x": {"COLUMNS": "x", "LINES": "y"},
    "TERM=none": {"TERM": "none", "FORCE_COLOR": "1"},
    "OMP_NUM_THREADS=x": {"OMP_NUM_THREADS": "x"},
    "OMP_NUM_THREADS=0": {"OMP_NUM_THREADS": "0"},
    "OMP_NUM_THREADS=100000": {"OMP_NUM_THREADS": "100000"},
    "CUDA_VISIBLE_DEVICES=7": {"CUDA_VISIBLE_DEVICES": "7"},
    "HF_ENDPOINT=x": {"HF_ENDPOINT": "x"},
    "HF_HOME=/dev/null": {"HF_HOME": "/dev/null"},
    "PYTHONOPTIMIZE=2": {"PYTHONOPTIMIZE": "2"},
    "PYTHONWARNINGS=error": {"PYTHONWARNINGS": "error::UserWarning"},
    "nothing": dict.fromkeys(("HOME", "TMPDIR", "LANG", "DCCLIP_CACHE", "OMP_NUM_THREADS")),
}


def variable(random: Random) -> Case:
    """An odd environment variable and a light command."""
    name, command = random.choice(list(_VARIABLES)), random.choice(_LIGHT)
    case = f"{name}: {' '.join(command[:2])} {command[-1]}"
    return Case(case, command, _PARTS, environment=_VARIABLES[name], program=True, limit_s=30)


def closed(random: Random) -> Case:
    """Closed standard streams."""
    which = random.choice(((0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)))
    command = random.choice((*_LIGHT, ("predict", "-", "--labels", "猫,dog", "--model", "bundle")))
    name = f"without {which}: {' '.join(command[:2])} {command[-1]}"
    return Case(name, command, _PARTS, program=True, closed=which, limit_s=30)


_LIMITS: dict[str, dict[str, int]] = {
    "20 files": {"NOFILE": 20},
    "12 files": {"NOFILE": 12},
    "no core": {"CORE": 0},
    "400 MB of addresses": {"AS": 400 * 2**20},
}


def limits(random: Random) -> Case:
    """Limits of the system."""
    name, command = random.choice(list(_LIMITS)), random.choice(_LIGHT[:6])
    case = f"{name}: {' '.join(command[:2])} {command[-1]}"
    return Case(case, command, _PARTS, program=True, limits=_LIMITS[name], limit_s=30)


_ARGUMENTS: tuple[tuple[str, ...], ...] = (
    (),
    ("",),
    ("nosuch",),
    ("--nosuch",),
    ("predict",),
    ("predict", "--nosuch"),
    ("predict", "a.png", "--labels"),
    ("search",),
    ("search", "猫"),
    ("search", "", "pictures"),
    ("embed",),
    ("embed", _PICTURE, "--text", "猫"),
    ("embed", _PICTURE, "--out", "e.txt"),
    ("embed", _PICTURE, "--out", ""),
    ("export",),
    ("export", "--check"),
    ("eval",),
    ("eval", "--check"),
    ("eval", "--set", "a=b"),
    ("compare",),
    ("compare", "results"),
    ("index",),
    ("index", ""),
    ("index", "none"),
    ("index", "*.none"),
    ("index", "recipe.yaml"),
    ("index", "s3://none/x.tar"),
    ("index", "https://127.0.0.1:9/x.tar"),
    ("index", "\x1b[2J"),
    ("models", "x"),
    ("doctor", "x"),
    ("datasets", "--data-root", "none"),
    ("datasets", "--data-root", "recipe.yaml"),
    ("recipe",),
    ("recipe", "nosuch"),
    ("recipe", "show"),
    ("collect", "recipe.yaml"),
    ("collect", "recipe.yaml", "--engine", "none"),
    ("collect", "recipe.yaml", "--engine", "slurm"),
    ("collect", "recipe.yaml", "--limit", "0"),
    ("collect", "recipe.yaml", "--workers", "-1"),
    ("distill", "recipe.yaml", "--device", "cuda"),
    ("predict", _PICTURE, "--labels", "猫", "--device", "cuda"),
    ("predict", _PICTURE, "--labels", "猫", "--json", "--csv"),
    ("predict", _PICTURE, "--labels", "猫", "--template", "{}", "--no-template"),
    ("distill", "recipe.yaml", "--resume"),
    ("\udcff",),
    ("predict", "\udcff"),
    ("-" * 1000,),
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


RULES = (variable, variable, closed, limits, arguments, arguments, runs)
