"""Both stages on two processes (gloo), which must do what one does on the same batches."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from torch import nn

from dcclip_cli.core.processes import Stopped
from dcclip_cli.data.batch import Batch
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair
from dcclip_cli.train import trainer, validation
from dcclip_cli.train.checkpoint import latest_checkpoint
from dcclip_cli.train.compute import decided, join_processes, make_accelerator
from dcclip_cli.train.distributed import average_statistics, check_shared, fail_together, from_first, process_index
from dcclip_cli.train.task import backward
from dcclip_cli.train.validation import open_validation
from tests.train.jobs import (
    TIMEOUT_S,
    Job,
    assert_close,
    elsewhere,
    in_processes,
    kill,
    logged,
    refused,
    run,
    run_job,
    weights,
)
from tests.train.test_validation import TOP1, Colours, coloured


@pytest.mark.timeout(2 * TIMEOUT_S)
def test_the_first_process_decides_for_all(tmp_path: Path) -> None:
    in_processes(2, agree, tmp_path)


def agree(shared_folder: str) -> None:
    """What each of two processes checks."""
    folder = Path(shared_folder)
    join_processes("cpu")
    rank = process_index()
    with refused("test_processes.py is not a folder", "--fresh"):
        from_first(lambda: latest_checkpoint(Path(__file__) if rank == 0 else folder))
    (folder / str(rank)).mkdir()
    if rank == 1:  # which sees what the first process does not
        (folder / "1/computed_in.json").write_text('{"precision": "fp32"}')
    assert decided(folder / str(rank), "precision", lambda: f"bf16 of {rank}") == "bf16 of 0"
    check_shared(folder)
    with refused("training process 1 does not see the files", "--out"):
        check_shared(folder / str(rank))
    norms = nn.ModuleList([nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval()])
    for norm in norms.children():
        norm.get_buffer("running_mean").fill_(rank)
    average_statistics(norms)
    assert [norm.get_buffer("running_mean").tolist() for norm in norms.children()] == [[0.5, 0.5], [rank, rank]]
    with pytest.raises(Stopped):
        fail_together(Stopped() if rank == 1 else None)
    fail_together(None)
    with pytest.raises(RuntimeError, match=r"Unpicklable.*一"):
        from_first(fail_unpicklable)
    # Each validates a share; an image that one of them cannot read ends both.
    validation._ROWS = 2
    data = folder / str(rank)
    bad = Pair("坏", b"no image", ("红",))
    towers: Any = Colours()
    assert open_validation(coloured(data), ("zh", "en"), rank)(towers) == TOP1
    assert towers.images == (2, 3)[rank]
    with refused("pair 坏: ", ""):
        open_validation(coloured(data, *[bad] * rank), ("zh",))(towers)


class UnpicklableError(Exception):
    """Cannot be made again from its arguments, as exceptions of some libraries."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def fail_unpicklable() -> None:
    raise UnpicklableError("一", "one")


COMPARING = [{"kind": kind} for kind in ("interactive", "similarity", "feature_map", "token_features", "embedding")]


