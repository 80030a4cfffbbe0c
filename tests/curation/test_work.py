"""What is in the partial folder is whole, and is never written twice."""

from pathlib import Path
from typing import Any

import pytest

from dcclip_cli.curation.work import Assignment, WorkFolder, whole_file, whole_folder
from dcclip_cli.progress import Silent

ASSIGNMENTS = [Assignment(0, {"file": "/猫.tar"}, 3), Assignment(1, {"rows": [0, 7]}, 7, at_most=2)]


def test_each_assignment_is_found_by_its_number(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path / ".collect.partial")
    work.begin({"fingerprint": "a"}, ASSIGNMENTS, Silent())
    assert [work.assignment(number) for number in (1, 0)] == ASSIGNMENTS[::-1]
    assert work.plan() == {"fingerprint": "a"}


@pytest.mark.parametrize("whole", [whole_folder, whole_file])
def test_a_folder_or_file_takes_its_name_only_when_it_is_whole(tmp_path: Path, whole: Any) -> None:
    def write(path: Path) -> None:
        (path / "part" if path.is_dir() else path).write_text("part")

    with pytest.raises(ValueError), whole(tmp_path / "000000") as path:
        write(path)
        raise ValueError
    assert list(tmp_path.iterdir()) == []
    with whole(tmp_path / "000000") as path:
        write(path)
    assert [path.name for path in tmp_path.iterdir()] == ["000000"]


def test_a_folder_that_another_process_has_finished_meanwhile_stays(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "000000") as slow:
        (slow / "by").write_text("slow")
        with whole_folder(tmp_path / "000000") as fast:
            (fast / "by").write_text("fast")
    assert (tmp_path / "000000" / "by").read_text() == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["000000"]
