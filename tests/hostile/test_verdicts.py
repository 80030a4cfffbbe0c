"""The battery counts a planted fault as what it is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.case import Case, Expect, Report, Runner, Verdict
from tests.hostile.damage import write
from tests.hostile.server import Server


@pytest.fixture(scope="module")
def planted() -> Iterator[Server]:
    with Server("tests.hostile.planted:app") as server:
        yield server


def run(planted: Server, work: Path, command: str, **options: Any) -> Report:
    (work / "corpus").mkdir()
    (work / "corpus/input").write_text("whole")
    options = {"limit_s": 30.0, "limit_mb": 300.0, "change": write("input", "damaged"), **options}
    return Runner(planted, work).run(Case(command, [command], ["input"], **options))


@pytest.mark.parametrize(
    ("command", "verdict"),
    [
        ("refuses", Verdict.REFUSED),
        ("fine", Verdict.FINE),
        ("crashes", Verdict.TRACEBACK),
        ("hangs", Verdict.HANG),
        ("eats", Verdict.MEMORY),
        ("no-hint", Verdict.NO_HINT),
        ("no-word", Verdict.NO_HINT),
        ("none", Verdict.NO_HINT),
        ("raw", Verdict.RAW),
        ("leaves-a-file", Verdict.LEFT),
        ("leaves-a-process", Verdict.LEFT),
        ("dies", Verdict.SIGNAL),
        ("nosuch", Verdict.REFUSED),
    ],
)
def test_each_end_has_its_verdict(command: str, verdict: Verdict, planted: Server, tmp_path: Path) -> None:
    limit_s = 1.0 if command == "hangs" else 60.0
    assert run(planted, tmp_path, command, limit_s=limit_s).verdict is verdict


@pytest.mark.parametrize(
    ("command", "expect", "verdict"),
    [
        ("fine", Expect.SAME, Verdict.WRONG),
        ("fine", Expect.REFUSED_OR_SAME, Verdict.WRONG),
        ("fine", Expect.REFUSED, Verdict.WRONG),
        ("checks", Expect.REFUSED_OR_SAME, Verdict.REFUSED),
        ("checks", Expect.SAME, Verdict.NEEDLESS),
    ],
)
def test_another_result_than_the_undamaged_input_gives_is_silently_wrong(
    command: str, expect: Expect, verdict: Verdict, planted: Server, tmp_path: Path
) -> None:
    assert run(planted, tmp_path, command, expect=expect).verdict is verdict


def test_the_result_of_the_undamaged_input_is_fine(planted: Server, tmp_path: Path) -> None:
    report = run(planted, tmp_path, "fine", expect=Expect.SAME, change=lambda here: None)
    assert (report.verdict, report.stdout) == (Verdict.FINE, "whole")


def test_files_that_a_command_writes_belong_to_its_result(planted: Server, tmp_path: Path) -> None:
    report = run(planted, tmp_path, "fine", expect=Expect.SAME, change=write("made", "x"), products=["made"])
    assert report.verdict is Verdict.WRONG


def test_what_a_case_says_is_wrong_with_a_result_is_silently_wrong(planted: Server, tmp_path: Path) -> None:
    report = run(planted, tmp_path, "fine", check=lambda here, stdout: f"it says {stdout}")
    assert (report.verdict, report.why) == (Verdict.WRONG, "it says damaged")
