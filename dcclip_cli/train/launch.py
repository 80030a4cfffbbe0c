"""Several training processes on this machine, started by torch's elastic launcher as torchrun starts them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from dcclip_cli.errors import AgainError, DcclipError, Message, joined
from dcclip_cli.launched import REPORTS, reports
from dcclip_cli.progress import Progress
from dcclip_cli.signals import HeldSignals, keeping

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

_ENDS_S = 30  # processes after SIGTERM, before they are killed
Processes = int | Literal["auto"]


class ProcessCrashedError(RuntimeError):
    """A training process ended by an error of dcclip's own, or was killed."""


def process_number(asked: Processes, device: str) -> int:
    """How many processes `--processes` asks for on a device: auto is one for each GPU.

    Raises DcclipError for more than there are GPUs, and in a process that torchrun started.
    """
    if asked == 1:
        return 1
    if {"RANK", "WORLD_SIZE"} & os.environ.keys():
        what = Message(
            "--processes {asked} was given to one of several processes (WORLD_SIZE or RANK is set)", asked=asked
        )
        raise DcclipError(what, "start it without torchrun or accelerate launch, or leave --processes out")
    import torch

    from dcclip_cli.model.precision import torch_device

    device = torch_device(device)
    if device == "cpu":
        return 1 if asked == "auto" else asked
    return on_gpus(asked, torch.cuda.device_count() if device == "cuda" else 1)


def on_gpus(asked: Processes, there: int) -> int:
    """How many processes `--processes` asks for where there are so many GPUs. Raises DcclipError for more."""
    if asked == "auto":
        return there
    if asked > there:
        what = Message(
            "--processes {asked}: a process needs a GPU of its own, and this machine has {there}",
            asked=asked,
            there=there,
        )
        raise DcclipError(
            what, Message("set --processes {there} or auto, or train on the CPU: --device cpu", there=there)
        )
    return asked


def launch(arguments: Sequence[str], number: int, progress: Progress) -> None:
    """Run a command of dcclip in `number` processes that train together, and return when all have ended well.

    They are started again after an AgainError. Of their output only what the first one prints on stderr is shown. The
    first error of any of them ends all, and is raised: DcclipError, or ProcessCrashedError. Signals end all of them
    with their state saved.
    """
    while True:
        try:
            return _launch(arguments, number)
        except AgainError as error:
            progress.say(error.what)


def _launch(arguments: Sequence[str], number: int) -> None:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    _silence_launcher()
    with TemporaryDirectory(prefix="dcclip-") as name, keeping(lambda: _kept(Path(name))), HeldSignals() as signals:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=number,
            logs_specs=DefaultLogsSpecs(name, {rank: Std.ALL if rank else Std.OUT for rank in range(number)}),
            run_id=Path(name).name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            signals_to_handle="",  # held here
            shutdown_timeout=_ENDS_S,
        )
        try:
            with _environment(name), signals.interruptible():
                launch_agent(config, sys.executable, ["-m", "dcclip_cli", *arguments])
        except KeyboardInterrupt:
            _end_children()  # a second signal may have interrupted the launcher, which does it
            raise
        except ChildFailedError as error:
            raise _first_error(Path(name), error.failures, number) from None


@contextmanager
def _environment(folder: str) -> Iterator[None]:
    """The environment of the processes: torchrun's one thread for each, where nothing is set, and this dcclip_cli."""
    before = dict(os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ |= {REPORTS: folder, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ |= before


def _silence_launcher() -> None:
    """Keep the launcher from reporting errors and signals as well. Each of its modules has a logger with a level."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _end_children() -> None:
    import psutil

    children = psutil.Process().children()
    for child in children:
        child.terminate()
    for child in psutil.wait_procs(children, _ENDS_S)[1]:
        child.kill()


def _kept(folder: Path) -> str:
    """What the first process, which saves, reported as kept when a signal ended it."""
    return next((one["kept"] for one in reports(folder) if one["rank"] == "0" and "kept" in one), "")


def _first_error(folder: Path, failures: Mapping[int, ProcessFailure], number: int) -> Exception:
    """The error that ended the processes; those of the others are its consequences."""
    found = reports(folder)
    for one in found:
        if "what" in one:
            kind = AgainError if one["error"] == AgainError.__name__ else DcclipError
            return kind(joined("", [one["what"]]), joined("", [one["hint"]]))
    crashed = next((one for one in found if "traceback" in one), None)
    killed = [rank for rank, failure in failures.items() if failure.exitcode < 0]
    # Those that cannot end after another's crash are killed later.
    if killed and (crashed is None or time.time() - float(crashed["time"]) < _ENDS_S):
        name = signal.Signals(-failures[killed[0]].exitcode).name
        what = Message(
            "training process {killed} of {number} was killed by {name}", killed=killed[0], number=number, name=name
        )
        memory = Message("; the system does that when memory runs out") if name == "SIGKILL" else ""
        return DcclipError(
            what, Message("run the same command again to resume from the last saved state{memory}", memory=memory)
        )
    if crashed is None:
        ended = ", ".join(f"{rank} with code {failure.exitcode}" for rank, failure in failures.items())
        return DcclipError("training processes ended: {ended}", "run the same command again to resume", ended=ended)
    error = ProcessCrashedError(f"training process {crashed['rank']} of {number} ended with an error")
    error.add_note(crashed["traceback"])
    return error
