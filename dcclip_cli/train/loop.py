"""The one training loop: both stages hand it a module that turns a batch into loss terms."""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration
from torch import nn
from torch.utils.data import DataLoader

from dcclip_cli.data.batches import Batch, Order, Reader
from dcclip_cli.errors import DcclipError
from dcclip_cli.progress import Progress
from dcclip_cli.train.options import LoopOptions
from dcclip_cli.train.state import load_state, save_state, saved_step


@dataclass(frozen=True)
class Fitted:
    """What the loop measured: seconds of this process, steps it did, and the last logged figures."""

    seconds: float
    steps: int
    figures: dict[str, float]


def total_steps(options: LoopOptions, order: Order) -> int:
    """The steps that `epochs` or `steps` ask for."""
    return options.steps or max(1, round((options.epochs or 0) * order.steps_per_epoch))


def learning_rate_factor(step: int, warmup_steps: int, steps: int) -> float:
    """Linear warm-up from 0, then half a cosine down to 0, as a factor in (0, 1] of the peak rate."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def fit(
    stage: nn.Module,
    name: str,
    reader: Reader,
    order: Order,
    options: LoopOptions,
    folder: Path,
    identity: str,
    seed: int,
    device: str,
    progress: Progress,
    finish: Callable[[dict[str, float]], None],
) -> Fitted:
    """Train `stage` in place; its forward takes a Batch and returns named, weighted loss terms whose sum is minimised.

    Saves the resume state under `folder/state` and goes on from it. `identity` names all that decides the result.
    `finish` gets the last figures and keeps the trained `stage`, in one process while the others wait.
    Raises DcclipError on a loss that isn't finite, KeyboardInterrupt (state saved) on Ctrl-C.
    """
    accelerator = _accelerator(options, folder, device)
    if order.batch_size % accelerator.num_processes:
        raise DcclipError(
            f"batch_size {order.batch_size} can't be shared by {accelerator.num_processes} processes",
            "make it a multiple of the number of processes",
        )
    stage.to(accelerator.device)
    optimizer = _optimizer(stage, options)
    steps = total_steps(options, order)
    start = 0
    if saved := saved_step(folder / "state"):
        start = load_state(saved, identity, stage, optimizer)
        progress.say(f"{name}: going on from step {start} of {steps}")
    wrapped, optimizer = accelerator.prepare(stage, optimizer)
    log = _Log(folder, start, accelerator)
    loader = _loader(reader, order, start, steps, options.workers, accelerator)
    began, figures = time.monotonic(), {}
    with progress.task(name, steps, start) as task, _held_interrupt() as interrupted:
        stage.train()
        waiting = time.monotonic()
        for step, batch in enumerate(loader, start):
            waited = time.monotonic() - waiting
            factor = learning_rate_factor(step, options.warmup_steps, steps)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            torch.manual_seed(((seed << 40) + (step << 12) + accelerator.process_index) % 2**64)
            terms = wrapped(_to_device(batch, accelerator.device))
            loss = sum(terms.values())
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(wrapped.parameters(), options.clip_norm or math.inf)
            optimizer.step()
            optimizer.zero_grad()
            done = step + 1
            if done % options.log_every_steps == 0 or done == steps:
                figures = {key: float(value.detach()) for key, value in terms.items()}
                figures |= {
                    "loss": float(loss.detach()),
                    "gradient_norm": float(norm),
                    "lr": options.optimizer.lr * factor,
                }
                figures |= getattr(stage, "figures", dict)()
                _check_finite(figures, done, folder)
                speed = order.batch_size / (time.monotonic() - waiting + waited)
                log.write(done, {**figures, "images_per_second": speed, "data_wait_s": waited})
                task.advance(0, loss=figures["loss"], images_per_s=speed)
            task.advance()
            waiting = time.monotonic()
            due = done % options.checkpoint_every_steps == 0 or interrupted
            if due:
                _check_finite({"loss": float(loss.detach())}, done, folder)
            if due and done < steps and accelerator.is_main_process:
                save_state(folder / "state", done, identity, stage, optimizer.optimizer)
            if interrupted:
                raise KeyboardInterrupt
    seconds = time.monotonic() - began
    stage.eval().to("cpu")
    if accelerator.is_main_process:
        finish(figures)
    _leave(accelerator)
    return Fitted(seconds, steps - start, figures)


def _accelerator(options: LoopOptions, folder: Path, device: str) -> Accelerator:
    torch.use_deterministic_algorithms(True, warn_only=True)
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="no" if options.precision == "fp32" else options.precision,
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder)),
        # Stage 1 never uses the temperature, and each loss only some of the projections.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def _optimizer(stage: nn.Module, options: LoopOptions) -> torch.optim.Optimizer:
    """The optimizer, with weight decay on matrices only, and the towers' own learning rates."""
    chosen = options.optimizer
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in stage.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = chosen.weight_decay if parameter.ndim > 1 and "positional_embedding" not in name else 0.0
        new = ".head." in name or "classifier" in name  # the projection is not part of what was pretrained
        scale = chosen.image_lr_scale if ".visual." in name and not new else 1.0
        # A table of vectors is a matrix in shape only: its rows are learnt one by one.
        groups.setdefault((chosen.lr * scale, decay, "_embedding" in name), []).append(parameter)
    parameters: list[dict[str, Any]] = [
        {"params": members, "lr": lr, "peak_lr": lr, "weight_decay": decay, "use_fallback": is_table}
        for (lr, decay, is_table), members in groups.items()
    ]
    if chosen.kind == "adamw":
        return torch.optim.AdamW(parameters, betas=chosen.betas, eps=chosen.eps)
    from timm.optim import Muon

    return Muon(
        parameters,
        momentum=chosen.momentum,
        nesterov=True,
        betas=chosen.betas,
        fallback_lr_scale=(chosen.other_lr or chosen.lr) / chosen.lr,
    )


