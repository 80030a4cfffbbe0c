"""Threads and precision of a training process: chosen once per stage, so that a resumed run
computes as before.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from accelerate.utils.memory import should_reduce_batch_size
from torch import distributed, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from dcclip_cli.core import machine
from dcclip_cli.core.errors import AgainError, DcclipError, Message
from dcclip_cli.core.files import read_json, write_json
from dcclip_cli.core.progress import Progress
from dcclip_cli.data.samplers import MixedBatchSampler
from dcclip_cli.model.precision import Choice, choose_precision, newton_schulz_precision
from dcclip_cli.train.distributed import from_first, process_count

if TYPE_CHECKING:
    from dcclip_cli.train.options import TrainOptions
    from dcclip_cli.train.stage import Stage

COMPUTED_IN = "computed_in.json"
_LAUNCHED_WITH = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_AGAIN = Message("start over with --fresh")
_groups = itertools.count()  # of processes, one after the other
T = TypeVar("T")


def join_processes(device: str) -> None:
    """Connect the processes that a launcher started, unless they are; a single one stays alone.

    Raises DcclipError where the variables by which a launcher describes them are incomplete.
    """
    machine.use_launcher()
    count = os.environ.get("WORLD_SIZE", "1")
    missing = [name for name in _LAUNCHED_WITH if name not in os.environ] if count != "1" else []
    if missing or not count.isdecimal():
        problem = Message("WORLD_SIZE is {}, which is not a number", count)
        if missing:
            problem = Message(
                "WORLD_SIZE is {}, but these variables are not set: {}", count, ", ".join(missing)
            )
        if missing == ["MASTER_ADDR"]:
            raise DcclipError(problem, "set MASTER_ADDR to the host name of process 0")
        raise DcclipError(
            problem, "start several processes with torchrun; for one process, unset WORLD_SIZE"
        )
    machine.set_library_defaults()
    machine.allow_open_files()  # of the blocks of feature stores, shards and batches
    if count == "1" or distributed.is_initialized():
        PartialState(cpu=device == "cpu")
        return
    PartialState._reset_state()  # which outlives the process group of the stage before
    store, rank, size = _rendezvous()
    group_store = PrefixStore(
        f"dcclip-{next(_groups)}", store
    )  # without what the group before left in the store
    PartialState(cpu=device == "cpu", store=group_store, rank=rank, world_size=size)


@cache
def _rendezvous() -> Any:
    """A store that all processes reach, and this one's number of how many."""
    try:
        return next(rendezvous("env://"))
    except distributed.DistStoreError as error:
        if "libuv" not in str(error):
            raise
        return next(rendezvous("env://?use_libuv=0"))  # of torch without it, as Debian's


def use_kernels(options: TrainOptions, device: str) -> None:
    """Set which of torch's kernels the stage computes with, teachers included: deterministic ones,
    TF32.
    """
    on_cpu = device == "cpu"
    # With warn_only, attention and cuBLAS on a GPU would not be deterministic; on a CPU no kernel
    # of a step is missing.
    torch.use_deterministic_algorithms(options.deterministic, warn_only=on_cpu)
    # It would also fill each new tensor with NaN, to show reads of what nobody wrote: 8 % of a
    # step, no other result.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010  # torch's stubs lack it
    if not on_cpu:
        torch.backends.cudnn.benchmark = not options.deterministic
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = options.tf32


