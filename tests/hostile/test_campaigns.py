"""One moment of each campaign in benchmarks/hostile, on commands that need no torch."""

import shutil
from pathlib import Path

import pytest

import dcclip_cli
from benchmarks.hostile import disk, flips, kills, signals
from benchmarks.hostile.jobs import JOBS, Runs, Task, write_data

STARTER = Path(dcclip_cli.__file__).with_name("starter")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prepared data, `whole`, in which jobs run as `job`."""
    work = tmp_path_factory.mktemp("campaign")
    whole, runs = work / "whole", Runs(work / "job")
    whole.mkdir()
    write_data(whole, photos=48)
    shutil.copytree(STARTER, whole / "runs/tiny/export")
    for name in ("index", "search"):
        runs.reset(JOBS[name], whole)
        done = runs.run(JOBS[name])
        assert done.code == 0, done.said
        shutil.rmtree(whole)
        runs.folder.rename(whole)
    return work


@pytest.mark.parametrize("name", ["index", "search"])
def test_a_command_that_is_stopped_tells_what_it_kept_and_goes_on_from_there(name: str, work: Path) -> None:
    verdict = signals.attempt(Runs(work / "job"), work / "whole", Task(name, "0"))
    assert verdict.column in signals.GOOD, verdict.line


def test_a_command_that_is_killed_gives_the_same_when_it_is_run_again(work: Path) -> None:
    verdict = kills.attempt(Runs(work / "job"), work / "whole", Task("search", "0"))
    assert verdict.column in kills.GOOD, verdict.line


@pytest.mark.parametrize("seed", ["0", "1"])
@pytest.mark.parametrize("name", ["bundle"])
def test_a_flipped_bit_is_refused_by_name(name: str, seed: str, work: Path) -> None:
    verdict = flips.attempt(Runs(work / "job"), work / "whole", Task(name, seed))
    assert verdict.column in flips.GOOD, verdict.line


def test_a_full_disk_is_refused_by_name_and_leaves_nothing(work: Path) -> None:
    if not disk.can_mount():
        pytest.skip("file systems cannot be mounted here")
    verdict = disk.attempt(Runs(work / "disk"), work / "whole", Task("embed", "0"))
    assert verdict.column in disk.GOOD, verdict.line
