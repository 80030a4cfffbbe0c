"""Experiment trackers: metrics and options of a stage, offline, and nothing but data on stdout.

Those that are not in the extra `dev` are tested where they are installed: pip install wandb trackio mlflow-skinny.
"""

import os
import sys
from pathlib import Path

import pytest

from dcclip_cli.train.metrics_log import SETTINGS, check_installed
from tests.train.jobs import Job, interrupt, logged, refused, run


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of all trackers' settings, none of which is set."""
    names = {name for tracker_settings in SETTINGS.values() for name in tracker_settings}
    for name in names:
        monkeypatch.delenv(name, raising=False)
    return names


def test_tensorboard_has_the_metrics_and_options_of_a_stage_that_was_resumed(aligning: Job, settings: set[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = Path(aligning["root"], "align")
    aligning |= {"track": ["tensorboard"], "options": aligning["options"] | {"log_every_steps": 1}}
    interrupt(aligning, "align", 3)
    run(aligning)
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    # tensorboard has a file for each start, named by second and by a count in its process: 10 is read before 9.
    points = sorted((point.step, point.value) for point in events.Scalars("loss"))
    expected = [(line["step"], line["loss"]) for line in logged(folder)]
    assert [step for step, _ in points] == [1, 2, 3, 4, 5, 6] == [step for step, _ in expected]
    assert [value for _, value in points] == pytest.approx([value for _, value in expected], rel=1e-4)
    options = [file.read_text("utf-8") for file in folder.glob("tensorboard/*/hparams.yml")]
    assert len(options) == 2 and "options.optimizer.lr: 0.001" in options[0]
    assert not os.environ.keys() & settings  # those of trackers that nobody named


def test_metrics_and_options_are_in_wandb_s_file(aligning: Job, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb")
    run(aligning | {"track": ["wandb"]})
    [file] = Path(aligning["root"], "align").glob("wandb/offline-run-*/run-*.wandb")
    content = file.read_bytes()
    assert b"gradient_norm" in content and b"options.optimizer.lr" in content
    assert capfd.readouterr() == ("", "")


def test_metrics_and_options_are_in_trackio_s_database(
    aligning: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    run(aligning | {"track": ["trackio"]})
    assert not capfd.readouterr().out
    [line] = logged(Path(aligning["root"], "align"))
    [entry] = SQLiteStorage.get_logs("job", "align")
    assert entry["step"] == 6 and entry["loss"] == pytest.approx(line["loss"], rel=1e-4)
    assert SQLiteStorage.get_run_config("job", "align")["options.optimizer.lr"] == 1e-3


def test_metrics_and_options_are_in_mlflow_s_files(aligning: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    aligning["root"] = aligning["root"].replace("job", "任务 job")
    run(aligning | {"track": ["mlflow"]})
    client = mlflow.MlflowClient((Path(aligning["root"]) / "mlruns").as_uri())
    [experiment] = [sample for sample in client.search_experiments() if sample.name == "任务 job"]
    [tracked_run] = client.search_runs([experiment.experiment_id])
    [line] = logged(Path(aligning["root"], "align"))
    assert tracked_run.info.run_name == "align" and tracked_run.info.status == "FINISHED"
    assert tracked_run.data.metrics["loss"] == pytest.approx(line["loss"], rel=1e-4)
    assert tracked_run.data.params["options.optimizer.lr"] == "0.001"


def test_a_tracker_that_is_not_installed_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with refused("the package of mlflow is not installed", "pip install mlflow-skinny, or remove it from track"):
        check_installed("mlflow")