@pytest.mark.timeout(2 * TIMEOUT_S)
@pytest.mark.parametrize("case", ["align", "distill", "distill in parts"])
def test_two_processes_train_as_one_does_on_the_same_batches(
    distilling: Job, tmp_path: Path, pairs: list[Pair], case: str
) -> None:
    # A share, a part and a whole batch may lack Chinese, and captions are shared: the two have unequal texts.
    some_pairs = [replace(pair, zh=pair.zh[: number % 9 // 7]) for number, pair in enumerate(pairs)]
    write_parquet(tmp_path / "some.parquet", some_pairs)
    stage = case.split()[0]
    job = distilling | {"stage": stage, "data": str(tmp_path / "some.parquet")}
    job["options"] = {
        "steps": 20,
        "freeze_batch_norms": True,
        "optimizer": {"kind": "sgd", "lr": 0.02, "momentum": 0.9},
        "clip_norm": None,
        "augmentations": 2,
    }
    if stage == "align":
        job["data"] = dict.fromkeys(("train", "images", "texts"), job["data"])
        job["options"] |= {"start": "scratch", "distinct_captions": False, "cross_lingual": 0.5}
        job["options"] |= {"losses": [{"kind": "embedding"}], "images_per_step": 4, "texts_per_step": 6}
    elif case == "distill":
        job["options"] |= {"losses": COMPARING, "captions": {"caption_fraction": 0.4}}  # 3 of 8
    else:
        job["data"] = dict.fromkeys(("train", "images"), job["data"])
        job["options"] |= {"losses": [*COMPARING[2:], {"kind": "cross_lingual"}], "accumulate": 2}
        job["options"] |= {"captions": {"caption_fraction": 0.13}}  # of one pair: one process has no text
    alone = elsewhere(job, "one")
    two = elsewhere(job, "two")
    shorter = elsewhere(job, "shorter", {"steps": 1})
    full = weights(run(alone))
    first = weights(run(shorter))
    (tmp_path / "job.json").write_text(json.dumps(two))
    in_processes(2, run_job, tmp_path / "job.json")
    folder = Path(two["root"], stage)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert max(float((value - first[name]).abs().max()) for name, value in full.items()) > 1e-3
    assert_close(weights(folder / "model"), full)
    expected = logged(Path(alone["root"], stage))[-1]
    last = logged(folder)[-1]
    assert last["step"] == 20
    assert last["loss"] == pytest.approx(expected["loss"], rel=1e-4), "the log tells of the whole batch"


@pytest.mark.timeout(2 * TIMEOUT_S)
def test_two_processes_train_on_parts_of_which_the_last_may_have_no_text(
    distilling: Job, tmp_path: Path, pairs: list[Pair]
) -> None:
    write_parquet(
        tmp_path / "few.parquet", [replace(pair, zh=pair.zh[: number < 2]) for number, pair in enumerate(pairs)]
    )
    job = distilling | {"stage": "align", "data": str(tmp_path / "few.parquet")}
    job["options"] = {"start": "scratch", "steps": 10, "accumulate": 2, "distinct_captions": False}
    job["options"] |= {"captions": {"languages": ["zh"]}}
    (tmp_path / "job.json").write_text(json.dumps(job))
    in_processes(2, run_job, tmp_path / "job.json")
    assert logged(Path(job["root"], "align"))[-1]["step"] == 10


@pytest.mark.slow  # 40 s
@pytest.mark.timeout(6 * TIMEOUT_S)
@pytest.mark.parametrize("stage", ["distill", "align"])
def test_four_processes_that_are_killed_go_on_as_two_to_the_weights_of_four_that_are_not(
    distilling: Job, tmp_path: Path, stage: str
) -> None:
    data = {"train": distilling["data"], "validation": distilling["data"]}
    job = distilling | {"stage": stage, "data": data, "root": str(tmp_path / "runs" / "killed")}
    job["options"] = {"steps": 12, "log_every_steps": 1, "validate_every_steps": 4, "freeze_batch_norms": True}
    job["options"] |= {"optimizer": {"kind": "sgd", "lr": 0.02, "momentum": 0.9}, "ema": 0.8, "keep_checkpoints": 2}
    job["options"] |= {"start": "scratch", "cross_lingual": 0.5} if stage == "align" else {"augmentations": 2}
    unbroken = elsewhere(job, "unbroken")
    folder = Path(job["root"], stage)
    for name, content in (("job", job), ("unbroken", unbroken)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    in_processes(4, run_job, tmp_path / "unbroken.json")
    kill(job, stage, 7, processes=4)
    saved = latest_checkpoint(folder / "state")
    assert saved and saved.name in ("step-00000004", "step-00000006")
    in_processes(2, run_job, tmp_path / "job.json")
    expected = Path(unbroken["root"], stage)
    assert_close(weights(folder / "model"), weights(expected / "model"))
    steps = [(line["step"], line.get("top1_zh")) for line in logged(folder)]
    assert steps == [(line["step"], line.get("top1_zh")) for line in logged(expected)]
    assert [step for step, top1 in steps if top1 is None] == list(range(1, 13))


# ---- which parameters a step leaves without a gradient: DDP looks for those only where there may be any


EMBEDDING = {"kind": "embedding"}
MAPS = [{"kind": "feature_map"}, {"kind": "token_features"}]


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
        trained = ((name, alone) for name, alone in wrapped.named_parameters() if alone.requires_grad)
        without.update(name for name, alone in trained if alone.grad is None)
        return terms

    monkeypatch.setattr(trainer, "make_accelerator", making)
    monkeypatch.setattr(trainer, "backward", recording)
    job = distilling | {"stage": stage, "data": dict.fromkeys(data, distilling["data"])}
    job["options"] = {"steps": 1, "warmup_steps": 0, "losses": losses, **options}
    run(job)
    assert looked == [unused]
    assert unused or not without
