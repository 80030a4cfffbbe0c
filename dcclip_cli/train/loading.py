"""Batches made in forked processes, handed over in memory that is no part of /dev/shm, which is
small in containers.
"""

import gc
import io
import mmap
import os
import pickle
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.processes import begin_worker

_ALIGNED = 64  # bytes


def load_batches(
    make: Callable[[Any], Any],
    samples: Iterable[Any],
    workers: int,
    prefetch: int | None = None,
    pin_memory: bool = False,
) -> Generator[Any]:
    """What `make` returns for each of `samples`, in order, from `workers` processes (0: from this
    one).

    The processes are forked at once. Raises DcclipError and OSError as `make` does.
    """
    loader = DataLoader(
        _Source(make),
        batch_sampler=samples,
        collate_fn=_Packed if workers else lambda batch: batch,
        num_workers=workers,
        multiprocessing_context=_context() if workers else None,
        worker_init_fn=_begin,
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin_memory,
    )
    freezes = workers and not gc.get_freeze_count()  # by the program that this is a part of
    if (
        freezes
    ):  # a collection in a process that is forked here would copy the memory that they share
        gc.collect()
        gc.freeze()
    try:
        return _raising(iter(loader), workers)
    finally:
        if freezes:
            gc.unfreeze()


class _Source(Dataset[Any]):
    """A dataset that returns the errors of `make`: torch would lose the hint and the file of one
    raised in a worker.
    """

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __getitems__(self, samples: Any) -> Any:
        try:
            return self._make(samples)
        except (DcclipError, OSError) as error:
            return error


def _raising(loaded: Any, workers: int) -> Generator[Any]:
    """The batches. The processes end before an error is raised, whose traceback would keep the
    loader in a cycle.

    The garbage collector closes the loader's queues before that can ask its processes to end: they
    would wait for ever.
    """
    for batch in loaded:
        if isinstance(batch, DcclipError | OSError):
            if workers:
                loaded._shutdown_workers()
            raise batch
        yield batch


def _context() -> Any:
    """Forked processes that get SIGKILL where torch and Python send SIGTERM at their end, which
    workers ignore.
    """
    from multiprocessing import context, popen_fork  # not on Windows

    class Popen(popen_fork.Popen):
        terminate = popen_fork.Popen.kill

    class Process(context.ForkProcess):
        _Popen = staticmethod(Popen)

    forks: Any = context.ForkContext()
    forks.Process = Process
    return forks


def _begin(_number: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    begin_worker()


class _Packed:
    """A batch that arrives as it was, its arrays in one unnamed file in memory where the system
    allows that.

    torch would open a file in /dev/shm for each tensor, in a thread whose failure leaves this
    process waiting for ever.
    """

    def __init__(self, batch: Any) -> None:
        from multiprocessing.reduction import DupFd  # not on Windows

        buffers: list[pickle.PickleBuffer] = []
        content = _pickled(batch, buffers)
        parts = list[slice]()
        try:
            with open(os.memfd_create("batch"), "wb") as file:
                file.write(bytes(_ALIGNED))  # an empty file cannot be mapped
                for buffer in buffers:
                    begin = file.seek(-(-file.tell() // _ALIGNED) * _ALIGNED)
                    parts.append(slice(begin, begin + file.write(buffer.raw())))
                file.flush()
                self._state: tuple[Any, ...] = content, parts, DupFd(file.fileno())
        except (
            AttributeError,
            OSError,
        ):  # not Linux; or no descriptor is left, or files may not be so large
            self._state = _pickled(batch, None), [], None

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, self._state


def _pickled(batch: Any, buffers: list[pickle.PickleBuffer] | None) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, 5, buffer_callback=None if buffers is None else buffers.append).dump(batch)
    return stream.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        content = torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage())
        return _tensor, (
            content.numpy(),
            value.dtype,
            value.storage_offset(),
            value.shape,
            value.stride(),
        )


def _tensor(
    content: np.ndarray,
    dtype: torch.dtype,
    offset: int,
    shape: Sequence[int],
    stride: Sequence[int],
) -> Any:
    storage = torch.from_numpy(content).untyped_storage()
    return torch.empty(0, dtype=dtype).set_(storage, offset, shape, stride)


def _unpacked(content: bytes, parts: list[slice], file: Any) -> Any:
    if file is None:
        return pickle.loads(content)
    with open(file.detach(), "r+b") as shared:
        memory = memoryview(mmap.mmap(shared.fileno(), 0))
    return pickle.loads(content, buffers=[memory[part] for part in parts])
