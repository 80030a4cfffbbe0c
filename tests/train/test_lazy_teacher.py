"""A teacher's facts, known without loading it as long as its files are the same."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.progress import Silent
from dcclip_cli.model.teachers import AltClipTeacher, OpenClipTeacher, TransformersTeacher
from dcclip_cli.train.teacher import LazyTeacher, widths


@pytest.fixture
def folder(altclip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DCCLIP_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(altclip_folder, tmp_path / "老师"))


def lazy(folder: Path, layers: tuple[int, ...] = (0,)) -> LazyTeacher:
    return LazyTeacher(AltClipTeacher(model=str(folder)), "cpu", Silent(), layers)


def test_facts_are_those_of_the_loaded_teacher_and_are_known_without_it_afterwards(folder: Path) -> None:
    first = lazy(folder)
    second = lazy(folder)
    towers = AltClipTeacher(model=str(folder)).load()
    facts = first.facts
    assert (facts.fingerprint, facts.logit_scale) == (towers.fingerprint, towers.logit_scale)
    assert facts.widths == widths(towers, (0,)) and facts.parameters == towers.parameters_count()
    assert second.facts == facts and first._towers is not None and second._towers is None
    assert second.towers.fingerprint == facts.fingerprint and second._towers is not None
    second.free()
    assert second._towers is None and second.facts == facts


def test_a_teacher_that_proves_to_be_another_is_an_error_and_forgotten(folder: Path, tmp_path: Path) -> None:
    assert lazy(folder).facts
    [record] = (tmp_path / "cache" / "teachers").iterdir()
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"fingerprint": f"0{content['fingerprint']}"}))
    teacher = lazy(folder)
    assert teacher.facts.fingerprint.startswith("0")
    with pytest.raises(DcclipError, match="changed while it was in use"):
        _ = teacher.towers
    assert not record.exists()


def test_facts_are_on_record_for_the_same_options_and_the_same_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    snapshot = tmp_path / "hub/models--org--altclip/snapshots/1"
    shutil.copytree(folder, snapshot.parents[1] / "blobs")
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    TransformersTeacher(model=str(snapshot)).source.check()  # which has links out of it

    transformers = [TransformersTeacher(model=model, precision="fp32") for model in (str(folder), "org/altclip")]
    open_clip = [OpenClipTeacher(model=model) for model in (str(folder), "hf-hub:org/altclip", "ViT-B-32/openai")]
    teachers = [*transformers, TransformersTeacher(model=str(folder), precision="bf16"), *open_clip]
    before = [record_of(teacher) for teacher in teachers]
    before.append(record_of(teachers[0], layers=(0, 1)))
    assert None not in before and len(set(before)) == len(teachers) + 1
    os.utime(folder / "config.json", ns=(1, 1))
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../blobs/vocab.json")  # another version
    changed = [record_of(teacher) != record for teacher, record in zip(teachers, before, strict=False)]
    assert changed == [True] * 5 + [False]
    for absent in (TransformersTeacher(model="org/nothing"), OpenClipTeacher(model="hf-hub:org/nothing")):
        assert record_of(absent) is None and absent.source.blank() is None
    assert open_clip[-1].source.blank() is None and open_clip[0].source.blank() is not None


def record_of(teacher: Any, layers: tuple[int, ...] = (0,)) -> Path | None:
    return LazyTeacher(teacher, "cpu", Silent(), layers)._record
