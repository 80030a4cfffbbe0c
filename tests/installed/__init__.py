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
    packages = _installed(f"dcclip[{','.join(extras)}]")
    hidden = [
        package
        for package, names in packages_distributions().items()
        if not packages & {canonicalize_name(name) for name in names}
    ]
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{ROOT}",
        "HIDDEN_PACKAGES": " ".join(hidden),
    }


def _installed(requirement: str) -> set[str]:
    """The distributions that a requirement brings, itself included."""
    resolved = set[str]()
    pending = {(requirement, "")}
    visited = set(pending)
    while pending:
        text, extra = pending.pop()
        parsed = Requirement(text)
        if parsed.marker and not parsed.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(parsed.name)
        resolved.add(name)
        new = {(dependency, of) for of in ("", *parsed.extras) for dependency in _requirements(name, of)} - visited
        visited |= new
        pending |= new
    return resolved


def _requirements(name: str, extra: str) -> list[str]:
    """What a distribution requires with an extra; the project's own is read from pyproject.toml."""
    if name == "dcclip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        return list(project["optional-dependencies"][extra] if extra else project["dependencies"])
    try:
        return requires(name) or []
    except PackageNotFoundError:  # of another platform, or optional
        return []
