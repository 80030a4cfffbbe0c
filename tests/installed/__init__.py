"""An environment of an extra of dcclip, made out of one that has them all: other packages are hidden from Python."""

import os
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def environment(extras: Iterable[str]) -> dict[str, str]:
    """Variables of a process that sees what `pip install 'dcclip[EXTRAS]'` would install, and no other package."""
    there = _installed(f"dcclip[{','.join(extras)}]")
    hidden = [
        package
        for package, names in packages_distributions().items()
        if not there & {canonicalize_name(name) for name in names}
    ]
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{ROOT}",
        "HIDDEN_PACKAGES": " ".join(hidden),
    }


def _installed(requirement: str) -> set[str]:
    """The distributions that a requirement brings, itself included."""
    found, left = set[str](), {(requirement, "")}
    seen = set(left)
    while left:
        text, extra = left.pop()
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(wanted.name)
        found.add(name)
        new = {(one, of) for of in ("", *wanted.extras) for one in _requirements(name, of)} - seen
        seen |= new
        left |= new
    return found


def _requirements(name: str, extra: str) -> list[str]:
    """What a distribution requires with an extra; the project's own is read from pyproject.toml."""
    if name == "dcclip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        return list(project["optional-dependencies"][extra] if extra else project["dependencies"])
    try:
        return requires(name) or []
    except PackageNotFoundError:  # of another platform, or optional
        return []
