"""What makes steps fast: no waiting for the device, a compiled image tower, and the numbers that tell."""

import json
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.samplers import EpochBatchSampler, MixedBatchSampler
from dcclip_cli.model.blank import blank_student
from dcclip_cli.model.students import StudentOptions
from dcclip_cli.model.towers import Tokens
from dcclip_cli.train.distributed import process_count
from dcclip_cli.train.optimizer import make_ema
from dcclip_cli.train.speed import StepTimer, forward_flops
from dcclip_cli.train.task import backward
from dcclip_cli.train.teacher import OnlineTeacher
from dcclip_cli.train.trainer import Trainer
from tests.train.jobs import TIMEOUT_S, Job, in_processes, interrupt, run, sha256, stage_of


class HostReads(TorchFunctionMode):
    """Notes each call that would make the host wait for a GPU: what looks into a tensor, whatever device it is on."""

    NAMES = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "numpy", "nonzero", "unique")
    # Their tensors are on the host in a step on a GPU as well, where Adam is fused and has nothing to read.
    ON_HOST = {"sorted", "parts", "counts", "gather_numbers", "adam"}

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        masked = name == "__getitem__" and isinstance(args[1], torch.Tensor) and args[1].dtype == torch.bool
        if name in self.NAMES or masked:
            functions = [frame.f_code.co_name for frame, _ in traceback.walk_stack(sys._getframe(1))]
            if not self.ON_HOST & {*functions}:
                self.seen.append(f"{name} in {functions[0]}")
        return func(*args, **(kwargs or {}))


class Shapes(TorchDispatchMode):
    """Notes the shapes of all tensors that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.seen.add(tuple(result.shape))
        return result


WAYS: dict[str, Job] = {
    "live": {"teacher_cache": False},
    "cached": {},
    "gradient caching": {"accumulate": 2, "gradient_cache": True},
}


@pytest.mark.timeout(2 * TIMEOUT_S)
@pytest.mark.parametrize("processes", [1, 3])
def test_a_step_reads_one_number_from_the_device_and_compares_its_own_rows(
    processes: int, distilling: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ("embedding", "interactive", "similarity", "anchors", "ensemble")
    options = {"start": "scratch", "batch_size": 36, "cross_lingual": 0.5, "losses": [{"kind": kind} for kind in kinds]}
    options |= {"captions": {"first": 1.0}, "distinct_captions": False}
    monkeypatch.setattr(OnlineTeacher, "check", OnlineTeacher.check)  # restored at the end
    (tmp_path / "job.json").write_text(json.dumps(distilling | {"stage": "align", "options": options}))
    if processes > 1:
        in_processes(processes, count_reads, tmp_path / "job.json")
    else:
        count_reads(str(tmp_path / "job.json"))


def count_reads(file: str) -> None:
    """What each process checks. On a GPU only a bad step looks into a teacher's embeddings: `check` does nothing."""
    setattr(OnlineTeacher, "check", lambda _self: None)  # noqa: B010
    job = json.loads(Path(file).read_text())
    for way, options in WAYS.items():
        stage = stage_of(job | {"root": f"{job['root']} {way}", "options": job["options"] | options})
        stage.prepare()
        trainer = Trainer(stage)
        trainer.restore()
        trainer.task.train()
        trained = [*trainer.task.parameters()]
        batch = next(trainer._batches()).to("cpu")  # as it is moved to a GPU
        with HostReads() as reads, Shapes() as shapes:
            trainer.train_step(batch)
        assert reads.seen == ["__bool__ in any_process"], way
        assert ((36, 36) in shapes.seen) == (process_count() == 1) and (36 // process_count(), 36) in shapes.seen, way
        if process_count() == 3:  # sums are rounded in the order of DDP's buckets: a resumed run has the same
            gradients = []
            for _ in range(2):
                torch.manual_seed(0)
                backward(trainer._wrapped, batch, 1, trainer.accelerator)
                gradients.append([parameter.grad.clone() for parameter in trained if parameter.grad is not None])
                trainer.optimizer.zero_grad()
            assert all(map(torch.equal, *gradients)), way
            ddp = trainer._wrapped._get_ddp_logging_data()
            flags = [ddp[name] for name in ("has_rebuilt_buckets", "find_unused_parameters", "gradient_as_bucket_view")]
            assert flags == [0, 1, 1], way
        trainer.close()


def test_an_average_keeps_every_byte_of_what_is_frozen() -> None:
    model = nn.ModuleDict({"linear": nn.Linear(2, 2).requires_grad_(False), "norm": nn.BatchNorm1d(2).eval()})
    for name in ("linear.weight", "norm.running_mean"):
        model.state_dict()[name].fill_(-0.0)
    average = make_ema(model, 0.99)
    assert average is not None
    for _ in range(3):
        average.update_parameters(model)
    state = average.module.state_dict()
    assert all(bool(state[name].signbit().all()) for name in ("linear.weight", "norm.running_mean"))


def test_the_average_is_torchs_bit_for_bit_and_counts_are_the_models() -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    own_ema = make_ema(model, 0.9)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    assert own_ema is not None
    for _ in range(4):
        model(torch.rand(8, 4))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.rand_like(parameter))
        own_ema.update_parameters(model)
        theirs.update_parameters(model)
    for name, value in theirs.state_dict().items():
        averaged = own_ema.state_dict()[name]
        assert torch.equal(averaged, value) or (name, int(averaged)) == ("module.1.num_batches_tracked", 4), name


