"""The resume state: everything that a training step needs to go on as if nothing had happened, without pickle.

Random numbers and learning rates are functions of the seed and the step, and so is the data's order: what remains is
the weights, the optimizer's moments, an average of the weights, and the step itself.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcclip_cli.errors import DcclipError
from dcclip_cli.files import atomic_folder, read_json

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

TENSORS, STATE = "tensors.safetensors", "state.json"

Identity = Mapping[str, Any]  # all that decides a stage's result, by name, JSON-serialisable


@dataclass(frozen=True)
class Tensors:
    """All tensors of a state, by name: those of the module, the optimizer's moments, and of what else learns."""

    model: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]  # by parameter, by moment
    average: dict[str, Tensor] = field(default_factory=dict)


def tensors_of(model: nn.Module, optimizer: Optimizer, average: nn.Module | None = None) -> Tensors:
    """A module's and an optimizer's tensors, as they are, on the CPU."""
    import torch

    names = _names(model, optimizer)
    moments = {
        # Muon keeps a truth value beside its moments.
        names[number]: {name: _kept(torch.as_tensor(value)) for name, value in kept.items()}
        for number, kept in optimizer.state_dict()["state"].items()
    }
    own = {name: _kept(value) for name, value in model.state_dict().items()}
    averaged = {} if average is None else {name: _kept(value) for name, value in average.state_dict().items()}
    return Tensors(own, moments, averaged)


def _kept(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().clone()


def _names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """The names of the optimizer's parameters, in the order in which it numbers them."""
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return [by_id[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def save_state(folder: Path, step: int, identity: Identity, tensors: Tensors, extra: Mapping[str, Any] = {}) -> None:
    """Write the state after `step` steps to `folder/step-NNNNNN`, whole, and remove older ones.

    `extra` is JSON-serialisable and comes back from `load_state`. Raises DcclipError where the disk is full: the state
    before stays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    flat = {f"model/{name}": value for name, value in tensors.model.items()}
    flat |= {f"average/{name}": value for name, value in tensors.average.items()}
    for parameter, moments in tensors.moments.items():
        flat |= {f"optimizer/{parameter}/{name}": value for name, value in moments.items()}
    target = folder / f"step-{step:08d}"
    content = {"format": 2, "step": step, "identity": identity, "extra": extra}
    try:
        with atomic_folder(target) as temporary:
            save_file(flat, temporary / TENSORS)
            (temporary / STATE).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        if not _disk_is_full(error):
            raise
        before = saved_step(folder)
        last = f"the last whole one is {before}" if before else "there is none yet"
        raise DcclipError(
            f"{target} can't be saved, the disk is full; {last}", "free some space, then run the same command again"
        ) from None
    for older in folder.glob("*"):
        if older != target:
            shutil.rmtree(older)


def _disk_is_full(error: Exception) -> bool:
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)


def saved_step(folder: Path) -> Path | None:
    """The newest whole state under `folder`."""
    return max(folder.glob("step-*"), default=None)


@dataclass(frozen=True)
class Saved:
    """What a state says beside its tensors."""

    step: int
    extra: dict[str, Any]


def load_state(
    saved: Path, identity: Identity, model: nn.Module, optimizer: Optimizer, average: nn.Module | None = None
) -> Saved:
    """Put a saved state back, whatever number of processes saved it.

    Raises DcclipError where it is broken, and where another recipe or other data made it: it says what differs.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    state = read_json(saved / STATE, "start over with --fresh")
    theirs = state.get("identity")
    if theirs != json.loads(json.dumps(identity)):
        differing = ", ".join(_differences(theirs, identity)) if isinstance(theirs, dict) else "everything"
        raise DcclipError(
            f"{saved.parent} was saved by another recipe, on other data or with another teacher: {differing} changed",
            "put back what was changed to go on, or start over with --fresh",
        )
    try:
        tensors = load_file(saved / TENSORS)
    except (SafetensorError, OSError) as error:
        raise DcclipError(f"{saved / TENSORS} can't be read: {error}", "start over with --fresh") from None
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = value
    model.load_state_dict(parts["model"])
    if average is not None:
        average.load_state_dict(parts["average"])
    numbers = {name: number for number, name in enumerate(_names(model, optimizer))}
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in parts["optimizer"].items():
        parameter, _, moment = name.rpartition("/")
        moments.setdefault(numbers[parameter], {})[moment] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return Saved(int(state["step"]), dict(state.get("extra", {})))


def _differences(one: Mapping[str, Any], other: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The names of what differs, as deep as both are mappings."""
    for key in sorted({*one, *other}):
        mine, theirs = one.get(key), other.get(key)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            yield from _differences(mine, theirs, f"{above}{key}.")
        elif mine != json.loads(json.dumps(theirs)):
            yield f"{above}{key}"
