"""The stages of a recipe, the run directory `runs/NAME/` that they write to, and the result of a
training stage.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dcclip_cli.core.checksums import read_record
from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import atomic_write, lock

RECORD = "dcclip.json"  # of a model directory or an export
RESOLVED = "resolved.yaml"  # the recipe of a run with all defaults
# next to the folders of variants
SWEEP_FILES = ("table.csv", "table.tex", "runs.csv", "sweep.svg")
StageName = Literal["collect", "distill", "align", "eval", "export"]


@dataclass(frozen=True)
class Stage:
    """One stage. Its name is also that of its recipe section and of its folder in the run
    directory.

    It is finished when its folder contains `product`. A change in the recipe's sections
    `made_from` makes the product out of date. `model` is the folder of the model that it leaves,
    relative to its own; None if it leaves none.
    """

    name: StageName
    product: str
    made_from: tuple[str, ...]
    model: str | None = None

    @property
    def trains(self) -> bool:
        """Whether the stage trains: it can be resumed from a saved state and leaves a model
        directory.
        """
        return self.model == "model"


_TRAINING = ("teacher", "student", "data", "seed")
STAGES = (
    Stage("collect", "manifest.json", ("collect",)),
    Stage("distill", "model", (*_TRAINING, "distill"), "model"),
    Stage("align", "model", (*_TRAINING, "align"), "model"),
    Stage("eval", "summary.json", ("teacher", "eval")),
    Stage("export", RECORD, ("data", "eval", "export"), "."),
)


def has_product(run: Path, stage: StageName) -> bool:
    """Whether a run directory contains the product of a stage, whole or damaged. An empty folder
    is none.
    """
    product = _product(run, stage)
    return any(product.iterdir()) if product.is_dir() else product.exists()


def finished(run: Path, stage: StageName) -> bool:
    """As `has_product`, but raises DcclipError if files of a model or an export are missing."""
    if not has_product(run, stage):
        return False
    product = _product(run, stage)
    record = product if product.suffix else product / RECORD
    if record.name == RECORD:
        read_record(record, Message("create it again with --fresh"))
    return True


def _product(run: Path, stage: StageName) -> Path:
    [product] = [entry.product for entry in STAGES if entry.name == stage]
    return run / stage / product


@dataclass(frozen=True)
class RunDir:
    """A run's directory. A stage is finished when its product exists: products are moved into
    place last.
    """

    root: Path

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the directory. A new one is removed if the block writes nothing. Raises DcclipError
        if it is in use.
        """
        created = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
        owner = self.root / ".owner"
        lock_file = self.root / ".lock"
        with lock(lock_file, wait=False) as is_free:
            if not is_free:
                process = owner.read_text("utf-8") if owner.exists() else "?"
                problem = Message(
                    "{} is in use by another command (process {})", self.root, process
                )
                raise DcclipError(
                    problem, "wait until it ends, or choose another folder: --out FOLDER"
                )
            atomic_write(owner, f"{os.getpid()}, {platform.node()}")
            try:
                yield
            finally:
                owner.unlink(missing_ok=True)
                with suppress(OSError):  # on Windows, a file that is open
                    if created and [*self.root.iterdir()] == [lock_file]:
                        lock_file.unlink()
                        for folder in created:
                            folder.rmdir()

    def stage(self, name: str) -> Path:
        return self.root / name

    def model(self, stage: str) -> Path:
        """The model directory that `distill` or `align` writes."""
        return self.root / stage / "model"


@dataclass(frozen=True)
class TrainResult:
    """The model directory of a training stage, whether an earlier call had finished it, and the
    metrics logged last.
    """

    model: Path
    already_finished: bool
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
