"""What a stopped command has kept in its folder, and whether the same command again computed any of it twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dcclip_cli.store import open_block

_PARTS = (
    "runs/*/.collect.partial/read/0*",
    "runs/*/.collect.partial/write/0*",
    "shards/*.index.arrow",
    "runs/*/distill/model",
    "runs/*/align/model",
    "runs/*/export/dcclip.json",
    "runs/*/eval/summary.json",
    "runs/*/collect/manifest.json",
)


@dataclass(frozen=True)
class Kept:
    """Keys of the rows of each feature store, the step of the last state of each stage, and finished parts."""

    rows: dict[str, list[bytes]]
    steps: dict[str, int]
    parts: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.count or self.steps or self.parts)

    def __str__(self) -> str:
        rows = [f"{self.count} rows"] if self.count else []
        steps = [f"step {step} of {stage}" for stage, step in self.steps.items()]
        return ", ".join([*rows, *steps, *sorted(self.parts)]) or "nothing"

    @property
    def count(self) -> int:
        """Rows of all stores."""
        return sum(map(len, self.rows.values()))

    @property
    def twice(self) -> int:
        """Rows that a store has twice, because they were computed again."""
        return sum(len(keys) - len(set(keys)) for keys in self.rows.values())

    def since(self, before: Kept) -> Kept:
        """Without what was there before."""
        rows = {name: [key for key in keys if key not in before.rows.get(name, ())] for name, keys in self.rows.items()}
        steps = {stage: step for stage, step in self.steps.items() if stage not in before.steps}
        return Kept(rows, steps, self.parts - before.parts)


def kept(folder: Path) -> Kept:
    """What is there now."""
    rows: dict[str, list[bytes]] = {}
    for file in sorted((folder / "cache").rglob("*.safetensors")):
        with suppress(ValueError, FileNotFoundError):  # copies of weights are files of another kind
            keys = open_block(file)[0]["keys"].copy().view("S16")[:, 0]
            rows.setdefault(str(file.parent.relative_to(folder)), []).extend(keys.tolist())
    return Kept(rows, dict(_steps(folder)), frozenset(_parts(folder)))


def _steps(folder: Path) -> Iterator[tuple[str, int]]:
    for stage in ("distill", "align"):
        if states := list((folder / "runs/tiny" / stage / "state").glob("step-*")):
            yield stage, max(int(path.name.removeprefix("step-")) for path in states)


def _parts(folder: Path) -> Iterator[str]:
    return (str(path.relative_to(folder)) for pattern in _PARTS for path in folder.glob(pattern))
