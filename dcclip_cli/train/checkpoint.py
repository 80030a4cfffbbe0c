"""Checkpoints: everything that a run needs to resume bit for bit, as safetensors and JSON, and the
best weights.

Random numbers, learning rates and the data's order are functions of the seed and the step. What
remains is the step and a few counters, the weights, the optimizer's moments and the EMA.
"""

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from dcclip_cli.core.checksums import read_record, write_record
from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import atomic_folder, remove, validated
from dcclip_cli.train.distributed import from_first

# of a checkpoint
TENSORS = "tensors.safetensors"
STATE = "state.json"
# of the best weights
WEIGHTS = "weights.safetensors"
METRICS = "metrics.json"
_AGAIN = Message("start over with --fresh")

# everything that decides a stage's result, by name, JSON-serializable
Identity = Mapping[str, Any]


class TrainState(BaseModel):
    """The progress of a run, without its tensors.

    `validation_due`: the run ended in the validation after `step`. `best_step` and `best_metrics`
    are those of the best weights by validation, 0 and empty before the first one. `frozen` is
    TrainingTask.frozen_digest() at the first step, empty if an older version saved the state.
    `metrics` are the last ones that were logged. `scaler` is the state of the fp16 gradient
    scaler.
    """

    model_config = ConfigDict(strict=True)
    step: int = Field(ge=0)
    skipped_steps: int = Field(0, ge=0)
    skipped_in_a_row: int = Field(0, ge=0)
    validations_since_best: int = Field(0, ge=0)
    best_step: int = Field(0, ge=0)
    best_metrics: dict[str, float] = {}
    validation_due: bool = False
    frozen: str = ""
    metrics: dict[str, float] = {}
    scaler: dict[str, Any] | None = None


def copy_tensors(
    model: nn.Module, optimizer: Optimizer, ema: nn.Module | None = None
) -> dict[str, Tensor]:
    """The tensors of a checkpoint, copied to the CPU: the next step changes nothing in them."""
    names = _parameter_names(model, optimizer)
    tensors: dict[str, Tensor] = {
        f"model/{name}": value for name, value in model.state_dict().items()
    }
    if ema is not None:
        tensors |= {f"ema/{name}": value for name, value in ema.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        # Muon stores a boolean with its moments.
        tensors |= {
            f"optimizer/{names[number]}/{key}": torch.as_tensor(value)
            for key, value in moments.items()
        }
    return {
        name: torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
        for name, value in tensors.items()
    }


def write_checkpoint(
    folder: Path, state: TrainState, identity: Identity, tensors: dict[str, Tensor], keep: int = 1
) -> None:
    """Write `folder/step-NNNNNNNN`, whole or not at all; then remove all but the last `keep`, and
    what kills left.

    Raises DcclipError if the disk is full; the checkpoints before are kept.
    """
    target = folder / f"step-{state.step:08d}"
    try:
        with atomic_folder(target) as temporary:
            save_file(tensors, temporary / TENSORS)
            write_record(temporary / STATE, {**state.model_dump(), "identity": identity})
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) != errno.ENOSPC and "No space left on device" not in str(
            error
        ):
            raise
        before = latest_checkpoint(folder)
        last = (
            Message("the last checkpoint is {}", before)
            if before
            else Message("there is no checkpoint yet")
        )
        free = shutil.disk_usage(folder).free / 1e6
        problem = Message(
            "{} cannot be saved: the disk is full ({:,.1f} MB free); {}", target, free, last
        )
        raise DcclipError(problem, "free some space, then run the same command again") from None
    for path in {*folder.glob("*")} - {*sorted(folder.glob("step-*"))[-keep:]}:
        remove(path)


def _parameter_names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """The names of the optimizer's parameters, in the order of its numbers for them."""
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        by_id[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]
    ]


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint under `folder`. Raises DcclipError if `folder` is a file."""
    if folder.exists() and not folder.is_dir():
        raise DcclipError("{} is not a folder", _AGAIN, folder)
    return max(folder.glob("step-*"), default=None)


@contextmanager
def telling_saved_step(stage: Path, fresh: bool) -> Iterator[None]:
    """Let what stops the block by a signal say which step of the stage is saved."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        if checkpoint := latest_checkpoint(stage / "state"):
            step = int(checkpoint.name.removeprefix("step-"))
            how = Message(" without --fresh") if fresh else ""
            stopped.args = (
                Message(
                    "{} saved after step {}: run the same command again{}", stage.name, step, how
                ),
            )
        raise


def load_checkpoint(
    checkpoint: Path,
    identity: Identity,
    model: nn.Module,
    optimizer: Optimizer,
    ema: nn.Module | None = None,
) -> TrainState:
    """Load a checkpoint that any number of processes saved.

    Raises DcclipError if it is damaged, or belongs to another recipe, data or teacher: it says
    what differs.
    """
    is_only = min(checkpoint.parent.glob("step-*"), default=checkpoint) == checkpoint
    again = (
        _AGAIN
        if is_only
        else Message("remove {} to resume from the checkpoint before it", checkpoint)
    )
    record = from_first(lambda: read_record(checkpoint / STATE, again))
    saved = record.content.get("identity")
    if saved != json.loads(json.dumps(identity)):
        changed = (
            ", ".join(_differences(saved, identity))
            if isinstance(saved, dict)
            else Message("everything")
        )
        raise DcclipError(
            "{} belongs to another recipe, data set or teacher: {} changed",
            "undo the change to resume, or start over with --fresh",
            checkpoint.parent,
            changed,
        )
    state = validated(TrainState.model_validate, record.content, checkpoint / STATE, again)
    with record.checking():
        tensors = load_file(checkpoint / TENSORS)
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = value
    model.load_state_dict(parts["model"])
    if ema is not None:
        ema.load_state_dict(parts["ema"])
    numbers = {name: number for number, name in enumerate(_parameter_names(model, optimizer))}
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in parts["optimizer"].items():
        parameter, _, moment = name.rpartition("/")
        moments.setdefault(numbers[parameter], {})[moment] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return state


def save_best(folder: Path, step: int, metrics: Mapping[str, float], model: nn.Module) -> None:
    """Write the best weights so far, and the step and metrics of their validation, to `folder`."""
    with atomic_folder(folder) as temporary:
        weights = {
            name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
        }
        save_file(weights, temporary / WEIGHTS)
        write_record(temporary / METRICS, {"step": step, "metrics": metrics})


def load_best(folder: Path, model: nn.Module) -> None:
    """Give the model the best weights. Raises DcclipError if they are damaged."""
    with read_record(folder / METRICS, _AGAIN).checking():
        model.load_state_dict(load_file(folder / WEIGHTS))


def _differences(
    saved: Mapping[str, Any], current: Mapping[str, Any], above: str = ""
) -> Iterator[str]:
    """The names of values that differ, as deep as both sides are mappings."""
    for key in sorted({*saved, *current}):
        before = saved.get(key)
        now = current.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now, f"{above}{key}.")
        elif before != json.loads(json.dumps(now)):
            yield f"{above}{key}"
