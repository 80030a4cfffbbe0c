"""Small jobs of both stages."""

import gc
from pathlib import Path
from typing import Any

import pytest

from tests.train.jobs import Job


@pytest.fixture(autouse=True, scope="session")
def _light_collections() -> None:
    """Training ends in a garbage collection: keep it from going through all that the libraries made at import."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def distilling(pairs_file: Path, altclip_folder: Path, student_section: dict[str, Any], tmp_path: Path) -> Job:
    """A small job of stage 1 under AltCLIP: 6 steps, a state every second.

    Its precision is given: "auto" measures anew in each cache folder, and a teacher this small is near the limit.
    """
    return {
        "stage": "distill",
        "root": str(tmp_path / "runs" / "job"),
        "data": str(pairs_file),
        "teacher": {"kind": "altclip", "model": str(altclip_folder), "precision": "fp32"},
        "student": student_section,
        "options": {"augmentations": 2},
    }


@pytest.fixture
def aligning(pairs_file: Path, model_folder: Path, tmp_path: Path) -> Job:
    """A small job of stage 2 from the tiny student: 6 steps, a state every second."""
    return {
        "stage": "align",
        "root": str(tmp_path / "runs" / "job"),
        "data": str(pairs_file),
        "options": {"start": str(model_folder)},
    }


@pytest.fixture
def job(request: pytest.FixtureRequest, stage: str) -> Job:
    """The small job of the stage that a test is parametrized with."""
    return request.getfixturevalue({"distill": "distilling", "align": "aligning"}[stage])
