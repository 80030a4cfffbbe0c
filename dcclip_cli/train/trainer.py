"""The training loop of both stages."""

import gc
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from dcclip_cli.core.errors import DcclipError, Message, all_of
from dcclip_cli.core.machine import loading_processes
from dcclip_cli.core.processes import Stopped, asked, handled, noted
from dcclip_cli.core.progress import Task
from dcclip_cli.core.run_dir import TrainResult
from dcclip_cli.data.batch import Batch
from dcclip_cli.train import checkpoint
from dcclip_cli.train.compute import Parts, make_accelerator
from dcclip_cli.train.distributed import (
    any_process,
    average_statistics,
    fail_together,
    from_all,
    from_first,
)
from dcclip_cli.train.loading import load_batches
from dcclip_cli.train.lora import merge_lora
from dcclip_cli.train.metrics_log import MetricsLog
from dcclip_cli.train.optimizer import (
    clip_gradients,
    ema_weights,
    learning_rate_factor,
    make_ema,
    make_optimizer,
)
from dcclip_cli.train.speed import StepTimer
from dcclip_cli.train.stage import Stage
from dcclip_cli.train.task import backward, cached_backward

CHANCE_STEP = 500  # after which a contrastive loss at chance level is reported
MAX_SKIPPED_STEPS = 10  # in a row, before the run ends
_AT_CHANCE = 0.98  # fraction of the loss at chance level above which nothing has been learned
PREFETCHED_SAMPLES = 1024  # by each loading process, in whole batches: about 250 KB each

Finish = Callable[[dict[str, float]], None]


def train_stage(stage: Stage) -> TrainResult:
    """The model directory that a stage writes; resumes from its checkpoint. One that is finished
    is left as it is.

    Raises DcclipError for data, a teacher or a student that cannot be loaded, and for a checkpoint
    of another recipe.
    """
    if result := stage.finished():
        return result
    model = stage.run.model(stage.name)
    with checkpoint.telling_saved_step(stage.folder, stage.fresh):
        stage.prepare()
        trainer = Trainer(stage)

        def save(metrics: dict[str, float]) -> None:
            if trainer.accelerator.is_main_process:
                if stage.options.lora:
                    merge_lora(stage.student.towers.model)
                stage.student.save(
                    model, {**stage.provenance, "metrics": metrics}, stage.options.half
                )

        metrics = trainer.run(save)
    trainer.close()
    return TrainResult(model, False, trainer.seconds, metrics, stage.provenance)


