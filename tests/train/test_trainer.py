"""The Trainer: learning rates, steps, weight decay, logs, checkpoints, and what ends a run."""

import errno
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from pydantic import ValidationError
from timm.models import SwinTransformer, TinyVit, VisionTransformer
from torch import Tensor, nn

from dcclip_cli.core.progress import Progress, Silent
from dcclip_cli.core.run_dir import RunDir
from dcclip_cli.data.batch import Batch
from dcclip_cli.data.collator import Collator
from dcclip_cli.data.options import Augment, CaptionOptions, DataOptions
from dcclip_cli.model.towers import Tokens
from dcclip_cli.train import checkpoint, trainer
from dcclip_cli.train.checkpoint import TrainState, write_checkpoint
from dcclip_cli.train.distributed import from_all
from dcclip_cli.train.optimizer import learning_rate_factor, make_optimizer
from dcclip_cli.train.options import DistillOptions, OptimizerOptions
from dcclip_cli.train.stage import Stage
from dcclip_cli.train.task import TrainingTask
from dcclip_cli.train.trainer import Finish, Trainer
from tests.train.jobs import Watch, logged, refused, send

pytestmark = pytest.mark.any_cpu


class Toy(TrainingTask):
    """A task without a student: subclasses have parameters and a forward pass."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.chance: dict[str, float] = {}

    @property
    def model(self) -> nn.Module:
        return self

    def train(self, mode: bool = True) -> Self:
        nn.Module.train(self, mode)
        return self

    def prepare(self, batch: Batch, device: torch.device) -> Batch:
        return batch

    def metrics(self) -> dict[str, float]:
        return {}

    def check_teachers(self) -> None: ...

    def clamp_temperature(self) -> None: ...


class Pulled(Toy):
    """A matrix, a bias and a tower's weight, each pulled down by a slope of one; remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(2, 2))
        self.bias = nn.Parameter(torch.ones(2))
        self.towers = nn.ModuleDict({"visual": nn.Linear(1, 1, bias=False)})
        nn.init.ones_(self.slope)
        self.seen: list[list[int]] = []
        self.random: list[float] = []

    @property
    def slope(self) -> Tensor:
        [weight] = self.towers["visual"].parameters()
        return weight

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.seen.append(batch.sample_index.tolist())
        self.random.append(float(torch.rand(1)))
        return {"matrix": self.matrix.sum(), "others": self.bias.sum() + self.slope.sum()}


Train = Callable[..., dict[str, float]]


@pytest.fixture
def train(pairs_file: Path, tmp_path: Path) -> Train:
    """A function that trains a task on the drawn pairs, batches of 8, and returns the last metrics."""

    def start(
        task: TrainingTask,
        progress: Progress | None = None,
        pixels: Callable[[object], np.ndarray] = _pixels,
        validate: Callable[[], dict[str, float]] | None = None,
        finish: Finish = lambda _metrics: None,
        scaler: torch.amp.GradScaler | None = None,
        **options: Any,
    ) -> dict[str, float]:
        settings = {"steps": 4, "batch_size": 8, "warmup_steps": 0, "workers": 0, "precision": "fp32"} | options
        chosen = DistillOptions.model_validate(settings)
        stage = Stage(chosen, RunDir(tmp_path), DataOptions(train=str(pairs_file)), progress=progress or Silent())
        stage.folder = tmp_path
        stage.task = task
        stage.validate = validate
        stage.identity = {"of": "toy"}
        stage.collator = Collator(stage.training.dataset, 0, Augment(), CaptionOptions(), pixels, _tokens)
        trained = Trainer(stage)
        if scaler is not None:  # as Accelerate makes it for fp16 on a GPU
            trained.accelerator.state._mixed_precision = "fp16"
            trained.accelerator.native_amp = True
            trained.accelerator.scaler = scaler
            trained._accelerated_optimizer = AcceleratedOptimizer(trained.optimizer, scaler=scaler)
        metrics = trained.run(finish)
        trained.close()
        return metrics

    return start


def _pixels(_image: object) -> np.ndarray:
    return np.zeros((3, 2, 2), np.float32)


def _tokens(texts: list[str]) -> Tokens:
    return Tokens(torch.zeros(len(texts), 1, dtype=torch.int64), torch.ones(len(texts), 1, dtype=torch.int64))


