"""Communication between training processes: gather with gradients, averages, agreement, decisions
of the first one.

Each process computes its loss from all embeddings; the gradient of an embedding is the sum over
processes. Since the processes' parameter gradients are averaged afterwards, a loss that every
process computes in full, or whose mean over processes is the full loss, gives each parameter the
gradient of the one-process batch.
"""

import os
import pickle
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn import Parameter

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.processes import noted

_SHARED_S = 10.0  # in which a network file system shows a new file to all machines
T = TypeVar("T")


def process_count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def processes_here() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", process_count()))


def process_index() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def gather(values: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows of all processes in the order of processes, which have `counts` of them."""
    if len(counts) == 1:
        return values
    padding = values.new_zeros(max(counts) - len(values), *values.shape[1:])
    padded = torch.cat([values, padding])
    everyone = _Gather.apply(padded) if values.is_floating_point() else _all_gather(padded)
    return torch.cat([rows[:count] for rows, count in zip(everyone.unbind(), counts, strict=True)])


def gather_numbers(numbers: Sequence[float]) -> list[list[float]]:
    """The numbers of each process, equally many. The hosts agree on them: no device is waited for."""
    if process_count() == 1 or not numbers:
        return [list(numbers)] * process_count()
    local = torch.tensor(numbers, dtype=torch.float64)
    by_process = [torch.empty_like(local) for _ in range(process_count())]
    distributed.all_gather(by_process, local, _hosts(distributed.group.WORLD))
    return [gathered.tolist() for gathered in by_process]


def from_first(function: Callable[[], T]) -> T:
    """What the function returns or raises in the first process, in all of them. Only the first one
    calls it.
    """
    return from_all(function if process_index() == 0 else lambda: cast(T, None))[0]


def from_all(function: Callable[[], T], stoppable: bool = False) -> list[T]:
    """What the function returns in each process, or raises in the first that fails.

    If it is `stoppable`, a signal that is only noted elsewhere ends it at once.
    """
    outcome: list[Any] = [None, None]  # result and error
    outcomes = [outcome] * process_count()
    try:
        with noted(False) if stoppable else nullcontext():
            outcome[0] = function()
    except BaseException as error:  # noqa: BLE001  # raised below: the other processes wait for it
        outcome[1] = error
        if process_count() > 1:
            outcome[1] = _picklable(error)
    if process_count() > 1:
        distributed.all_gather_object(outcomes, outcome, group=_hosts(distributed.group.WORLD))
    for _, failure in outcomes:
        if failure is not None:
            raise failure
    return [result for result, _ in outcomes]


def fail_together(error: BaseException | None) -> None:
    """Raise the error of one process in all of them. All of them call it at the same step, most of
    them with None.
    """
    if any(failed for [failed] in gather_numbers([error is not None])):
        from_all(lambda: _raise(error))


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error


def _picklable(error: BaseException) -> BaseException:
    """The error, or what it says where other processes could not read it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  # whatever the class of another library raises
        return RuntimeError(repr(error))
    return error


def check_shared(folder: Path) -> None:
    """Raise DcclipError in all processes if one of them does not see what the first one writes to
    a folder.
    """
    if process_count() == 1:
        return
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / from_first(lambda: Path(mkdtemp(prefix=".shared-", dir=folder)).name)
    end = time.monotonic() + _SHARED_S
    while not mark.exists() and time.monotonic() < end:
        time.sleep(0.1)
    apart = [
        number for number, [sees] in enumerate(gather_numbers([int(mark.exists())])) if not sees
    ]
    if process_index() == 0:
        mark.rmdir()
    if apart:
        raise DcclipError(
            "{}: training process {} does not see the files that process 0 writes there",
            "put the run on a disk that all machines share: --out FOLDER",
            *(folder, apart[0]),
        )


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a count over the processes, without a gradient."""
    if process_count() == 1:
        return value
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / process_count()


def average_gradients(parameters: Iterable[Parameter]) -> None:
    """Average gradients over processes, as DistributedDataParallel does when the backward pass
    goes through it.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if process_count() == 1 or not trained:
        return
    gradients = [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for parameter in trained
    ]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    means = (flat / process_count()).split([gradient.numel() for gradient in gradients])
    for parameter, gradient, mean in zip(trained, gradients, means, strict=True):
        parameter.grad = gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def average_statistics(model: nn.Module) -> None:
    """Average the running statistics of batch norms over processes: each process has updated them
    by its share.
    """
    if process_count() == 1:
        return
    norms = [
        norm
        for norm in model.modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training
    ]
    statistics = [
        value
        for norm in norms
        for value in (norm.running_mean, norm.running_var)
        if value is not None
    ]
    if statistics:
        flat = torch.cat(statistics)
        distributed.all_reduce(flat)
        torch._foreach_copy_(
            statistics, (flat / process_count()).split([len(value) for value in statistics])
        )


def any_process(flag: Tensor) -> bool:
    """Whether a flag is set in any process. Reads from the device once."""
    if process_count() > 1:
        flag = flag.int()
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag)


@lru_cache(maxsize=1)
def _hosts(world: Any) -> Any:
    """A group of all processes of `world` that exchanges tensors on the CPU."""
    return (
        world if "gloo" in distributed.get_backend(world) else distributed.new_group(backend="gloo")
    )


def _all_gather(values: Tensor) -> Tensor:
    """(P, ...) the values of each of P processes."""
    everyone = [torch.empty_like(values) for _ in range(process_count())]
    distributed.all_gather(everyone, values.contiguous())
    return torch.stack(everyone)


class _Gather(torch.autograd.Function):
    """All processes' values; the backward pass sums all processes' gradients of this one's.

    torch.distributed.nn.all_gather uses scatter in the backward pass on gloo, whose threads keep
    tensors of the graph and can keep a process from exiting (pytorch issue 56297).
    """

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return _all_gather(values)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        [gradient] = gradients
        summed = gradient.contiguous()
        distributed.all_reduce(summed)
        return summed[process_index()]