class Trainer:
    """Trains the task of a stage that is prepared, in place, with checkpoints under `state` from
    which it resumes.

    Of a step, the host reads one number from the device: whether the step is finite; more where a
    loss between languages meets texts without a translation. Loss terms and the gradient norm are
    read when they are logged.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.options = stage.options
        self.task = stage.task
        self.sampler = stage.sampler
        self._validate = stage.validate
        self.total_steps = stage.steps
        task = self.task
        options = self.options
        self.accelerator = make_accelerator(options, stage.device, stage.leaves_parameters)
        self.device = self.accelerator.device
        task.to(self.device)
        self.optimizer = make_optimizer(task, options.optimizer)
        self.ema = make_ema(task.model, options.ema)
        self._accelerated_optimizer = self.accelerator.prepare(self.optimizer)
        self._wrapped = self.accelerator.prepare(task)
        self.state = checkpoint.TrainState(step=0)
        self.seconds = 0.0
        self._changing_weights = self._warned_of_empty_step = False
        # images of this process, of all
        self._unreadable = set[str]()
        self._reported = set[str]()
        self._saved_step = 0
        self._saved_at = time.monotonic()
        self._saver = ThreadPoolExecutor(1, "checkpoint")
        self._saving = _saved()

    def run(self, finish: Finish = lambda _metrics: None) -> dict[str, float]:
        """Train to the end and return the last metrics; the task then has the weights to be saved,
        on the CPU.

        `finish` is called with the metrics before a signal can end the run. Until then it raises
        Stopped after the step, and at once while the run waits for data or validates; in all
        processes, whichever gets the signal, when they have validated their share. Whatever ends
        the run, data that cannot be read (DcclipError) for example, the state after the last whole
        step is saved first.
        """
        self.restore()
        name = self.stage.name
        progress = self.stage.progress
        began = time.monotonic()
        self.task.train()
        self.state.frozen = self.state.frozen or self.task.frozen_digest()
        self.task.clamp_temperature()
        with handled(), noted(), progress.task(name, self.total_steps, self.state.step) as shown:
            try:
                self._train(shown)
                fail_together(self._saving.exception())
            except BaseException as error:
                if (
                    self._saving.exception() is not None
                ):  # a disk may be full for a moment: try again
                    self._saving = _saved()
                    self._saved_step = -1
                # The state after the last whole step, unless it is saved already or the error came
                # in between.
                if not self._changing_weights and self.state.step != self._saved_step:
                    # a forward pass that was not followed by a step has changed statistics
                    self._guard.restore()
                    self.save()
                self._saving.result()
                if isinstance(error, Stopped):
                    # a launcher ends all processes when the first one has ended
                    self.accelerator.wait_for_everyone()
                raise
            finally:
                self._log.close()
            self.seconds = time.monotonic() - began
            if self.options.keep == "best":
                from_first(
                    lambda: checkpoint.load_best(self.stage.folder / "best", self.task.model)
                )
                self.state.metrics |= {**self.state.best_metrics, "best_step": self.state.best_step}
            elif self.ema is not None:
                self.task.model.load_state_dict(self.ema.module.state_dict())
            if self.task.frozen_digest() != self.state.frozen:
                raise RuntimeError(
                    f"a bug: {name} changed weights or statistics that are frozen; no "
                    f"model is saved"
                )
            self.task.eval().to("cpu")
            finish(self.state.metrics)
            fail_together(Stopped() if asked() else None)
        return self.state.metrics

    def _train(self, shown: Task) -> None:
        """The steps that are left, up to the last one or to early stopping."""
        state = self.state
        options = self.options
        if state.validation_due and self.evaluate():
            return
        for batch in self._batches():
            self._unreadable.update(batch.unreadable)
            terms, norm = self.train_step(batch)
            interval = options.validate_every_steps
            is_last = state.step == self.total_steps
            state.validation_due = interval is not None and (is_last or state.step % interval == 0)
            if state.step % options.log_every_steps == 0 or is_last:
                self._report_unreadable()
                # Each process may have computed its own share of a term.
                shares = torch.stack([term.float() for term in terms.values()])
                means = dict(
                    zip(terms, self.accelerator.reduce(shares, "mean").tolist(), strict=True)
                )
                factor = self._rate_factor(state.step - 1)
                state.metrics = {
                    **means,
                    "loss": sum(means.values()),
                    "gradient_norm": float(norm),
                    "lr": options.optimizer.lr * factor,
                    "skipped_steps": state.skipped_steps,
                    **self.task.metrics(),
                }
                speed = self._timer.speed(state.step, self.total_steps, self.sampler)
                self._write_log({**state.metrics, **speed})
                for name in ("seconds_left", "reserved_memory_gb"):
                    speed.pop(name, None)
                shown_speed = {
                    name.replace("_per_second", "_per_s"): value for name, value in speed.items()
                }
                shown.advance(0, loss=state.metrics["loss"], **shown_speed)
            if state.step == CHANCE_STEP and self.accelerator.is_main_process:
                self._warn_at_chance(terms)
            shown.advance()
            if state.validation_due and self.evaluate():
                return
            if is_last:
                return  # what a signal asks for can wait until the model is saved
            every_steps = options.checkpoint_every_steps
            minutes = options.checkpoint_every_minutes
            is_late = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
            if is_late or (every_steps is not None and state.step % every_steps == 0):
                self.save()

    def _report_unreadable(self) -> None:
        """Report images that a white one replaces, in any process. Raises DcclipError in all of
        them for too many.
        """
        dataset = self.stage.collator.dataset
        if (count := dataset.num_images - dataset.num_pairs) == 0:
            return
        problems = set[str]().union(*from_all(lambda: self._unreadable))
        for problem in sorted(problems - self._reported):
            self.stage.progress.say(
                Message("warning: {}: {}; a white image replaces it", self.stage.name, problem)
            )
        self._reported = problems
        if len(problems) > max(10, 0.01 * count):
            hint = Message(
                "replace or remove the images that are named above, or convert them to JPEG"
            )
            raise DcclipError(
                "data.images: {:,} of {:,} images are unreadable", hint, len(problems), count
            )

    def train_step(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Loss terms and gradient norm of a step. One that is not finite changes no weight, moment
        or statistic.
        """
        state = self.state
        options = self.options
        factor = self._rate_factor(state.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        self.task.progress = state.step / self.total_steps
        self.task.step = state.step
        terms = self._backward(batch)
        # A batch without a text for any loss has no gradient, which fp16's scaler refuses.
        learned = any(parameter.grad is not None for parameter in self.task.parameters())
        norm = torch.zeros((), device=self.device)
        if learned:
            self.accelerator.unscale_gradients()
            norm = clip_gradients(self.task, options.clip_norm or math.inf, options.clip_towers)
        total = sum(terms.values())
        assert isinstance(total, Tensor)
        # fp16's scaler skips steps whose gradients overflow itself.
        finite = (
            total.isfinite()
            if self.accelerator.scaler is not None
            else total.isfinite() & norm.isfinite()
        )
        bad = any_process(~finite)
        self._changing_weights = True
        state.step += 1
        if bad:
            self.task.check_teachers()
            self._guard.skip(state, terms, norm)
            if learned and self.accelerator.scaler is not None:
                # halves fp16's scale, and allows the next step to unscale again
                self.accelerator.scaler.update()
        else:
            if learned:
                self._accelerated_optimizer.step()
            elif self.accelerator.is_main_process and not self._warned_of_empty_step:
                self._warned_of_empty_step = True
                line = Message(
                    "warning: {}: step {} changes no weight, because its batch has no "
                    "captions in {} for any loss; "
                    "later steps of this kind are not reported",
                    *(self.stage.name, state.step, all_of(options.captions.languages)),
                )
                self.stage.progress.say(line)
            self.task.clamp_temperature()
            average_statistics(self.task)
            self._guard.accept(state)
            if self.ema is not None:
                self.ema.update_parameters(self.task.model)
        self._changing_weights = False
        self._accelerated_optimizer.zero_grad()
        return terms, norm

    def _rate_factor(self, step: int) -> float:
        options = self.options
        return learning_rate_factor(
            step, options.warmup_steps, self.total_steps, options.schedule, options.cooldown_steps
        )

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """Add the gradients of a batch, in more parts where memory runs out, and return its loss
        terms.
        """
        step = self.state.step
        accelerator = self.accelerator
        while True:
            torch.manual_seed(
                ((self.stage.seed << 40) + (step << 12) + accelerator.process_index) % 2**64
            )
            parts = self.parts.at(step)
            try:
                if self.options.gradient_cache and parts > 1:
                    return cached_backward(self.task, batch, parts, accelerator)
                return backward(self._wrapped, batch, parts, accelerator)
            except (RuntimeError, MemoryError) as error:
                self.parts.split(step, error)
            self._accelerated_optimizer.zero_grad()
            self._guard.restore()
            clear_device_cache(garbage_collection=True)

    def evaluate(self) -> bool:
        """Validate, and return whether early stopping ends the run."""
        options = self.options
        state = self.state
        assert self._validate is not None
        with ema_weights(self.task.model, self.ema), self.accelerator.autocast():
            metrics = self._validate()
            mean, best_mean = (
                sum(top1s.values()) / max(1, len(top1s)) for top1s in (metrics, state.best_metrics)
            )
            if better := not state.best_metrics or mean > best_mean:
                folder = self.stage.folder / "best"
                from_first(
                    lambda: checkpoint.save_best(folder, state.step, metrics, self.task.model)
                )
        self._write_log(metrics)
        # Only now: what an error has stopped before is done again when training resumes.
        if better:
            state.best_step = state.step
            state.best_metrics = metrics
        state.validations_since_best = 0 if better else state.validations_since_best + 1
        state.validation_due = False
        if (
            stop := options.patience is not None
            and state.validations_since_best >= options.patience
        ):
            name = self.stage.name
            best = state.best_step
            self.stage.progress.say(
                Message(
                    "{}: early stopping at step {}/{} (best: step {})",
                    name,
                    state.step,
                    self.total_steps,
                    best,
                )
            )
        return stop

    def _write_log(self, metrics: dict[str, float]) -> None:
        from_first(lambda: self._log.write(self.state.step, metrics))

    def save(self) -> None:
        """Write a checkpoint in a thread of the main process, which decides when, after the one
        before is complete.

        An error of that one is raised in all processes before the next batch.
        """
        if self._saving.exception() is not None:
            return
        self._saved_step = self.state.step
        self._saved_at = time.monotonic()
        if not self.accelerator.is_main_process:
            return
        if self.accelerator.scaler is not None:
            self.state.scaler = self.accelerator.scaler.state_dict()
        folder = self.stage.folder / "state"
        state = self.state.model_copy(deep=True)
        tensors = checkpoint.copy_tensors(self.task, self.optimizer, self.ema)
        keep = self.options.keep_checkpoints
        self._saving = self._saver.submit(
            checkpoint.write_checkpoint, folder, state, self.stage.identity, tensors, keep
        )

    def restore(self) -> None:
        """Load the latest checkpoint, if there is one, and open the logs at its step."""
        folder = self.stage.folder
        if latest := from_first(lambda: checkpoint.latest_checkpoint(folder / "state")):
            identity = self.stage.identity
            self.state = checkpoint.load_checkpoint(
                latest, identity, self.task, self.optimizer, self.ema
            )
            self._saved_step = self.state.step
            self.stage.progress.say(
                Message(
                    "{}: resuming from step {} of {}",
                    self.stage.name,
                    self.state.step,
                    self.total_steps,
                )
            )
        if self.accelerator.scaler is not None and self.state.scaler is not None:
            self.accelerator.scaler.load_state_dict(self.state.scaler)
        self._log = MetricsLog(self.stage, self.accelerator)
        from_first(lambda: self._log.open(self.stage, self.state.step))
        self._timer = StepTimer(self.state.step, self.device)
        self._guard = NonFiniteGuard(self.task, folder)
        parts: int | Literal["auto"] = (
            "auto" if self.options.accumulate == "auto" else self.stage.fewest_parts
        )
        self.parts = Parts(parts, self.sampler, folder, self.stage.progress)

    def close(self) -> None:
        """Free everything before the process group ends: gloo may hang at exit otherwise (pytorch
        issue 56297).
        """
        self.accelerator.free_memory()
        del self._wrapped, self._accelerated_optimizer
        gc.collect()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def _warn_at_chance(self, terms: dict[str, Tensor]) -> None:
        """Report contrastive losses that are still at chance level, and the usual causes."""
        for name, level in ((name, float(value)) for name, value in self.task.chance.items()):
            if level and name in terms and float(terms[name]) > _AT_CHANCE * level:
                line = Message(
                    "warning: after {} steps {} is {:.3f}; chance level is {:.3f}. "
                    "Common causes: optimizer.lr too "
                    "high or too low; captions that do not match their images; the same "
                    "caption for most images",
                    CHANCE_STEP,
                    name,
                    float(terms[name]),
                    level,
                )
                self.stage.progress.say(line)

    def _batches(self) -> Iterator[Batch]:
        """The batches of the steps that are left, on the device. On a GPU the next one is copied
        during the step.
        """
        if self.device.type != "cuda":
            yield from (self.task.prepare(batch, self.device) for batch in self._loaded_batches())
            return
        copying = torch.cuda.Stream()
        computing = torch.cuda.current_stream()
        ready = None
        for batch in self._loaded_batches():
            copying.wait_stream(computing)  # whose freed memory the copy may use
            with torch.cuda.stream(copying):
                copied = self.task.prepare(batch, self.device)
            if ready is not None:
                yield ready
            computing.wait_stream(copying)
            ready = copied
        if ready is not None:
            yield ready

    def _loaded_batches(self) -> Iterator[Batch]:
        """The batches as the loading processes make them. Raises DcclipError for data that cannot
        be read.
        """
        # which is settled
        count = self.accelerator.num_processes
        workers = loading_processes(self.options.workers)
        make = partial(
            self.stage.collator.batch, process=self.accelerator.process_index, processes=count
        )
        prefetch = max(1, min(4, PREFETCHED_SAMPLES // (self.sampler.batch_size // count)))
        samples = self.sampler(self.state.step, self.total_steps)
        batches: Iterator[Any] | None = None
        while True:
            batch = None
            error = self._saving.exception() if self._saving.done() else None
            try:
                with self._timer.waiting(), noted(False):
                    if batches is None:
                        on_gpu = self.device.type == "cuda"
                        batches = load_batches(make, samples, workers, prefetch, pin_memory=on_gpu)
                    batch = next(batches, None)
            except Stopped:
                error = Stopped()  # without a traceback, which would keep the loading processes
            fail_together(error)
            if batch is None:
                return
            yield batch


def _saved() -> Future[None]:
    """What writing a checkpoint returns when it is complete."""
    future = Future[None]()
    future.set_result(None)
    return future


class NonFiniteGuard:
    """Undoes steps whose loss or gradient is not finite, and ends a run that has only such steps.

    A forward pass with such numbers spoils the running statistics of batch norms: they are
    restored.
    """

    def __init__(self, task: nn.Module, folder: Path) -> None:
        self._folder = folder
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for buffer in task.buffers():
            by_type.setdefault(buffer.dtype, []).append(buffer)
        self._buffers = [
            (buffers, [buffer.clone() for buffer in buffers]) for buffers in by_type.values()
        ]

    @torch.no_grad()
    def accept(self, state: checkpoint.TrainState) -> None:
        state.skipped_in_a_row = 0
        for buffers, saved in self._buffers:
            torch._foreach_copy_(saved, buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Give batch norms the statistics that they had after the last step."""
        for buffers, saved in self._buffers:
            torch._foreach_copy_(buffers, saved)

    def skip(self, state: checkpoint.TrainState, terms: dict[str, Tensor], norm: Tensor) -> None:
        """Note a step that is not finite. Raises DcclipError after too many in a row."""
        state.skipped_steps += 1
        state.skipped_in_a_row += 1
        self.restore()
        if state.skipped_in_a_row < MAX_SKIPPED_STEPS:
            return
        wrong = [name for name, term in terms.items() if not math.isfinite(float(term))]
        if not wrong and not math.isfinite(float(norm)):
            wrong = [Message("the gradient")]
        loss = all_of(wrong) if wrong else Message("the loss of another process")
        problem = Message(
            "step {}: {} is not finite, {} steps in a row", state.step, loss, state.skipped_in_a_row
        )
        hint = Message(
            "lower optimizer.lr, or raise warmup_steps; the metrics are in {}/metrics.jsonl",
            self._folder,
        )
        if state.skipped_in_a_row == state.step:  # so that no rate has changed a weight yet
            hint = Message("set precision: fp32, and check the data and the initial model")
        raise DcclipError(problem, hint)
