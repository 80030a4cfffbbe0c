"""`precision: auto` is decided by the processor and by what is trained, and says why."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dcclip_cli.model import precision
from dcclip_cli.model.families.naflex import EmbeddingGemma2Towers
from dcclip_cli.model.precision import choose_precision, newton_schulz_precision

pytestmark = pytest.mark.any_cpu
PLAIN = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Linear(4, 4))
DEPTHWISE = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("native", "asked", "trained", "expected", "reason"),
    [
        (True, "auto", None, "bf16", "native on this CPU"),
        (True, "auto", PLAIN, "bf16", "native on this CPU"),
        (True, "auto", DEPTHWISE, "fp32", "depthwise convolutions train slower in bf16 on a CPU"),
        (True, "bf16", DEPTHWISE, "bf16", "as requested"),
        (False, "auto", None, "fp32", "no native bf16 on this CPU"),
        (False, "auto", PLAIN, "fp32", "no native bf16 on this CPU"),
        (False, "bf16", PLAIN, "bf16", "as requested, but slower than fp32: this CPU has no native bf16"),
        (False, "fp32", PLAIN, "fp32", "as requested"),
    ],
)
def test_on_a_cpu_its_features_and_the_trained_convolutions_decide(
    native: bool, asked: str, trained: nn.Module | None, expected: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "torch_has_bf16", lambda: native)
    choice = choose_precision(asked, "cpu", trained)
    assert (choice.precision, choice.line("猫")) == (expected, f"猫: computes in {expected} ({reason})")
    assert newton_schulz_precision("cpu") == ("bf16" if native else "fp32")


@pytest.mark.parametrize(("capability", "expected"), [(7.0, "fp16"), (7.5, "fp16"), (8.0, "bf16"), (9.0, "bf16")])
@pytest.mark.parametrize("trained", [None, DEPTHWISE])
def test_a_gpu_without_bf16_trains_and_teaches_in_fp16_unless_the_model_overflows(
    capability: float, expected: str, trained: nn.Module | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=int(capability)))
    assert choose_precision("auto", "cuda:1", trained).precision == expected
    overflowing = choose_precision("auto", "cuda", trained, EmbeddingGemma2Towers.fp16)
    assert overflowing.precision == {"fp16": "fp32", "bf16": "bf16"}[expected]
    assert choose_precision("auto", "mps", trained).precision == "fp32"
    assert newton_schulz_precision("cuda") == ("bf16" if expected == "bf16" else "fp32")
