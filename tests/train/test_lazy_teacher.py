"""A teacher's facts, known without loading it as long as its files are the same."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.machine import cpu_name
from dcclip_cli.core.progress import Silent
from dcclip_cli.core.versions import versions
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


def test_the_facts_are_stored_under_the_options_and_the_state_of_the_files_they_name(
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
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    in_folder = [str(folder), [[name, size, (folder / name).stat().st_mtime_ns] for name, size in sizes.items()]]
    in_cache = [str(snapshot), [[name, size, f"../../blobs/{name}"] for name, size in sizes.items()]]
    TransformersTeacher(model=str(snapshot)).source.check()  # which has links out of it
    by_teacher: list[tuple[Any, str, list[Any] | None]] = [
        (TransformersTeacher, str(folder), in_folder),
        (OpenClipTeacher, str(folder), in_folder),
        (TransformersTeacher, "org/altclip", in_cache),
        (OpenClipTeacher, "hf-hub:org/altclip", in_cache),
        (OpenClipTeacher, "ViT-B-32/openai", ["ViT-B-32/openai"]),
        (TransformersTeacher, "org/nothing", None),
        (OpenClipTeacher, "hf-hub:org/nothing", None),
    ]
    for teacher, model, state in by_teacher:
        kind = "open_clip" if teacher is OpenClipTeacher else "transformers"
        options = {"precision": "fp32", "kind": kind, "model": model}
        identity = ["2", options, state, "cpu", cpu_name(), "fp32", [0], versions()]
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
        loaded_later = teacher(model=model, precision="fp32")
        record = LazyTeacher(loaded_later, "cpu", Silent(), [0])._record
        assert record == (state and tmp_path / "cache/teachers" / f"{name}.json")
        assert (loaded_later.source.blank() is None) == (state in (None, ["ViT-B-32/openai"]))  # without its shapes
