"""Experiment trackers, through accelerate: offline unless the tracker's own environment variables say otherwise."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dcclip_cli.errors import DcclipError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
_PACKAGES = {"mlflow": "mlflow-skinny"}  # where it is not the tracker's name
# Read when the libraries are imported; the user's own settings are kept. wandb would take over stdout and stderr.
_SETTINGS = {"WANDB_ERROR_REPORTING": "false", "WANDB_CONSOLE": "off", "WANDB_SILENT": "true"}
_SETTINGS |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}


def check_installed(name: TrackerName) -> None:
    """Raise DcclipError if a tracker's package is not installed."""
    if find_spec(name) is None:
        package = _PACKAGES.get(name, name)
        raise DcclipError(
            "the package of {} is not installed", "pip install {}, or remove it from track", name, package
        )


class Trackers:
    """The trackers of a stage of a run: project RUN, run STAGE. Only the first process has any."""

    def __init__(self, names: Sequence[TrackerName], folder: Path, accelerator: Accelerator) -> None:
        """`folder` is that of the stage, in the run directory."""
        self._accelerator = accelerator
        if names and accelerator.is_main_process:
            for name, value in _SETTINGS.items():
                os.environ.setdefault(name, value)
            accelerator.log_with = [_tracker(name, folder) for name in names]

    def start(self, config: Mapping[str, Any]) -> None:
        """Start a run with the options that decide its result."""
        with redirect_stdout(StringIO()):  # trackio prints
            self._accelerator.init_trackers("", dict(flat(config)))

    def finish(self) -> None:
        """End the run; what was logged is on the disk."""
        with redirect_stdout(StringIO()):
            while self._accelerator.trackers:
                tracker = self._accelerator.trackers.pop()
                # It would finish a run again, and print, when the process exits.
                (sys.modules["trackio"] if tracker.name == "trackio" else tracker).finish()


def _tracker(name: TrackerName, folder: Path) -> GeneralTracker:
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker

    run, stage = folder.parent.resolve().name, folder.name
    if name == "tensorboard":
        return TensorBoardTracker("tensorboard", folder)
    if name == "wandb":
        mode = os.environ.get("WANDB_MODE", "offline")
        return WandBTracker(run, name=stage, group=run, dir=str(folder), mode=mode)
    if name == "trackio":
        return TrackioTracker(run, name=stage, group=run, resume="allow", auto_log_cpu=False, auto_log_gpu=False)
    import mlflow

    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri((folder.parent.resolve() / "mlruns").as_uri())
    return MLflowTracker(run, run_name=stage)


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, str | int | float | bool]:
    """Nested options by dotted name; lists, and what is unset, as JSON."""
    found: dict[str, str | int | float | bool] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{name}.")
        else:
            plain = isinstance(value, str | int | float | bool)
            found[f"{above}{name}"] = value if plain else json.dumps(value, ensure_ascii=False)
    return found
