"""The one training loop: both stages hand it a module that turns a batch into loss terms."""

from __future__ import annotations

import gc
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration
from torch import Tensor
from torch.utils.data import DataLoader

from dcclip_cli.data.collator import Batch, Collator
from dcclip_cli.data.samplers import MixedBatchSampler
from dcclip_cli.errors import DcclipError
from dcclip_cli.processes import loading_processes
from dcclip_cli.progress import Progress
from dcclip_cli.train.checkpoint import Identity, load_state, save_state, saved_step, tensors_of
from dcclip_cli.train.distributed import any_process
from dcclip_cli.train.ema import Best, averaged, in_place_of
from dcclip_cli.train.grad_cache import backward, cached_backward
from dcclip_cli.train.guards import NonFiniteGuard, warn_at_chance
from dcclip_cli.train.metrics_log import Log
from dcclip_cli.train.objective import Objective
from dcclip_cli.train.optimizer import make_optimizer
from dcclip_cli.train.options import LoopOptions
from dcclip_cli.train.trainable import Trainable

Measure = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Fitted:
    """What the loop measured: seconds of this process, steps it did, and the last logged figures."""

    seconds: float
    steps: int
    figures: dict[str, float]


def total_steps(options: LoopOptions, order: MixedBatchSampler) -> int:
    """The steps that `epochs` or `steps` ask for."""
    return options.steps or max(1, round((options.epochs or 0) * order.steps_per_epoch))


