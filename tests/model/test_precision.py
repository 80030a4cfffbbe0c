"""`precision: auto` chooses bf16 only if it is native and faster, and reports why."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dcclip_cli.model import precision
from dcclip_cli.model.model_dir import load_model
from dcclip_cli.model.precision import _measured_gain, bf16_gain, choose_precision, newton_schulz_precision
from dcclip_cli.model.teachers import OpenClipTeacher
from dcclip_cli.model.towers import Towers

pytestmark = pytest.mark.any_cpu


@pytest.fixture
def towers(model_folder: Path) -> Towers:
    return load_model(model_folder)


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A processor with native bf16, and an empty cache folder."""
    monkeypatch.setattr(precision, "torch_has_bf16", lambda: True)
    monkeypatch.setenv("DCCLIP_CACHE", str(tmp_path / "cache"))


def test_without_native_bf16_auto_means_fp32_and_nothing_is_measured(
    towers: Towers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "torch_has_bf16", lambda: False)
    monkeypatch.setattr(precision, "_measured_gain", lambda *_: pytest.fail("probed"))
    choice = choose_precision("auto", "cpu", towers)
    assert (choice.precision, choice.gain) == ("fp32", None)
    assert "no native bf16" in choice.reason
    assert newton_schulz_precision("cpu") == "fp32"


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("asked", "gain", "expected"),
    [("auto", 1.19, "fp32"), ("auto", 1.2, "bf16"), ("auto", 0.1, "fp32"), ("bf16", 0.1, "bf16")],
)
def test_with_native_bf16_a_measurement_decides_or_warns(
    towers: Towers, asked: str, gain: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_measured_gain", lambda *_: gain)
    choice = choose_precision(asked, "cpu", towers)
    warning = "warning: bf16 is 10.0 times slower than fp32 on this machine: set precision to auto or fp32"
    assert (choice.precision, choice.lines("猫")[1:]) == (expected, [warning] if asked == "bf16" else [])
    if asked == "auto":
        assert (choice.gain, choice.reason) == (gain, f"bf16 is {gain:.2f} times as fast as fp32 here")
    assert newton_schulz_precision("cpu") == "bf16"


@pytest.mark.usefixtures("native")
def test_a_machine_makes_the_same_choice_again_unless_the_cache_file_is_damaged(
    towers: Towers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gains = iter([1.5, 1.4, 1.0])
    monkeypatch.setattr(precision, "_measured_gain", lambda *_: next(gains))
    assert [choose_precision("auto", "cpu", towers, training=True).gain for _ in range(2)] == [1.5, 1.5]
    [kept] = (tmp_path / "cache").rglob("*.json")
    assert json.loads(kept.read_text())["gain"] == 1.5
    kept.write_text(kept.read_text()[:-5])
    assert choose_precision("auto", "cpu", towers, training=True).gain == 1.4
    assert choose_precision("auto", "cpu", towers, training=False).gain == 1.0  # probed apart


@pytest.mark.parametrize("training", [True, False])
def test_a_probe_leaves_weights_running_means_and_random_numbers_as_they_are(towers: Towers, training: bool) -> None:
    before = {name: value.clone() for name, value in towers.state_dict().items()}
    random = torch.random.get_rng_state()
    assert _measured_gain(towers, training, True) > 0
    assert all(torch.equal(value, before[name]) for name, value in towers.state_dict().items())
    assert all(parameter.grad is None for parameter in towers.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not towers.training


def test_the_gain_is_of_bf16_over_fp32() -> None:
    def slow_in_bf16() -> Any:
        in_bf16 = nn.functional.linear(torch.ones(1, 1), torch.ones(1, 1)).dtype == torch.bfloat16
        return in_bf16 and torch.randn(2_000_000)

    assert bf16_gain(slow_in_bf16) < 0.5


def test_the_precision_is_part_of_a_teachers_fingerprint(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "torch_has_bf16", lambda: False)
    loaded = {
        name: OpenClipTeacher.model_validate({"model": str(model_folder), "precision": name}).load()
        for name in ("auto", "fp32", "bf16")
    }
    assert loaded["auto"].fingerprint == loaded["fp32"].fingerprint
    assert loaded["fp32"].fingerprint.removesuffix("fp32") == loaded["bf16"].fingerprint.removesuffix("bf16")
