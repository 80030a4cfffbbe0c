"""What models take on this machine, measured in fresh processes."""

import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import refuse_special
from dcclip_cli.core.machine import cores, peak_memory_bytes
from dcclip_cli.core.processes import calls, process_pool
from dcclip_cli.core.progress import ProgressChoice, progress_for
from dcclip_cli.inference.images import PathLike, image_files
from dcclip_cli.model.reference import ModelSource, resolve


@dataclass(frozen=True)
class Bench:
    """A model on this machine; sizes in bytes.

    `load_s` includes the imports. Latencies are medians of one image, without preprocessing unless
    it is in the tower's graph, and of one short text, on one thread; `memory_bytes` is the peak
    until then, 0 for a teacher of a class in `__main__`. `images_per_s` is with reading, of files
    that were read before. `agreement` is the fraction of the images with the same best label as
    with the first of the models. Both are None without images, and without labels.
    """

    model: str
    parameters: int
    size_bytes: int
    load_s: float
    memory_bytes: int
    image_ms: float
    text_ms: float
    images_per_s: float | None
    agreement: float | None


def bench(
    models: PathLike | Iterable[PathLike | ModelSource],
    images: PathLike | Iterable[PathLike] = (),
    labels: Sequence[str] = (),
    *,
    threads: int | None = None,
    together: bool = False,
    progress: ProgressChoice = False,
) -> list[Bench]:
    """Measure models, what `load` takes, one after the other on the CPU, in fp32.

    With `images`, files, folders or globs, also their throughput on `threads` threads, all cores
    by default, and with `labels` how far they agree with the first model. Each model has a process
    of its own, or all share one if `together`: torch is imported once, but `memory_bytes` of a
    later model is up to 4 % higher, and at least that of those before it. Measure on a machine
    that does nothing else.
    """
    benches: list[Bench] = []
    pool: ProcessPoolExecutor | None = None
    best: list[list[str | None]] = []
    paths = list(image_files(images))
    names = [models] if isinstance(models, str | os.PathLike) else [*models]
    if labels and not paths:
        raise DcclipError("--labels needs images", "add images with --images FOLDER")
    for path in paths:
        refuse_special(path)
    sources = [name if isinstance(name, ModelSource) else resolve(str(name)) for name in names]
    measure = partial(
        _measure, paths=paths, labels=list(dict.fromkeys(labels)), threads=threads or cores()
    )
    hint = Message("free some memory, or measure a smaller model")
    talk = progress_for(progress)
    with talk.task(Message("bench"), len(names)) as task, ExitStack() as pools:
        for name, source in zip(names, sources, strict=True):
            if type(source.teacher).__module__ == "__main__":  # a class that no other process has
                measured, answers, errors = measure(source)
                measured = replace(measured, memory_bytes=0)
            else:
                if pool is None or not together:
                    pools.close()
                    pool = pools.enter_context(process_pool(1, fresh=True))
                [(measured, answers, errors)] = calls(pool, measure, [source], hint)
            if len(errors) == len(paths) > 0:
                raise errors[0]
            if errors and not best:
                talk.say(
                    Message(
                        "warning: {:,} unreadable images are ignored: {}", len(errors), errors[0]
                    )
                )
            best.append(answers)
            same = [
                label == first
                for label, first in zip(answers, best[0], strict=True)
                if first is not None
            ]
            label = source.target if name is source else str(name)
            benches.append(
                replace(measured, model=label, agreement=sum(same) / len(same) if same else None)
            )
            task.advance()
    return benches


def _measure(
    source: ModelSource, paths: Sequence[Path], labels: Sequence[str], threads: int
) -> tuple[Bench, list[str | None], list[DcclipError]]:
    """The measurements of a model, its best label for each image, None for those that cannot be
    read, and why.
    """
    begin = time.perf_counter()
    from dcclip_cli.inference.encoder import footprint, load_encoder
    from dcclip_cli.inference.images import embed, read
    from dcclip_cli.inference.zero_shot import Labels

    encoder = load_encoder(source, "cpu", "fp32", threads=1)
    load_s = time.perf_counter() - begin
    small = footprint(encoder)
    memory_bytes = peak_memory_bytes()
    rate: float | None = None
    best: list[str | None] = []
    errors: list[DcclipError] = []
    if paths:
        encoder = load_encoder(source, "cpu", "fp32", threads=threads)
        for path in paths:
            path.read_bytes()  # the first model does not wait for the disk either
        begin = time.perf_counter()
        results = [row for _, row in embed(encoder, paths, read)]
        errors = [row for row in results if isinstance(row, DcclipError)]
        rate = (len(paths) - len(errors)) / (time.perf_counter() - begin)
        if labels:
            ready = Labels(encoder, labels, None, False)
            best = [
                None
                if isinstance(row, DcclipError)
                else ready.names[int(ready.probabilities(row[np.newaxis]).argmax())]
                for row in results
            ]
    measured = Bench(
        "",
        **vars(small),
        load_s=load_s,
        memory_bytes=memory_bytes,
        images_per_s=rate,
        agreement=None,
    )
    return measured, best, errors