def test_the_rate_warms_up_in_a_line_and_falls_in_half_a_cosine() -> None:
    factors = [learning_rate_factor(step, warmup_steps=4, steps=12) for step in range(12)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[8] == pytest.approx(0.5)  # half way down
    assert factors[6] == pytest.approx(0.5 * (1 + np.cos(np.pi / 4)))
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert 0 < factors[11] < 0.05


def test_the_rate_stays_at_its_peak_with_open_clips_other_schedules() -> None:
    constant = [learning_rate_factor(step, 2, 8, "constant") for step in range(8)]
    assert constant == [0.5, 1, 1, 1, 1, 1, 1, 1]
    cooldown = [learning_rate_factor(step, 2, 8, "constant-with-cooldown", 3) for step in range(8)]
    assert cooldown == [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    with pytest.raises(ValidationError, match="belong together"):
        DistillOptions(steps=8, schedule="constant-with-cooldown")


def test_adamw_steps_by_the_rate_and_decays_matrices_only(train: Train) -> None:
    module = Pulled()
    train(module, steps=1, optimizer={"lr": 0.1, "weight_decay": 0.5, "image_lr_scale": 0.1, "eps": 1e-12})
    # Adam's first step is the rate itself; decay takes rate * 0.5 of a matrix before that
    assert module.bias.tolist() == pytest.approx([0.9, 0.9])
    assert module.matrix.flatten().tolist() == pytest.approx([1 - 0.05 - 0.1] * 4)
    assert module.slope.item() == pytest.approx(1 - 0.005 - 0.01)


class Turned(Toy):
    """An adapter's matrix, a table of vectors and a bias, pulled down by slopes of very different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.image_embedding = nn.Parameter(torch.zeros(4, 4))
        self.token_embedding = nn.Parameter(torch.zeros(4, 4))
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        slopes = torch.tensor([1.0, 0.5, 0.2, 0.1])
        adapter = self.image_embedding.diagonal()
        rest = self.token_embedding.sum(1) + self.bias
        return {"all": ((adapter + rest) * slopes).sum()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_muon_moves_every_direction_of_a_matrix_alike_and_leaves_the_rest_to_adamw(
    train: Train, precision: str
) -> None:
    module = Turned()
    options = {"kind": "muon", "lr": 0.1, "other_lr": 0.01, "weight_decay": 0, "newton_schulz": precision}
    train(module, steps=1, optimizer=options)
    # 0.2 * sqrt(4) * rate along each of four directions, whatever their slopes; Newton-Schulz is good to some 30 %
    adapter = module.image_embedding
    assert adapter.diagonal().tolist() == pytest.approx([-0.04] * 4, rel=0.35)
    assert (adapter - adapter.diagonal().diag()).abs().max() < 1e-3
    muon = Turned()
    adamw = Turned()
    train(muon, steps=3, optimizer=options | {"eps": 0.5, "weight_decay": 0.1})
    train(adamw, steps=3, optimizer={"lr": 0.01, "eps": 0.5, "weight_decay": 0.1})
    torch.testing.assert_close(muon.bias, adamw.bias)
    torch.testing.assert_close(muon.token_embedding, adamw.token_embedding)


@pytest.mark.parametrize(
    ("trunk", "positions"),
    [
        (VisionTransformer(32, 8, embed_dim=8, depth=1, num_heads=1), ["cls_token", "pos_embed"]),
        (SwinTransformer(32, 2, embed_dim=8, depths=(1,), num_heads=(1,)), ["relative_position_bias_table"]),
        (TinyVit(embed_dims=(8, 8), depths=(1, 1), num_heads=(1, 1), window_sizes=(7, 7)), ["attention_biases"]),
    ],
)
def test_position_parameters_are_not_decayed(trunk: nn.Module, positions: list[str]) -> None:
    names = {id(parameter): name for name, parameter in trunk.named_parameters()}
    for kind in ("adamw", "muon"):
        options = OptimizerOptions.model_validate({"kind": kind, "newton_schulz": "fp32"})
        groups = make_optimizer(nn.ModuleDict({"visual": trunk}), options).param_groups
        undecayed = [parameter for group in groups if not group["weight_decay"] for parameter in group["params"]]
        matrices = (names[id(parameter)] for parameter in undecayed if parameter.ndim > 1)
        assert sorted(name.rpartition(".")[2] for name in matrices) == positions


def test_the_gradient_is_clipped_to_its_largest_norm(train: Train) -> None:
    figures = train(Pulled(), steps=1)
    assert figures["gradient_norm"] == pytest.approx(7**0.5)  # before clipping: seven slopes of one
    free = Pulled()
    clipped = Pulled()
    options = {"steps": 1, "optimizer": {"lr": 1.0, "eps": 1.0, "weight_decay": 0}}  # steps of g / (|g| + 1)
    train(free, clip_norm=None, **options)
    train(clipped, clip_norm=0.1, **options)
    small = 0.1 / 7**0.5
    assert free.bias[0].item() == pytest.approx(1 - 1 / 2)
    assert clipped.bias[0].item() == pytest.approx(1 - small / (small + 1), rel=1e-4)


def test_a_spike_in_one_tower_leaves_the_step_of_the_other_unchanged(train: Train) -> None:
    class Spiked(Pulled):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            return {"spike": 1e4 * self.slope.sum(), "others": self.bias.sum()}

    sgd = {"kind": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0}
    with pytest.raises(ValidationError, match="no effect without clip_norm"):
        DistillOptions(steps=1, clip_norm=None, clip_towers=True)
    together = Spiked()
    apart = Spiked()
    train(together, steps=1, optimizer=sgd, clip_norm=1.0)
    metrics = train(apart, steps=1, optimizer=sgd, clip_norm=1.0, clip_towers=True)
    assert together.bias.tolist() == pytest.approx([1 - 1e-4] * 2)
    assert apart.bias.tolist() == pytest.approx([1 - 0.5**0.5] * 2, rel=1e-5)
    assert apart.slope.item() == pytest.approx(0, abs=1e-5)  # its own step is clipped to one
    assert metrics["gradient_norm"] == pytest.approx((1e8 + 2) ** 0.5)


def test_every_step_sees_its_own_samples_and_random_numbers_whatever_went_before(train: Train) -> None:
    uninterrupted = Pulled()
    train(uninterrupted, steps=5)
    tail = Pulled()
    with pytest.raises(KeyboardInterrupt):
        train(tail, send("distill", 3), steps=5, checkpoint_every_steps=99)
    torch.manual_seed(99)
    train(tail, steps=5)
    assert tail.seen == uninterrupted.seen
    assert tail.random == uninterrupted.random
    assert len(set(uninterrupted.random)) == 5


def test_steps_are_logged_at_intervals_and_at_the_end_and_checkpoints_are_saved_at_intervals_only(
    train: Train, tmp_path: Path
) -> None:
    task = Pulled()
    metrics = train(task, steps=4, log_every_steps=3, checkpoint_every_steps=2)
    first, last = logged(tmp_path)
    assert (first["step"], last["step"]) == (3, 4)
    assert set(first) >= {"loss", "matrix", "others", "lr", "gradient_norm", "images_per_second", "data_wait_s"}
    assert first["loss"] == pytest.approx(first["matrix"] + first["others"], rel=1e-5)  # six digits
    assert metrics["loss"] == pytest.approx(last["loss"], rel=1e-4)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-00000002"]
    assert not task.training


def test_a_log_is_cut_back_to_the_step_that_training_resumes_from(train: Train, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(Pulled(), send("distill", 2), log_every_steps=1)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')  # logged after the state, and cut by a power failure
    train(Pulled(), log_every_steps=1)
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize(("minutes", "steps"), [(60.0, []), (1e-6, [3, 4])])
def test_a_checkpoint_is_due_after_some_minutes_and_the_last_ones_are_kept(
    train: Train, tmp_path: Path, minutes: float, steps: list[int]
) -> None:
    train(Pulled(), steps=5, checkpoint_every_steps=None, checkpoint_every_minutes=minutes, keep_checkpoints=2)
    assert sorted(path.name for path in tmp_path.glob("state/*")) == [f"step-{step:08}" for step in steps]


@pytest.mark.parametrize("ema", [None, 0.5])
def test_training_goes_on_while_a_checkpoint_is_written_which_has_the_state_of_its_step(
    train: Train, monkeypatch: pytest.MonkeyPatch, ema: float | None
) -> None:
    at_step_5 = Event()
    progress = Watch()

    def write(*arguments: Any) -> None:
        assert at_step_5.wait(30), "training waits for the checkpoint"
        write_checkpoint(*arguments)

    monkeypatch.setattr(checkpoint, "write_checkpoint", write)
    unbroken = Pulled()
    resumed = Pulled()
    options = {"steps": 5, "checkpoint_every_steps": 3, "ema": ema}
    train(unbroken, Watch("distill", 5, at_step_5.set), **options)  # whose end waits for the checkpoint
    train(resumed, progress, **options)
    assert progress.said == ["distill: resuming from step 3 of 5"]
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_checkpoint_that_cannot_be_written_ends_training_soon(train: Train, tmp_path: Path) -> None:
    task = Pulled()
    with pytest.raises(NotADirectoryError):
        train(task, Watch("distill", 1, (tmp_path / "state").touch), steps=200, checkpoint_every_steps=2)
    assert 2 <= len(task.seen) < 200


def test_a_checkpoint_that_fails_once_loses_no_whole_step(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Pulled()
    tried = list[int]()

    def write(folder: Path, state: TrainState, *arguments: Any) -> None:
        tried.append(state.step)
        if len(tried) == 1:
            raise OSError(errno.EIO, "Input/output error", str(folder))
        write_checkpoint(folder, state, *arguments)

    monkeypatch.setattr(checkpoint, "write_checkpoint", write)
    with pytest.raises(OSError, match="Input/output error"):
        train(task, steps=200, checkpoint_every_steps=2)
    assert tried == [2, len(task.seen)]
    assert [path.name for path in (tmp_path / "state").iterdir()] == [f"step-{len(task.seen):08}"]


def test_a_signal_in_the_last_step_lets_the_model_be_saved(train: Train, tmp_path: Path) -> None:
    saved: list[float] = []
    with pytest.raises(KeyboardInterrupt):
        train(Pulled(), send("distill", 4), finish=lambda metrics: saved.append(metrics["loss"]))
    assert len(saved) == 1
    assert not (tmp_path / "state").exists()


class Failing(Pulled):
    """Fails in the forward pass of a step, as it does where another process has ended, after statistics changed."""

    def __init__(self, step: int = 0) -> None:
        super().__init__()
        self.fails_at = step
        self.norm = nn.BatchNorm1d(2)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.norm(batch.sample_index[:, None].expand(-1, 2).float())
        if len(self.seen) + 1 == self.fails_at:
            raise RuntimeError("Connection closed by peer")
        return super().forward(batch)


def test_a_step_that_fails_leaves_the_state_after_the_step_before(train: Train, tmp_path: Path) -> None:
    uninterrupted = Failing()
    resumed = Failing()
    train(uninterrupted)
    with pytest.raises(RuntimeError, match="closed by peer"):
        train(Failing(3), checkpoint_every_steps=99)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-00000002"]
    train(resumed)
    assert [value.tolist() for value in resumed.state_dict().values()] == [
        value.tolist() for value in uninterrupted.state_dict().values()
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_validation_that_a_signal_interrupts_is_done_first_when_training_resumes_in_the_stage_s_precision(
    train: Train, tmp_path: Path, precision: str
) -> None:
    validated: list[int] = []
    task = Pulled()

    def validate(stop_at: int = 0) -> dict[str, float]:
        validated.append(len(task.seen))
        assert torch.is_autocast_enabled("cpu") == (precision == "bf16")
        if len(task.seen) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"top1": 0.1 * len(validated)}

    options = {"steps": 5, "validate_every_steps": 2, "checkpoint_every_steps": 99, "precision": precision}
    with pytest.raises(KeyboardInterrupt):
        train(task, validate=lambda: from_all(lambda: validate(4), stoppable=True)[0], **options)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-00000004"]
    train(task, validate=validate, **options)
    assert validated == [2, 4, 4, 5]
    assert [line["step"] for line in logged(tmp_path) if "top1" in line] == [2, 4, 5]


def test_a_frozen_weight_that_changes_is_a_bug_and_no_model_is_saved(train: Train) -> None:
    task = Pulled()
    saved = list[float]()
    task.bias.requires_grad_(False)

    def validate() -> dict[str, float]:
        task.bias.data += 1
        return {"top1": 0.5}

    with pytest.raises(RuntimeError, match="distill changed weights or statistics that are frozen"):
        train(task, validate=validate, validate_every_steps=4, finish=lambda metrics: saved.append(metrics["loss"]))
    assert not saved


class NowAndThen(Pulled):
    """Its loss is not finite in the steps `bad`, which spoils a batch norm; the steps `idle` have no gradient."""

    def __init__(self, *bad: int, idle: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.bad = bad
        self.idle = idle
        self.norm = nn.BatchNorm1d(2)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        terms = super().forward(batch)
        wrong = math.nan if len(self.seen) in self.bad else 1.0
        self.norm(torch.full((3, 2), wrong))
        if len(self.seen) in self.idle:
            return {name: term.detach() for name, term in terms.items()}
        return {name: term * wrong for name, term in terms.items()}


def test_steps_that_are_not_finite_change_nothing_and_are_counted(train: Train, tmp_path: Path) -> None:
    task = NowAndThen(2, 3)
    ema = 0.75
    sgd = {"kind": "sgd", "lr": 0.1, "momentum": 0.0}
    metrics = train(task, steps=5, log_every_steps=1, optimizer=sgd, clip_norm=None, ema=ema)
    assert metrics["skipped_steps"] == 2
    assert [line["skipped_steps"] for line in logged(tmp_path)] == [0, 1, 2, 2, 2]
    rates = [0.1 * learning_rate_factor(step, 0, 5) for step in (0, 3, 4)]
    weights = [1 - sum(rates[:count]) for count in (1, 2, 3)]
    average = weights[0]
    for weight in weights[1:]:
        average = ema * average + (1 - ema) * weight
    assert task.bias.tolist() == pytest.approx([average] * 2)  # the EMA of the three finite steps
    assert task.norm.running_mean is not None and torch.isfinite(task.norm.running_mean).all()


def test_fp16_halves_its_scale_at_a_step_that_is_not_finite_and_resumes_with_it(train: Train, tmp_path: Path) -> None:
    options = {"steps": 5, "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.0}, "clip_norm": None}
    uninterrupted = torch.amp.GradScaler("cpu", init_scale=1024.0)
    resumed = torch.amp.GradScaler("cpu", init_scale=4.0)
    unbroken = NowAndThen(2, 3)
    task = NowAndThen(2, 3)
    assert train(unbroken, scaler=uninterrupted, **options)["skipped_steps"] == 2
    assert uninterrupted.get_scale() == 256
    with pytest.raises(KeyboardInterrupt):
        train(task, send("distill", 3), scaler=torch.amp.GradScaler("cpu", init_scale=1024.0), **options)
    train(task, scaler=resumed, **options)
    assert resumed.get_scale() == 256
    assert task.bias.tolist() == unbroken.bias.tolist()
    assert task.bias.tolist() == pytest.approx(
        [1 - sum(0.1 * learning_rate_factor(step, 0, 5) for step in (0, 3, 4))] * 2
    )


def test_fp16_trains_on_after_steps_of_which_no_loss_has_a_gradient(train: Train) -> None:
    task = NowAndThen(idle=(1, 3))
    sgd = {"kind": "sgd", "lr": 0.1, "momentum": 0.0}
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    assert train(task, scaler=scaler, steps=5, optimizer=sgd, clip_norm=None)["skipped_steps"] == 0
    expected = 1 - sum(0.1 * learning_rate_factor(step, 0, 5) for step in (1, 3, 4))
    assert task.bias.tolist() == pytest.approx([expected] * 2)


class Tempered(Toy):
    """A temperature that its loss raises in four steps, then lowers; remembers the logit scales."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(99)))
        self.student: Any = SimpleNamespace(model=self)
        self.max_logit_scale = 100.0
        self.scales: list[float] = []

    clamp_temperature = TrainingTask.clamp_temperature

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.scales.append(self.logit_scale.exp().item())
        return {"all": self.logit_scale * (-1 if len(self.scales) <= 4 else 1)}


@pytest.mark.parametrize("ema", [None, 0.5])
def test_a_temperature_at_its_bound_falls_again_and_resumes_alike(train: Train, ema: float | None) -> None:
    options = {"steps": 8, "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.0}, "ema": ema}
    unbroken = Tempered()
    resumed = Tempered()
    train(unbroken, **options)
    assert unbroken.scales[:5] == pytest.approx([99, 100, 100, 100, 100])
    rates = [0.1 * learning_rate_factor(step, 0, 8) for step in (4, 5, 6)]
    falling = [100 * math.exp(-sum(rates[:count])) for count in (1, 2, 3)]
    assert unbroken.scales[5:] == pytest.approx(falling)
    with pytest.raises(KeyboardInterrupt):
        train(resumed, send("distill", 3), **options)
    train(resumed, **options)
    assert resumed.scales == unbroken.scales and torch.equal(resumed.logit_scale, unbroken.logit_scale)


def test_too_many_steps_in_a_row_that_are_not_finite_end_training_and_name_every_loss(train: Train) -> None:
    with refused(r"step 13: matrix and others is not finite, 10 steps in a row", "optimizer.lr"):
        train(NowAndThen(2, *range(4, 20)), steps=20)


class Guessing(Pulled):
    """A contrastive loss that stays at chance level."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.chance = {"image_zh": math.log(8), "image_en": math.log(8)}
        return {"image_zh": 0 * self.bias.sum() + math.log(8), "image_en": 0 * self.bias.sum() + 1.0}


def test_a_contrast_that_has_learned_nothing_is_warned_about_once(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "CHANCE_STEP", 2)
    progress = Watch()
    train(Guessing(), progress, steps=4)
    [warning] = [line for line in progress.said if line.startswith("warning")]
    assert "after 2 steps image_zh is 2.079; chance level is 2.079" in warning
    assert "optimizer.lr" in warning and "captions that do not match" in warning