def use_threads(options: TrainOptions, folder: Path) -> None:
    """Set torch's threads (with another number, sums are rounded differently), and keep freed
    memory.

    The default is one thread for each core that no loading process needs; loading is lighter, so
    it leaves more than half of the cores. OMP_NUM_THREADS, which torchrun sets, has priority over
    that.
    """

    def free_threads() -> int:
        count = machine.cores()
        return max(count - machine.loading_processes(options.workers), count // 2 + 1)

    if options.threads:
        torch.set_num_threads(options.threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(decided(folder, "threads", free_threads))
    if options.accumulate == "auto":
        # What a failed step frees must be there for all: oneDNN compiles no kernel any more in a
        # thread in which it once had no memory for one (Xbyak keeps the error).
        machine.return_freed_memory()
    else:
        machine.keep_freed_memory()


def decided(folder: Path, name: str, decide: Callable[[], T]) -> T:
    """What was decided when the stage under `folder` began, on any machine; decided now if it is
    new.
    """

    def look() -> T:
        file = folder / COMPUTED_IN
        decisions = read_json(file, _AGAIN) if file.exists() else {}
        if name not in decisions:
            decisions[name] = decide()
            write_json(file, decisions)
        return cast(T, decisions[name])

    return from_first(look)


def settle_precision(stage: Stage, trained: nn.Module) -> Choice:
    """Leave nothing in the stage's options at `auto`; return the precision's choice for the
    modules `trained`.
    """
    options = stage.options
    device = stage.device
    folder = stage.folder
    choice = choose_precision(options.precision, device, trained)
    rule = options.optimizer.newton_schulz
    if options.precision == "auto":
        decision = decided(folder, "precision", lambda: asdict(choice))
        choice = Choice(decision["precision"], decision["reason"])
    if rule == "auto":
        rule = decided(folder, "newton_schulz", lambda: newton_schulz_precision(device))
    stage.progress.say(choice.line(folder.name))
    optimizer = options.optimizer.model_copy(update={"newton_schulz": rule})
    stage.options = options.model_copy(
        update={"precision": choice.precision, "optimizer": optimizer}
    )
    return choice


def compile_towers(stage: Stage) -> None:
    """Compile the student's images and live teachers. Raises DcclipError without a compiler."""
    options = stage.options
    if torch.device(stage.device).type == "cuda":
        has_compiler = find_spec("triton") is not None
    else:
        has_compiler = shutil.which(os.environ.get("CXX", "g++")) is not None
    if not has_compiler:
        problem = Message(
            "{}.compile needs a compiler, which this machine does not have", stage.name
        )
        raise DcclipError(
            problem, "install g++ (for the CPU) or triton (for a GPU), or set compile: false"
        )
    # no kernel is chosen by its speed
    torch._inductor.config.deterministic = options.deterministic
    # Not the student's texts: of how many the first batch has decides how sums over all are split,
    # and a run that resumes has another first batch. Nor teachers that fill a cache, whose
    # features are the same in all runs.
    stage.task.student.compile_towers(["image"])
    if options.teacher_cache is not True:
        for teacher in stage.teachers:
            teacher.towers.compile_towers(["image"] if options.teacher_cache else ["image", "text"])


def make_accelerator(options: TrainOptions, device: str, unused: bool = True) -> Accelerator:
    """Accelerate for this stage's precision and device. `unused`: a step may leave parameters
    without a gradient.

    Where DDP does not look for those, it rearranges its buckets after the first step, in the order
    in which gradients came. With more than two processes, a resumed run would then round sums in
    another order. If the buckets are held back instead, DDP notes 16 bytes for each parameter in
    every step.
    """
    unused |= options.deterministic and PartialState().num_processes > 2
    # a process keeps one precision, and the stage before may have had another
    AcceleratorState._reset_state()
    precision = "no" if options.precision == "fp32" else options.precision
    ddp = DistributedDataParallelKwargs(find_unused_parameters=unused, gradient_as_bucket_view=True)
    ddp.broadcast_buffers = False  # the trainer averages them
    return Accelerator(cpu=device == "cpu", mixed_precision=precision, kwargs_handlers=[ddp])


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    # oneDNN has one sentence for all that it cannot do.
    is_primitive = "could not create a primitive" in str(error)
    return isinstance(error, MemoryError) or should_reduce_batch_size(error) or is_primitive


class Parts:
    """How many parts each step's batch is split into: as set, or twice as many whenever memory
    runs out (`auto`).

    The numbers are recorded with the steps from which they hold, so that a resumed run splits each
    step as before.
    """

    def __init__(
        self,
        parts: int | Literal["auto"],
        sampler: MixedBatchSampler,
        folder: Path,
        progress: Progress,
    ) -> None:
        """`folder` is that of the stage. Of several processes, all construct it."""
        self._sampler = sampler
        self._folder = folder
        self._progress = progress
        self._auto = parts == "auto"
        # From which step on, and how many.
        self._numbers = (
            [[0, parts]] if parts != "auto" else decided(folder, "accumulate", lambda: [[0, 1]])
        )
        sampler.check_shares(
            process_count() * self._numbers[-1][1]
        )  # there were other processes before

    def at(self, step: int) -> int:
        """The number of parts of the step after `step` steps."""
        return next(parts for begin, parts in reversed(self._numbers) if begin <= step)

    def split(self, step: int, error: RuntimeError | MemoryError) -> None:
        """After an error for want of memory, split the batches from this step on into more parts.

        Raises any other error again, and this one where nothing is `auto` or the batch is too
        small. Of several processes one cannot tell the others, which wait for it: it raises
        AgainError, and all read the new number when they are started again.
        """
        processes = process_count()
        sizes = [sampler.batch_size for sampler in self._sampler.samplers]
        larger = range(2 * self.at(step), min(sizes) // processes + 1)
        equal = (
            parts for parts in larger if all(size % (parts * processes) == 0 for size in sizes)
        )
        parts = next(
            equal, None
        )  # the fewest equal ones that are at least twice as many; the batch may be too small
        if not self._auto or parts is None or not is_out_of_memory(error):
            raise error
        self._numbers.append([step, parts])
        file = self._folder / COMPUTED_IN
        write_json(file, {**read_json(file, _AGAIN), "accumulate": self._numbers})
        numbers = self._folder.name, step + 1, parts
        line = Message(
            "{}: not enough memory for step {}: from now on, batches are split into {} parts",
            *numbers,
        )
        if processes > 1:
            raise AgainError(line, "run the same command again to resume from the last checkpoint")
        self._progress.say(line)
