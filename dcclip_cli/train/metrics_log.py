"""Metric logging: metrics.jsonl, trackers, and the speed of steps."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from dcclip_cli.data.samplers import MixedBatchSampler
from dcclip_cli.errors import Message, writing
from dcclip_cli.files import atomic_write
from dcclip_cli.progress import Progress
from dcclip_cli.train.trackers import TrackerName, Trackers


class MetricsLog:
    """Writes metrics.jsonl, whose entries after the step that training resumes from are removed, and to trackers."""

    def __init__(self, folder: Path, resumed_step: int, accelerator: Accelerator, progress: Progress) -> None:
        self._accelerator = accelerator
        self._folder, self._file = folder, folder / "metrics.jsonl"
        self._trackers: Trackers | None = None
        if not accelerator.is_main_process:
            return
        folder.mkdir(parents=True, exist_ok=True)
        lines = self._file.read_bytes().splitlines() if self._file.exists() else []
        steps = [_step(line) for line in lines]
        if damaged := steps[:-1].count(None):  # the last line may be cut by a kill
            progress.say(
                Message("warning: {}: {} of {} lines are damaged and left out", self._file, damaged, len(lines))
            )
        kept = (line for line, step in zip(lines, steps, strict=True) if step is not None and step <= resumed_step)
        atomic_write(self._file, b"".join(line + b"\n" for line in kept))
        if not resumed_step:
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        threading.excepthook = _unless_raised_again

    def track(self, names: Sequence[TrackerName], config: Mapping[str, Any]) -> None:
        """Write to trackers, too, and first the options that decide the result."""
        self._trackers = Trackers(names, self._folder, self._accelerator)
        with writing(self._folder):
            self._trackers.start(config)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Add one entry. Only the main process writes."""
        if self._accelerator.is_main_process:
            rounded = {name: float(f"{value:.6g}") for name, value in metrics.items()}
            with writing(self._file):  # so do the trackers' files, next to it
                with self._file.open("a") as stream:
                    stream.write(json.dumps({"step": step, **rounded}) + "\n")
                self._accelerator.log(metrics, step=step)

    def close(self) -> None:
        """End the trackers' run."""
        if self._trackers is not None:
            with writing(self._folder):
                self._trackers.finish()


def _unless_raised_again(error: threading.ExceptHookArgs) -> None:
    """Report an exception of a thread, unless TensorBoard's raises it in the main thread, too, as on a full disk."""
    if type(error.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(error)


def _step(line: bytes) -> float | None:
    """The step of an entry; None if the line is damaged."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = entry.get("step") if isinstance(entry, dict) else None
    return step if isinstance(step, int | float) else None


class StepTimer:
    """Measures the steps since the last log entry."""

    def __init__(self, step: int) -> None:
        self._step, self._began, self._waited = step, time.monotonic(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block's time as waiting for data."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    def speed(self, step: int, total_steps: int, sampler: MixedBatchSampler) -> dict[str, float]:
        """Images per second (of steps without images texts), seconds of a step spent waiting for data, seconds left.

        Starts the next interval.
        """
        now, count = time.monotonic(), step - self._step
        step_s = (now - self._began) / count
        rate = "images_per_second" if sampler.images_per_step else "texts_per_second"
        speed = {
            rate: (sampler.images_per_step or sampler.batch_size) / step_s,
            "data_wait_s": self._waited / count,
            "seconds_left": step_s * (total_steps - step),
        }
        self._step, self._began, self._waited = step, now, 0.0
        return speed
