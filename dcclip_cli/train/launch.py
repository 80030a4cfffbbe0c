"""Several training processes on this machine, started by torch's elastic launcher as torchrun
starts them.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Collection, Sequence
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from dcclip_cli.core.errors import AgainError, DcclipError, Message
from dcclip_cli.core.machine import LAUNCHED
from dcclip_cli.core.progress import Progress

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

Processes = int | Literal["auto"]


def process_number(processes: Processes, device: str) -> int:
    """How many processes `--processes` asks for on a device: auto is one for each GPU.

    Raises DcclipError for more than there are GPUs, and in a process that torchrun started.
    """
    if processes == 1:
        return 1
    if {"RANK", "WORLD_SIZE"} & os.environ.keys():
        problem = Message(
            "--processes {} cannot be used under torchrun or another launcher "
            "(WORLD_SIZE or RANK is set)",
            processes,
        )
        raise DcclipError(
            problem,
            "start the command without torchrun or accelerate launch, or remove --processes",
        )
    import torch

    from dcclip_cli.model.precision import torch_device

    device = torch_device(device)
    if device == "cpu":
        return 1 if processes == "auto" else processes
    return on_gpus(processes, torch.cuda.device_count() if device == "cuda" else 1)


def on_gpus(processes: Processes, gpus: int) -> int:
    """How many processes `--processes` asks for where there are so many GPUs. Raises DcclipError
    for more.
    """
    if processes == "auto":
        return gpus
    if processes > gpus:
        problem = Message(
            "--processes {}: every process needs its own GPU, and this machine has {}",
            processes,
            gpus,
        )
        raise DcclipError(
            problem, Message("set --processes {} or auto, or train on the CPU: --device cpu", gpus)
        )
    return processes


def launch(arguments: Sequence[str], number: int, progress: Progress) -> None:
    """Run a command of dcclip in `number` processes that train together, and return when all have
    ended well.

    They are started again after an AgainError. Of their output only what the first one prints on
    stderr is shown. The first error of any of them ends all, and is raised. Stopped ends all of
    them with their state saved.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousConnectionError
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    for name in list(logging.root.manager.loggerDict):  # each has a level of its own
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    while True:
        try:
            with TemporaryDirectory(prefix="dcclip-") as logs:
                config = LaunchConfig(
                    min_nodes=1,
                    max_nodes=1,
                    nproc_per_node=number,
                    logs_specs=DefaultLogsSpecs(logs, Std.OUT, local_ranks_filter={0}),
                    run_id=LAUNCHED,
                    rdzv_backend="c10d",
                    rdzv_endpoint="localhost:0",
                    max_restarts=0,
                    signals_to_handle="",  # they raise Stopped
                    shutdown_timeout=30,  # seconds after SIGTERM, before SIGKILL
                )
                launch_agent(config, sys.executable, ["-P", "-m", "dcclip_cli", *arguments])
                return
        except ChildFailedError as failed:
            error = first_error(failed.failures.values(), number)
        except (
            RendezvousConnectionError
        ) as failed:  # of torch without libuv: on Windows, and Debian's
            hint = Message(
                "use PyPI's torch on Linux or macOS, or --processes 1 (USE_LIBUV=0 does not help)"
            )
            raise DcclipError(
                "--processes {}: torch cannot connect: {}", hint, number, failed.__cause__
            ) from failed
        if not isinstance(error, AgainError):
            raise error
        progress.say(error.what)


def first_error(failures: Collection[ProcessFailure], number: int) -> Exception:
    """The error that ended the processes, of which those of others are consequences."""
    data = [failure.error_file_data for failure in failures]
    reports = sorted(
        (report for report in data if "time" in report), key=lambda report: report["time"]
    )
    if error := next((report for report in reports if report["hint"]), None):
        return (AgainError if error["again"] else DcclipError)(error["message"], error["hint"])
    if killed := next((failure for failure in failures if failure.exitcode < 0), None):
        problem = Message(
            "training process {} of {} was killed by {}",
            killed.local_rank,
            number,
            killed.signal_name(),
        )
        memory = (
            Message("; SIGKILL usually means that memory ran out")
            if -killed.exitcode == signal.SIGKILL
            else ""
        )
        return DcclipError(
            problem,
            Message("run the same command again to resume from the last checkpoint{}", memory),
        )
    message = (
        reports[0]["message"] if reports else "; ".join(failure.message for failure in failures)
    )
    return RuntimeError(f"one of {number} training processes ended with an error:\n{message}")