def test_operations_of_a_resnet_50_are_those_that_papers_give() -> None:
    text = {"layers": 1, "width": 32, "vocabulary": {"size": 300}}
    student = blank_student(StudentOptions.model_validate({"preset": "RN50", "text": text}), 768)
    pixels = torch.zeros(2, 3, 224, 224)
    ids = torch.zeros(2, 5, dtype=torch.int64)
    flops = forward_flops(student, pixels, [Tokens(ids, torch.ones_like(ids))])
    assert flops.image / 2 == pytest.approx(8.2e9, rel=0.02)  # 4.1 G multiplications: He et al. 2015, timm
    assert 0 < flops.text < 1e6


def test_a_log_entry_has_speed_waiting_and_memory(pairs_file: Path) -> None:
    timer = StepTimer(0, torch.device("cpu"))
    sampler = MixedBatchSampler((EpochBatchSampler(open_pairs(pairs_file), 8, seed=0),))
    with timer.waiting():
        pass
    speed = timer.speed(4, 8, sampler)
    step_s = 8 / speed["images_per_second"]
    assert 0 <= speed["data_wait_s"] < step_s
    assert speed["seconds_left"] == pytest.approx(4 * step_s)
    assert speed["peak_memory_gb"] > 0.01
    assert "reserved_memory_gb" not in speed  # of a GPU alone, where segments may reserve more than is allocated


def test_a_gpus_log_has_the_reserved_memory_next_to_the_allocated(
    monkeypatch: pytest.MonkeyPatch, pairs_file: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: 3e9)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _device: 5e9)
    sampler = MixedBatchSampler((EpochBatchSampler(open_pairs(pairs_file), 8, seed=0),))
    speed = StepTimer(0, torch.device("cuda")).speed(4, 8, sampler)
    assert (speed["peak_memory_gb"], speed["reserved_memory_gb"]) == (3, 5)


@pytest.mark.timeout(300)
def test_the_gpu_benchmark_reports_a_row_that_fails_and_writes_the_rest(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks/gpu.py"
    chosen = ["--device", "cpu", "--tiny", "--rows", "fp16|reader, 256 x 256$", "--out", str(tmp_path)]
    subprocess.run([sys.executable, script, *chosen], check=True, capture_output=True)
    failed, measured = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert failed["note"].startswith("failed: DcclipError: distill.precision: fp16 needs a GPU")
    assert failed["per_second"] is None and measured["per_second"] > 0
    table = (tmp_path / "gpu.md").read_text()
    assert failed["note"] in table and "reader, 256 x 256" in table


def test_a_compiled_student_needs_a_compiler(distilling: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    distilling["options"] |= {"compile": True}
    with pytest.raises(DcclipError, match=r"distill\.compile needs a compiler"):
        stage_of(distilling).prepare()


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles")
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compiled_run_that_is_interrupted_ends_with_the_same_weights(distilling: Job, tmp_path: Path) -> None:
    jobs = [distilling | {"root": str(tmp_path / name)} for name in ("eager", "whole", "interrupted")]
    for job, way in zip(jobs, (False, True, True), strict=True):
        job["options"] = job["options"] | {"compile": way, "teacher_cache": False}
    counters.clear()
    eager = run(jobs[0])
    compiled = run(jobs[1])
    assert counters["stats"]["unique_graphs"] <= 4  # the student's images, the teacher's, its texts
    interrupt(jobs[2], "distill", 3)
    assert sha256(run(jobs[2])) == sha256(compiled)
    assert sha256(compiled) != sha256(eager)
    assert compiled.metrics["loss"] == pytest.approx(eager.metrics["loss"], rel=1e-3)
    assert json.loads((compiled.model / "dcclip.json").read_text())["computed_in"]["compiled"] is True
