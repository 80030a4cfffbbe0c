"""A teacher's facts, known without loading it as long as its files are the same."""

import json
import os
import shutil
from pathlib import Path

import pytest

from dcclip_cli.errors import DcclipError
from dcclip_cli.model.teachers import AltClipTeacher
from dcclip_cli.progress import Silent
from dcclip_cli.train.teacher import LazyTeacher, widths
from tests.damage import Said, damage


@pytest.fixture
def folder(altclip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DCCLIP_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(altclip_folder, tmp_path / "老师"))


def lazy(folder: Path, layers: tuple[int, ...] = (0,)) -> LazyTeacher:
    return LazyTeacher(AltClipTeacher(model=str(folder)), "cpu", Silent(), layers)


def test_facts_are_those_of_the_loaded_teacher_and_are_known_without_it_afterwards(folder: Path) -> None:
    first, second = lazy(folder), lazy(folder)
    towers = AltClipTeacher(model=str(folder)).load()
    facts = first.facts
    assert (facts.fingerprint, facts.logit_scale) == (towers.fingerprint, towers.logit_scale)
    assert facts.widths == widths(towers, (0,)) and facts.parameters == towers.parameters_count()
    assert second.facts == facts and first.is_loaded and not second.is_loaded
    assert second.towers.fingerprint == facts.fingerprint and second.is_loaded
    second.free()
    assert not second.is_loaded and second.facts == facts


@pytest.mark.parametrize("change", ["layers", "file", "size"])
def test_other_layers_and_changed_files_are_noticed(folder: Path, change: str) -> None:
    assert lazy(folder).facts
    match change:
        case "file":
            os.utime(folder / "config.json", (1, 1))
        case "size":
            (folder / "more.json").write_text("{}")
    teacher = lazy(folder, (0, 1) if change == "layers" else (0,))
    assert teacher.facts and teacher.is_loaded


@pytest.mark.parametrize("kind", ["cut", "folder"])
def test_facts_that_cannot_be_read_are_written_again(folder: Path, tmp_path: Path, kind: str) -> None:
    facts, said = lazy(folder).facts, list[str]()
    [record] = (tmp_path / "cache" / "teachers").iterdir()
    damage(record, kind)
    teacher = lazy(folder)
    teacher._progress = Said(said)
    assert teacher.facts == facts
    assert len(said) == 1 and said[0].startswith(f"warning: {record} ") and said[0].endswith("it is made again")
    again = lazy(folder)
    assert again.facts == facts and not again.is_loaded


def test_a_teacher_that_proves_to_be_another_is_an_error_and_forgotten(folder: Path, tmp_path: Path) -> None:
    assert lazy(folder).facts
    [record] = (tmp_path / "cache" / "teachers").iterdir()
    known = json.loads(record.read_text())
    record.write_text(json.dumps(known | {"fingerprint": f"0{known['fingerprint']}"}))
    teacher = lazy(folder)
    assert teacher.facts.fingerprint.startswith("0")
    with pytest.raises(DcclipError, match="changed while it was in use"):
        _ = teacher.towers
    assert not record.exists()
