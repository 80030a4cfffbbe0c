"""Images through several copies of the model at once: a process for each, which reads its own."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from dcclip_cli.errors import DcclipError
from dcclip_cli.machine import cores
from dcclip_cli.model.precision import Precision
from dcclip_cli.model.reference import ModelReference
from dcclip_cli.predict.encoder import Encoder, load_encoder
from dcclip_cli.predict.images import embed_batches
from dcclip_cli.processes import begin_worker

Batch = list[tuple[int, np.ndarray | DcclipError]]
_BATCHES = 4  # at most, of one job: within a job the next batch is read while the model runs
_JOBS_EACH = 8  # at least, where there are as many batches, so that all end at about the same time
_AHEAD = 2  # jobs that wait at each process


class EvalProcesses:
    """`count` processes that hold the same model, on a GPU each where there are several; for a `with` block."""

    def __init__(self, reference: ModelReference, device: str, precision: Precision, count: int) -> None:
        context = multiprocessing.get_context("spawn")  # neither torch's threads nor CUDA survive a fork
        threads = max(1, cores() // count)
        self._pools = [
            ProcessPoolExecutor(1, context, _begin, (reference, device, number, precision, threads))
            for number in range(count)
        ]

    def __enter__(self) -> EvalProcesses:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        for pool in self._pools:
            pool.shutdown(wait=kind is None, cancel_futures=True)

    def embed_batches(
        self, indices: Sequence[int], read: Callable[[int], Image.Image], batch_size: int, workers: int
    ) -> Iterator[Batch]:
        """What `embed_batches` gives, of the same batches in the same order. Raises DcclipError if a process dies."""
        total = -(-len(indices) // batch_size)
        size = batch_size * min(_BATCHES, max(1, total // (_JOBS_EACH * len(self._pools))))
        jobs = [indices[start : start + size] for start in range(0, len(indices), size)]
        waiting: deque[Future[list[Batch]]] = deque()
        try:
            for pool in self._pools:
                pool.submit(_hold, read)
            for number, job in enumerate(jobs):
                pool = self._pools[number % len(self._pools)]
                waiting.append(pool.submit(_embed, list(job), batch_size, workers))
                if len(waiting) >= _AHEAD * len(self._pools):
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool:
            raise DcclipError(
                "a process with a copy of the model was killed: probably out of memory",
                "run the same command again with fewer --processes",
            ) from None


# ---- in a process of its own

_held: dict[str, Any] = {}  # its model, and what reads an image


def _begin(reference: ModelReference, device: str, number: int, precision: Precision, threads: int) -> None:
    begin_worker()
    _held["model"] = load_encoder(reference, device_of(reference, device, number), precision, threads)


def device_of(reference: ModelReference, device: str, number: int) -> str:
    """Where a process has its model: on the GPUs by turns; onnxruntime, which runs bundles, counts none here."""
    if device == "cpu" or reference.kind == "bundle":
        return device
    import torch

    if device in ("auto", "cuda") and (count := torch.cuda.device_count()):
        return f"cuda:{number % count}"
    return device


def _hold(read: Callable[[int], Image.Image]) -> None:
    _held["read"] = read


def _embed(indices: list[int], batch_size: int, workers: int) -> list[Batch]:
    model: Encoder = _held["model"]
    return list(embed_batches(model, indices, _held["read"], batch_size, workers))
