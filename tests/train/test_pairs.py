"""Rows of covering arrays over the options of distill and align: each trains well, or is refused before it begins."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.run_dir import RunDir
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair
from dcclip_cli.recipe.load import load
from dcclip_cli.recipe.preflight import check
from dcclip_cli.train.trainer import Trainer
from tests.covering import Row, covers_all
from tests.tars import tar_of
from tests.train import jobs, pairwise
from tests.train.jobs import Job, elsewhere, logged, run, sha256, weights
from tests.train.pairwise import ARRAYS, RELATIONS, STAGES


@pytest.fixture(scope="session")
def folder(pairs: list[Pair], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data and models that rows name."""
    folder = tmp_path_factory.mktemp("pairwise")
    names = {"altclip": "altclip_folder", "chinese-clip": "chinese_clip_folder", "tiny": "model_folder"}
    for name, fixture in {**names, "points.parquet": "points"}.items():
        (folder / name).symlink_to(request.getfixturevalue(fixture))
    tables = {
        "both": pairs,
        "missing": [replace(pair, zh=pair.zh if number % 4 == 0 else ()) for number, pair in enumerate(pairs)],
        "zh": [replace(pair, en=()) for pair in pairs[:12]],
        "en": [replace(pair, zh=()) for pair in pairs[12:]],
        "validation": pairs[::5],
    }
    for name, table in tables.items():
        write_parquet(folder / f"{name}.parquet", table)
        groups = pq.read_table(folder / f"{name}.parquet")  # so small that a window has groups of each source
        pq.write_table(groups, folder / f"{name}.parquet", row_group_size=4)
    (folder / "both.tar").write_bytes(tar_of(pairs))
    (folder / "images.tar").write_bytes(tar_of(pairs[8:24]))
    (folder / "pictures").mkdir()
    for pair in pairs[8:24]:
        (folder / "pictures" / f"{pair.key}.png").write_bytes(pair.image)
    lines = [(f"{pair.zh[0]}在这里", f"{pair.en[0]} here") for pair in pairs[:16]]
    (folder / "parallel.tsv").write_text("".join(f"{zh}\t{en}\n" for zh, en in lines), "utf-8")
    (folder / "chinese.txt").write_text("".join(f"{zh}\n" for zh, _ in lines), "utf-8")
    (folder / "lines.txt").write_text("".join(f"{zh}\n{en}\n" for zh, en in lines), "utf-8")
    return folder


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture
def initial(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The weights that the last run began with."""
    initial = dict[str, torch.Tensor]()
    restore = Trainer.restore

    def observed(trainer: Trainer) -> None:
        weights = trainer.task.model.state_dict()
        initial.update({name.replace(".base_layer", ""): value.clone() for name, value in weights.items()})
        restore(trainer)

    monkeypatch.setattr(Trainer, "restore", observed)
    return initial


def refusal(job: Job) -> DcclipError | None:
    """What `--check` says against a job; None if it is ready to run."""
    shared = {key: job[key] for key in ("data", "teacher", "student", "seed")}
    try:
        loaded = load(shared | {"name": "pairs", job["stage"]: jobs.OPTIONS | job["options"]})
        check(loaded, RunDir(Path(job["root"])), (job["stage"],))
    except DcclipError as error:
        return error
    return None


def assert_trained_well(row: Row, folder: Path, initial: dict[str, torch.Tensor]) -> None:
    """What is logged is finite, no step was skipped, what is frozen has its bytes, and what learns has others."""
    lines = logged(folder)
    trained = weights(folder / "model")
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert not any(line.get("skipped_steps") for line in lines)
    changed = {name for name, value in trained.items() if not torch.equal(value, initial[name].to(value.dtype))}
    assert not [name for name in changed if pairwise.is_frozen(row, name)]
    assert pairwise.learning_towers(row) <= {name.partition(".")[0] for name in changed}


def cases(
    sample: Callable[[str], Sequence[Row]], *values: object, stages: Sequence[str] = STAGES, quick: int | None = 1
) -> list[Any]:
    """Parameters: values, a stage and a row of its sample; after the first `quick` rows, None: the quick ones, slow."""
    return [
        pytest.param(
            *(*values, stage, row),
            id="-".join([*map(str, values), stage, f"{number:03}", ARRAYS[stage].name_of(row)]),
            marks=[pytest.mark.slow] * (number >= (len(ARRAYS[stage].quick_rows) if quick is None else quick)),
        )
        for stage in stages
        for number, row in enumerate(sample(stage))
    ]


@pytest.mark.parametrize(("stage", "row"), cases(lambda stage: ARRAYS[stage].rows, quick=None))
def test_a_row_that_breaks_no_rule_is_ready_to_run_and_trains_well(
    stage: str, row: Row, tmp_path: Path, initial: dict[str, torch.Tensor]
) -> None:
    job = pairwise.job_of(stage, row, tmp_path / "run")
    assert refusal(job) is None
    assert_trained_well(row, run(job).model.parent, initial)


@pytest.mark.parametrize(
    ("stage", "rule"),
    [
        pytest.param(stage, rule, id="-".join([stage, *rule.values()]))
        for stage, array in ARRAYS.items()
        for rule in array.rules
    ],
)
def test_a_row_that_breaks_a_rule_is_refused_by_the_check_and_by_the_run(
    stage: str, rule: dict[str, str], tmp_path: Path
) -> None:
    values = {option: labels.split()[0] for option, labels in rule.items()}
    row = ARRAYS[stage].completed(values, broken=rule)
    assert row is not None
    job = pairwise.job_of(stage, row, tmp_path / "run")
    assert refusal(job) is not None
    with pytest.raises((DcclipError, ValidationError)):
        run(job)


@pytest.mark.parametrize("stage", STAGES)
def test_rows_cover_all_pairs_of_values_that_rules_allow(stage: str) -> None:
    covers_all(stage, ARRAYS[stage])


@pytest.mark.parametrize(
    ("relation", "stage", "row"),
    [
        case
        for relation, values in RELATIONS.items()
        for case in cases(partial(pairwise.related_rows, relation), relation, stages=values["stages"])
    ],
)
def test_what_saves_memory_or_time_leaves_the_first_loss_as_it_is(
    relation: str, stage: str, row: Row, tmp_path: Path
) -> None:
    values = RELATIONS[relation]
    stages = {name: pairwise.job_of(stage, {**row, **values[name]}, tmp_path / "run") for name in ("first", "second")}
    first, second = (run(elsewhere(job, name, {"steps": 1})).metrics["loss"] for name, job in stages.items())
    assert first == pytest.approx(second, rel=values["tolerance"])


@pytest.mark.parametrize(("stage", "row"), cases(lambda stage: Random(0).sample(ARRAYS[stage].rows, 10), quick=3))
def test_neither_loading_processes_nor_an_interruption_change_a_byte(stage: str, row: Row, tmp_path: Path) -> None:
    job = pairwise.job_of(stage, row, tmp_path / "run")
    unbroken = sha256(run(elsewhere(job, "unbroken")))
    jobs.interrupt(job, stage, 2)
    assert sha256(run(elsewhere(job, "run", {"workers": 2}))) == unbroken


@pytest.mark.timeout(2 * jobs.TIMEOUT_S)
@pytest.mark.parametrize(
    ("processes", "stage", "row"),
    [
        case
        for processes, count, quick in ((2, 15, 1), (4, 5, 0))
        for case in cases(partial(pairwise.rows_for_processes, processes, count), processes, quick=quick)
    ],
)
def test_processes_train_well_and_as_one_does(
    processes: int, stage: str, row: Row, tmp_path: Path, initial: dict[str, torch.Tensor]
) -> None:
    job = pairwise.job_of(stage, row, tmp_path / "run")
    alone = run(elsewhere(job, "alone")).model
    (tmp_path / "job.json").write_text(json.dumps(job))
    jobs.in_processes(processes, jobs.run_job, tmp_path / "job.json")
    folder = Path(job["root"], stage)
    assert_trained_well(row, folder, initial)
    if not pairwise.is_whole(row):
        return
    losses = [[line["loss"] for line in logged(stage) if "loss" in line] for stage in (folder, alone.parent)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3 if row["precision"] == "fp32" else 2e-2)
    if all(row.get(option, label) == label for option, label in pairwise.EXACT.items()):
        jobs.assert_close(weights(folder / "model"), weights(alone))
