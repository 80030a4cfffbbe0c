"""The resume state: whole, without pickle, and only for the recipe that made it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.optim import Muon
from torch import nn

from dcclip_cli.train.checkpoint import TrainState, copy_tensors, latest_checkpoint, load_checkpoint, write_checkpoint
from tests.train.jobs import refused

THIS = {"options": {"lr": 1e-3, "steps": 6}, "seed": 0}


def trained(seed: int, steps: int = 3, kind: Any = torch.optim.AdamW) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A convolution (channels last), a batch norm and a scalar after some steps of an optimizer, in two groups."""
    torch.manual_seed(seed)
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model.to(memory_format=torch.channels_last)
    model.register_parameter("scale", nn.Parameter(torch.tensor(2.0)))
    parameters: list[nn.Parameter] = list(model.parameters())
    groups: list[dict[str, Any]] = [{"params": parameters[:2]}, {"params": parameters[2:], "weight_decay": 0}]
    optimizer: torch.optim.Optimizer = kind(groups, lr=0.1)
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    pixels = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    optimizer.zero_grad()
    (model(pixels).square().mean() * model.scale).backward()
    optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.AdamW, Muon])
def test_training_resumes_bit_for_bit_from_a_checkpoint_of_weights_and_moments_without_a_pickle(
    tmp_path: Path, kind: Any
) -> None:
    model, optimizer = trained(seed=0, kind=kind)
    write_checkpoint(tmp_path, TrainState(step=3), THIS, copy_tensors(model, optimizer))
    assert sorted(path.name for path in tmp_path.glob("step-*/*")) == ["state.json", "tensors.safetensors"]
    tensors = load_file(tmp_path / "step-00000003" / "tensors.safetensors")
    assert {name.partition("/")[0] for name in tensors} == {"model", "optimizer"}
    second, its_optimizer = trained(seed=1, steps=0, kind=kind)
    saved = latest_checkpoint(tmp_path)
    assert saved is not None
    assert load_checkpoint(saved, THIS, second, its_optimizer).step == 3
    for _ in range(3):
        step(model, optimizer)
        step(second, its_optimizer)
    for name, value in model.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_complete_checkpoint_is_found_and_the_last_ones_are_kept(tmp_path: Path, keep: int) -> None:
    assert latest_checkpoint(tmp_path / "never made") is None
    assert latest_checkpoint(tmp_path) is None
    half = tmp_path / ".step-00000011.123.partial"
    names = [f"step-{step:08}" for step in (1, 9, 10)]
    for number, step in enumerate((1, 9, 10)):
        write_checkpoint(tmp_path, TrainState(step=step), THIS, copy_tensors(*trained(seed=0, steps=1)), keep)
        assert sorted(path.name for path in tmp_path.iterdir()) == names[max(0, number + 1 - keep) : number + 1]
        half.mkdir()
        (half / "tensors.safetensors").write_bytes(b"half")
        assert latest_checkpoint(tmp_path) == tmp_path / names[number]
    (tmp_path / names[2] / "tensors.safetensors").write_bytes(b"damaged")
    with refused("is damaged or was changed", "--fresh" if keep == 1 else f"remove {tmp_path / names[2]}"):
        load_checkpoint(tmp_path / names[2], THIS, *trained(seed=1, steps=0))