def learning_rate_factor(step: int, warmup_steps: int, steps: int) -> float:
    """Linear warm-up from 0, then half a cosine down to 0, as a factor in (0, 1] of the peak rate."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def fit(
    stage: Trainable,
    name: str,
    reader: Collator,
    order: MixedBatchSampler,
    options: LoopOptions,
    folder: Path,
    identity: Identity,
    seed: int,
    device: str,
    progress: Progress,
    finish: Callable[[dict[str, float]], None],
    measure: Measure | None = None,
) -> Fitted:
    """Train `stage` in place.

    Saves the resume state under `folder/state` and goes on from it. `identity` names all that decides the result.
    `finish` gets the last figures and keeps the trained `stage`, in one process while the others wait. `measure`
    validates the student. Raises DcclipError on losses that aren't finite, KeyboardInterrupt (state saved) on Ctrl-C or
    SIGTERM.
    """
    accelerator = _accelerator(options, folder, device)
    order.check_shares(accelerator.num_processes * options.accumulate)
    stage.to(accelerator.device)
    optimizer = make_optimizer(stage, options.optimizer)
    average = averaged(stage.kept, options.ema)
    steps, start, extra = total_steps(options, order), 0, {"skipped_steps": 0, "worse": 0}
    if saved := saved_step(folder / "state"):
        state = load_state(saved, identity, stage, optimizer, average)
        start, extra = state.step, {**extra, **state.extra}
        progress.say(f"{name}: going on from step {start} of {steps}")
    optimizer = accelerator.prepare(optimizer)
    wrapped = accelerator.prepare(stage)
    if accelerator.scaler is not None and "scaler" in extra:
        accelerator.scaler.load_state_dict(extra["scaler"])
    log = Log(folder, start, accelerator)
    best = Best(folder / "best", start, options.patience, measure) if measure else None
    if best:
        best.resume(int(extra["worse"]))
    bad = NonFiniteGuard(stage, options.max_skipped_steps, folder)
    bad.skipped = int(extra["skipped_steps"])
    began, figures = time.monotonic(), dict[str, float]()
    logged = _Span(start, began)
    loader = _loader(reader, order, start, steps, options.workers, accelerator)

    def save(done: int) -> None:
        if accelerator.is_main_process:
            tensors = tensors_of(stage, optimizer.optimizer, average)
            more: dict[str, Any] = {"skipped_steps": bad.skipped, "worse": best.worse if best else 0}
            if accelerator.scaler is not None:
                more["scaler"] = accelerator.scaler.state_dict()
            save_state(folder / "state", done, identity, tensors, more)

    with progress.task(name, steps, start) as task, _held_signals() as received:
        stage.train()
        bad.good()
        waiting = time.monotonic()
        for step, batch in enumerate(loader, start):
            logged.waited += time.monotonic() - waiting
            factor = learning_rate_factor(step, options.warmup_steps, steps)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            torch.manual_seed(((seed << 40) + (step << 12) + accelerator.process_index) % 2**64)
            stage.begin_step(step / steps)
            batch = _to_device(batch, accelerator.device)
            if options.gradient_cache:
                assert isinstance(stage, Objective)
                terms = cached_backward(stage, batch, options.accumulate, accelerator)
            else:
                terms = backward(wrapped, batch, options.accumulate, accelerator)
            norm = float(accelerator.clip_grad_norm_(stage.parameters(), options.clip_norm or math.inf))
            done = step + 1
            # fp16 has gradients that overflow now and then: its scaler leaves such steps out itself.
            fine = math.isfinite(float(sum(terms.values()))) and (math.isfinite(norm) or accelerator.scaler is not None)
            if any_process(not fine, accelerator.device):
                bad.bad(done, terms, norm)
            else:
                optimizer.step()
                bad.good()
                if average is not None:
                    average.update_parameters(stage.kept)
            optimizer.zero_grad()
            if done % options.log_every_steps == 0 or done == steps:
                figures = _over_processes(terms, accelerator)
                figures |= {
                    "loss": sum(figures.values()),
                    "gradient_norm": norm,
                    "lr": options.optimizer.lr * factor,
                    "skipped_steps": bad.skipped,
                }
                figures |= stage.figures()
                speed = logged.figures(done, steps, order.batch_size)
                log.write(done, {**figures, **speed})
                task.advance(0, loss=figures["loss"], images_per_s=speed["images_per_second"])
            if done == options.warn_at_chance_steps and accelerator.is_main_process:
                warn_at_chance({key: float(value) for key, value in terms.items()}, stage.chance, done, progress)
            task.advance()
            over = False
            if best and options.validate_every_steps and (done % options.validate_every_steps == 0 or done == steps):
                with in_place_of(stage.kept, average):
                    measured = best.validate(done, stage.kept, accelerator.is_main_process)
                log.write(done, measured)
                over = any_process(best.over, accelerator.device)
                if over:
                    progress.say(f"{name}: no better since step {best.step}: ends at step {done} of {steps}")
            interrupted = any_process(bool(received), accelerator.device)
            if (done % options.checkpoint_every_steps == 0 or interrupted) and done < steps and not over:
                save(done)
            if interrupted:
                raise KeyboardInterrupt
            if over:
                break
            waiting = time.monotonic()
    seconds = time.monotonic() - began
    figures |= _keep(stage, average, best, options)
    stage.eval().to("cpu")
    if accelerator.is_main_process:
        finish(figures)
    _leave(accelerator)
    return Fitted(seconds, steps - start, figures)


def _over_processes(terms: Mapping[str, Tensor], accelerator: Accelerator) -> dict[str, float]:
    """The means of loss terms, of which each process may have worked out its own share."""
    means = accelerator.reduce(torch.stack([term.float() for term in terms.values()]), "mean")
    return dict(zip(terms, means.tolist(), strict=True))


def _keep(stage: Trainable, average: Any, best: Best | None, options: LoopOptions) -> dict[str, float]:
    """Give the stage the weights that are kept, and return what validation said of them."""
    if best and options.keep == "best":
        best.restore(stage.kept)
        return {**best.figures, "best_step": best.step}
    if average is not None:
        stage.kept.load_state_dict(average.module.state_dict())
    return {}


@dataclass
class _Span:
    """The steps since the last entry in the log."""

    step: int
    began: float
    waited: float = 0.0

    def figures(self, done: int, steps: int, batch_size: int) -> dict[str, float]:
        """Speed, waiting for data per step, and time left, over the span that ends here; the next one begins."""
        now, count = time.monotonic(), done - self.step
        each = (now - self.began) / count
        figures = {
            "images_per_second": batch_size / each,
            "data_wait_s": self.waited / count,
            "seconds_left": each * (steps - done),
        }
        self.step, self.began, self.waited = done, now, 0.0
        return figures


def _accelerator(options: LoopOptions, folder: Path, device: str) -> Accelerator:
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It would also fill each new tensor with NaN, to show reads of what nobody wrote: 8 % of a step, no other result.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010  # torch's stubs lack it
    AcceleratorState._reset_state()  # one process keeps one precision, and the stage before may have had another
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="no" if options.precision == "fp32" else options.precision,
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder)),
        # Stage 1 never uses the temperature, and each loss only some of the projections.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def _loader(
    reader: Collator, order: MixedBatchSampler, start: int, steps: int, workers: int, accelerator: Accelerator
) -> Iterator[Batch]:
    workers = loading_processes(workers)
    loader: DataLoader[Any] = DataLoader(
        reader,  # type: ignore[arg-type]  # asked for whole batches through __getitems__
        batch_sampler=order.share(start, steps, accelerator.process_index, accelerator.num_processes),
        collate_fn=lambda batch: batch,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_quiet_worker,
        prefetch_factor=4 if workers else None,
    )
    for batch in loader:
        if isinstance(batch, DcclipError):
            raise batch
        yield batch


def _quiet_worker(_number: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process saves the state first
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return batch if device.type == "cpu" else batch.to(device)


@contextmanager
def _held_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM (of torchrun, of a cluster) go into the list that this yields: no step is cut short."""
    received: list[int] = []
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda number, _frame: received.append(number))
    except ValueError:  # not in the main thread: leave signals alone
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(accelerator: Accelerator) -> None:
    """Free everything before the process group goes: gloo may hang at exit otherwise (pytorch issue 56297)."""
    accelerator.free_memory()
    gc.collect()
    accelerator.wait_for_everyone()
    accelerator.end_training()
