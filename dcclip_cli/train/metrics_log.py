"""Metric logging: metrics.jsonl, and experiment trackers through accelerate.

Trackers are offline unless their own environment variables say otherwise.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dcclip_cli.core.errors import DcclipError, writing
from dcclip_cli.core.files import atomic_write

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

    from dcclip_cli.train.stage import Stage

MetricsListener = Callable[
    [str, int, dict[str, float]], object
]  # called with stage, step and its metrics
TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
_PACKAGES = {"mlflow": "mlflow-skinny"}  # where it is not the tracker's name
# Read when a library is imported; the user's own settings are kept. wandb would take over stdout
# and stderr.
SETTINGS: Mapping[TrackerName, Mapping[str, str]] = {
    "wandb": {"WANDB_ERROR_REPORTING": "false", "WANDB_CONSOLE": "off", "WANDB_SILENT": "true"},
    "mlflow": {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_FILE_STORE": "true"},
}


def check_installed(name: TrackerName) -> None:
    """Raise DcclipError if a tracker's package is not installed."""
    if find_spec(name) is None:
        package = _PACKAGES.get(name, name)
        raise DcclipError(
            "the package of {} is not installed",
            "pip install {}, or remove it from track",
            name,
            package,
        )


class MetricsLog:
    """Writes metrics.jsonl, whose entries after the step that training resumes from are removed,
    and to trackers.

    Only the first process opens and writes it. A tracker's project is RUN, its run STAGE, with the
    identity that decides the result.
    """

    def __init__(self, stage: Stage, accelerator: Accelerator) -> None:
        self._listener = stage.listener
        self._accelerator = accelerator
        self._folder = stage.folder
        self._file = stage.folder / "metrics.jsonl"

    def open(self, stage: Stage, resumed_step: int) -> None:
        """Continue the entries of the step that training resumes from."""
        lines = self._file.read_bytes().splitlines() if self._file.exists() else []
        atomic_write(
            self._file, b"".join(line + b"\n" for line in lines if _step(line) <= resumed_step)
        )
        if not resumed_step:
            shutil.rmtree(stage.folder / "tensorboard", ignore_errors=True)
        threading.excepthook = _unless_raised_again
        if stage.track:
            self._accelerator.log_with = [_tracker(name, stage.folder) for name in stage.track]
            with writing(stage.folder), redirect_stdout(StringIO()):  # trackio prints
                self._accelerator.init_trackers("", flat(stage.identity))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        rounded = {name: float(f"{value:.6g}") for name, value in metrics.items()}
        with writing(self._file):  # so do the trackers' files, next to it
            with self._file.open("a", encoding="utf-8", newline="\n") as stream:
                stream.write(json.dumps({"step": step, **rounded}) + "\n")
            self._accelerator.log(metrics, step=step)
        if self._listener:
            self._listener(self._folder.name, step, rounded)

    def close(self) -> None:
        """End the trackers' runs; what was logged is on the disk."""
        with writing(self._folder), redirect_stdout(StringIO()):
            while self._accelerator.trackers:
                tracker = self._accelerator.trackers.pop()
                # It would finish a run again, and print, when the process exits.
                (sys.modules["trackio"] if tracker.name == "trackio" else tracker).finish()


def _tracker(name: TrackerName, folder: Path) -> GeneralTracker:
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker

    for setting, value in SETTINGS.get(name, {}).items():
        os.environ.setdefault(setting, value)
    run = folder.parent.resolve().name
    stage = folder.name
    if name == "tensorboard":
        return TensorBoardTracker("tensorboard", folder)
    if name == "wandb":
        mode = os.environ.get("WANDB_MODE", "offline")
        return WandBTracker(run, name=stage, group=run, dir=str(folder), mode=mode)
    if name == "trackio":
        return TrackioTracker(
            run, name=stage, group=run, resume="allow", auto_log_cpu=False, auto_log_gpu=False
        )
    import mlflow

    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri((folder.parent.resolve() / "mlruns").as_uri())
    return MLflowTracker(run, run_name=stage)


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, str | int | float | bool]:
    """Nested options by dotted name; lists, and what is unset, as JSON."""
    scalars: dict[str, str | int | float | bool] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            scalars |= flat(value, f"{above}{name}.")
        else:
            plain = isinstance(value, str | int | float | bool)
            scalars[f"{above}{name}"] = value if plain else json.dumps(value, ensure_ascii=False)
    return scalars


def _unless_raised_again(error: threading.ExceptHookArgs) -> None:
    """Report an exception of a thread, unless TensorBoard's raises it in the main thread, too, as
    on a full disk.
    """
    if type(error.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(error)


def _step(line: bytes) -> float:
    """The step of an entry; infinity if the line is not whole, as a kill may leave the last one."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, LookupError):
        return math.inf
