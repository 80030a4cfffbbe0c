"""Which parameters a step leaves without a gradient: DDP looks for those only where there may be any."""

from typing import Any

import pytest
from accelerate import Accelerator
from torch import nn

from dcclip_cli.data.batch import Batch
from dcclip_cli.train import trainer
from dcclip_cli.train.compute import make_accelerator
from dcclip_cli.train.task import backward
from tests.train.jobs import Job, run

EMBEDDING, MAPS = {"kind": "embedding"}, [{"kind": "feature_map"}, {"kind": "token_features"}]


@pytest.mark.parametrize(
    ("stage", "losses", "data", "options", "unused"),
    [
        ("distill", [*MAPS, EMBEDDING], ["train"], {}, False),
        ("distill", [EMBEDDING], ["images", "texts"], {}, False),
        ("distill", MAPS, ["train"], {}, True),  # no projection
        ("distill", [{"kind": "interactive", "learns": "text"}], ["train"], {}, True),
        ("distill", [{"kind": "ensemble"}], ["train"], {}, False),
        ("distill", [{"kind": "task", "loss": "siglip"}], ["train"], {}, False),
        ("align", [], ["train"], {"start": "scratch", "lock": "image"}, False),
        ("align", [EMBEDDING], ["train", "images"], {"start": "scratch", "images_per_step": 4}, False),
        ("align", [], ["train"], {"start": "scratch", "captions": {"languages": ["zh"]}}, True),  # maybe no text
    ],
)
def test_parameters_without_a_gradient_are_looked_for_only_where_there_may_be_any(
    distilling: Job, monkeypatch: pytest.MonkeyPatch, stage: str, losses: list[Job], data: list[str],
    options: Job, unused: bool,
) -> None:  # fmt: skip
    looked: list[bool] = []
    without: set[str] = set()

    def making(chosen: Any, device: str, unused: bool) -> Accelerator:
        looked.append(unused)
        return make_accelerator(chosen, device, unused)

    def recording(wrapped: nn.Module, batch: Batch, parts: int, accelerator: Accelerator) -> Any:
        terms = backward(wrapped, batch, parts, accelerator)
        trained = ((name, one) for name, one in wrapped.named_parameters() if one.requires_grad)
        without.update(name for name, one in trained if one.grad is None)
        return terms

    monkeypatch.setattr(trainer, "make_accelerator", making)
    monkeypatch.setattr(trainer, "backward", recording)
    job = distilling | {"stage": stage, "data": dict.fromkeys(data, distilling["data"])}
    job["options"] = {"steps": 1, "warmup_steps": 0, "losses": losses, **options}
    run(job)
    assert looked == [unused]
    assert unused or not without
