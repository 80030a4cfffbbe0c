"""The resume state: everything that a training step needs to go on as if nothing had happened, without pickle.

Random numbers and learning rates are functions of the seed and the step, and so is the data's order: what remains is
the weights, the optimizer's moments and the step itself.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from dcclip_cli.errors import DcclipError
from dcclip_cli.model.folder import read_json, written_whole

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

TENSORS, STATE = "tensors.safetensors", "state.json"


def save_state(folder: Path, step: int, identity: str, model: nn.Module, optimizer: Optimizer) -> None:
    """Write the state after `step` steps to `folder/step-NNNNNN`, whole, and remove older ones."""
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        tensors[f"model/{name}"] = value.detach().cpu().contiguous().clone()
    for number, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            # Muon keeps a truth value beside its moments.
            tensors[f"optimizer/{number}/{name}"] = torch.as_tensor(value).detach().cpu().contiguous().clone()
    target = folder / f"step-{step:08d}"
    with written_whole(target) as temporary:
        save_file(tensors, temporary / TENSORS)
        (temporary / STATE).write_text(json.dumps({"format": 1, "step": step, "identity": identity}) + "\n")
    for older in folder.glob("*"):
        if older != target:
            shutil.rmtree(older)


def saved_step(folder: Path) -> Path | None:
    """The newest whole state under `folder`."""
    return max(folder.glob("step-*"), default=None)


def load_state(saved: Path, identity: str, model: nn.Module, optimizer: Optimizer) -> int:
    """Put a saved state back and return its step. Raises DcclipError where another recipe or other data made it."""
    from safetensors.torch import load_file

    state = read_json(saved / STATE, "start over with --fresh")
    if state.get("identity") != identity:
        raise DcclipError(
            f"{saved.parent} was saved by another recipe, on other data or with another teacher",
            "put back what was changed to go on, or start over with --fresh",
        )
    tensors = load_file(saved / TENSORS)
    model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model/")})
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, number, moment = name.split("/")
            moments.setdefault(int(number), {})[moment] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return int(state["step"])
