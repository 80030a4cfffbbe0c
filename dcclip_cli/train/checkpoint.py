"""Checkpoints: everything that a run needs to resume bit for bit, as safetensors and JSON.

Random numbers, learning rates and the data's order are functions of the seed and the step. What remains is the step and
a few counters, the weights, the optimizer's moments and the EMA.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcclip_cli.errors import DcclipError
from dcclip_cli.files import atomic_folder, read_json

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

TENSORS, STATE = "tensors.safetensors", "state.json"

Identity = Mapping[str, Any]  # everything that decides a stage's result, by name, JSON-serializable


@dataclass
class TrainState:
    """The progress of a run, without its tensors.

    `validation_due`: the run ended in the validation after `step`. `scaler` is the state of the fp16 gradient scaler.
    """

    step: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    validations_since_best: int = 0
    validation_due: bool = False
    scaler: dict[str, Any] | None = None


def save_checkpoint(
    folder: Path,
    state: TrainState,
    identity: Identity,
    model: nn.Module,
    optimizer: Optimizer,
    ema: nn.Module | None = None,
) -> None:
    """Write `folder/step-NNNNNNNN`, whole or not at all, and remove older ones.

    Raises DcclipError if the disk is full; the checkpoint before is kept.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target = folder / f"step-{state.step:08d}"
    content = {"format": 3, **asdict(state), "identity": identity}
    try:
        with atomic_folder(target) as temporary:
            save_file(_tensors(model, optimizer, ema), temporary / TENSORS)
            (temporary / STATE).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) != errno.ENOSPC and "No space left on device" not in str(error):
            raise
        before = latest_checkpoint(folder)
        last = f"the last checkpoint is {before}" if before else "there is no checkpoint yet"
        raise DcclipError(
            f"{target} cannot be saved because the disk is full; {last}",
            "free some space, then run the same command again",
        ) from None
    for older in folder.glob("*"):
        if older != target:
            shutil.rmtree(older)


def _tensors(model: nn.Module, optimizer: Optimizer, ema: nn.Module | None) -> dict[str, Tensor]:
    """Copies on the CPU, named model/NAME, optimizer/PARAMETER/MOMENT and ema/NAME."""
    import torch

    found: dict[str, Tensor] = {f"model/{name}": value for name, value in model.state_dict().items()}
    if ema is not None:
        found |= {f"ema/{name}": value for name, value in ema.state_dict().items()}
    names = _parameter_names(model, optimizer)
    for number, moments in optimizer.state_dict()["state"].items():
        # Muon stores a boolean with its moments.
        found |= {f"optimizer/{names[number]}/{key}": torch.as_tensor(value) for key, value in moments.items()}
    return {name: value.detach().cpu().contiguous().clone() for name, value in found.items()}


def _parameter_names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """The names of the optimizer's parameters, in the order of its numbers for them."""
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return [by_id[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint under `folder`."""
    return max(folder.glob("step-*"), default=None)


def load_checkpoint(
    checkpoint: Path,
    identity: Identity,
    model: nn.Module,
    optimizer: Optimizer,
    ema: nn.Module | None = None,
) -> TrainState:
    """Load a checkpoint that any number of processes saved.

    Raises DcclipError if it is damaged, or belongs to another recipe, data or teacher: it says what differs.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    content = read_json(checkpoint / STATE, "start over with --fresh")
    saved = content.get("identity")
    if saved != json.loads(json.dumps(identity)):
        changed = ", ".join(_differences(saved, identity)) if isinstance(saved, dict) else "everything"
        raise DcclipError(
            f"{checkpoint.parent} was saved by another recipe, on other data or with another teacher: {changed} "
            "changed",
            "undo the change to resume, or start over with --fresh",
        )
    try:
        tensors = load_file(checkpoint / TENSORS)
    except (SafetensorError, OSError) as error:
        raise DcclipError(f"{checkpoint / TENSORS} cannot be read: {error}", "start over with --fresh") from None
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
    return TrainState(**{one.name: content[one.name] for one in fields(TrainState) if one.name in content})


def _differences(one: Mapping[str, Any], other: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The names of values that differ, as deep as both sides are mappings."""
    for key in sorted({*one, *other}):
        here, there = one.get(key), other.get(key)
        if isinstance(here, dict) and isinstance(there, dict):
            yield from _differences(here, there, f"{above}{key}.")
        elif here != json.loads(json.dumps(there)):
            yield f"{above}{key}"