def _loader(
    reader: Reader, order: Order, start: int, steps: int, workers: int, accelerator: Accelerator
) -> Iterator[Batch]:
    share = order.batch_size // accelerator.num_processes
    first = accelerator.process_index * share
    sampler = (samples[first : first + share] for samples in order(start, steps))
    loader: DataLoader[Any] = DataLoader(
        reader,  # type: ignore[arg-type]  # asked for whole batches through __getitems__
        batch_sampler=sampler,
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


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return batch if device.type == "cpu" else batch.to(device)


@contextmanager
def _held_interrupt() -> Iterator[list[int]]:
    """Ctrl-C puts something into the list that this yields, so that a step is never cut in the middle."""
    received: list[int] = []
    try:
        before = signal.signal(signal.SIGINT, lambda number, _frame: received.append(number))
    except ValueError:  # not in the main thread: leave signals alone
        yield received
        return
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)


def _check_finite(figures: dict[str, float], step: int, folder: Path) -> None:
    bad = [name for name, value in figures.items() if not math.isfinite(value)]
    if bad:
        raise DcclipError(
            f"step {step}: {', '.join(bad)} is not finite",
            f"lower optimizer.lr; the figures are in {folder}/metrics.jsonl",
        )


class _Log:
    """metrics.jsonl and tensorboard, cut back to the step that training goes on from."""

    def __init__(self, folder: Path, start: int, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._file = folder / "metrics.jsonl"
        if not accelerator.is_main_process:
            return
        folder.mkdir(parents=True, exist_ok=True)
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= start]
        self._file.write_text("".join(line + "\n" for line in kept))
        if not start:
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        accelerator.init_trackers("tensorboard")

    def write(self, step: int, figures: dict[str, float]) -> None:
        if self._accelerator.is_main_process:
            rounded = {name: float(f"{value:.6g}") for name, value in figures.items()}
            with self._file.open("a") as stream:
                stream.write(json.dumps({"step": step, **rounded}) + "\n")
            self._accelerator.log(figures, step=step)


def _leave(accelerator: Accelerator) -> None:
    """Free everything before the process group goes: gloo may hang at exit otherwise (pytorch issue 56297)."""
    accelerator.free_memory()
    gc.collect()
    accelerator.wait_for_everyone()
    accelerator.end_training()
