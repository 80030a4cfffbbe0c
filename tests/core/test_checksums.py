"""Damage to resume state, best weights, a model directory or a bundle is refused, and the file named."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dcclip_cli.core.checksums import FILES, read_record, write_record
from dcclip_cli.core.errors import DcclipError
from dcclip_cli.exporters.export import ExportOptions, export
from dcclip_cli.inference.onnx_encoder import OnnxEncoder
from dcclip_cli.model.model_dir import load_model
from dcclip_cli.model.reference import resolve
from dcclip_cli.train.checkpoint import (
    TrainState,
    copy_tensors,
    load_best,
    load_checkpoint,
    save_best,
    write_checkpoint,
)
from tests.damage import damage
from tests.train.jobs import refused
from tests.train.test_checkpoint import trained

Written = tuple[Path, Callable[[], object]]  # a folder, and a function that reads it
KINDS = ("state", "best weights", "model directory", "bundle", "transformers export")


@pytest.fixture(scope="module")
def loaders(model_folder: Path, bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    """What dcclip reads back, by kind."""
    root = tmp_path_factory.mktemp("written")
    (model, optimizer) = trained(seed=0)
    write_checkpoint(root / "state", TrainState(step=3), {"名": "red"}, copy_tensors(model, optimizer))
    save_best(root / "best", 3, {"top1_zh": 0.5}, model)
    shutil.copytree(model_folder, root / "model")
    shutil.copytree(bundle_folder, root / "onnx")
    options = ExportOptions.model_validate({"format": "transformers", "parity": {"min_agreement": 0.5}})
    export(options=options, model=resolve(str(model_folder)), out=root / "transformers")
    state = root / "state/step-00000003"
    other_model = resolve(f"hf:{root / 'transformers'}")
    return {
        "state": (state, lambda: load_checkpoint(state, {"名": "red"}, *trained(seed=1, steps=0))),
        "best weights": (root / "best", lambda: load_best(root / "best", model)),
        "model directory": (root / "model", lambda: load_model(root / "model")),
        "bundle": (root / "onnx", lambda: OnnxEncoder(root / "onnx", "cpu")),
        "transformers export": (root / "transformers", lambda: load_transformers(other_model.path)),
    }


def load_transformers(folder: Path) -> object:
    from dcclip_cli.model.teachers import TransformersTeacher

    return TransformersTeacher(model=str(folder)).load()


@pytest.fixture(params=KINDS)
def written(request: pytest.FixtureRequest, loaders: dict[str, Written]) -> Iterator[Written]:
    folder, reader = loaders[request.param]
    reader()
    yield folder, reader
    reader()  # every change was taken back


@pytest.mark.parametrize("kind", ["flipped", "cut", "missing"])
def test_a_damaged_file_is_refused_by_name(written: Written, kind: str) -> None:
    folder, reader = written
    [file] = [path for path in folder.glob("*.json") if FILES in json.loads(path.read_text("utf-8"))]
    for name in read_record(file, "").digests:
        damaged = folder / name
        content = (folder / name).read_bytes()
        damaged.unlink() if kind == "missing" else damage(damaged, kind, name)
        with pytest.raises(DcclipError) as raised:
            reader()
        damaged.write_bytes(content)
        assert damaged.name in raised.value.what and raised.value.hint


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    record = tmp_path / "dcclip.json"
    file = tmp_path / "inner/权重"
    file.parent.mkdir()
    file.write_bytes(b"12345")
    (tmp_path / "README.md").write_text("mine")
    write_record(record, {"名": "a"})
    assert read_record(record, "copy it").digests == {"inner/权重": hashlib.sha256(b"12345").hexdigest()}
    read_record(record, "copy it").check()
    file.write_bytes(b"12354")
    with refused(f"{file} is damaged or was changed: its SHA-256 differs from the one in dcclip.json", "copy it"):
        read_record(record, "copy it").check()
    file.unlink()
    with refused(f"{file} is missing, but dcclip.json lists it", "copy it"):
        read_record(record, "copy it")
    record.write_text(json.dumps({"format": 9}))
    with refused(f"{record} has format 9; this version of dcclip reads format 1", "copy it"):
        read_record(record, "copy it")


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside", "inner/../../outside"])
def test_a_record_lists_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    record = tmp_path / "dcclip.json"
    record.write_text(json.dumps({"format": 1, "files": {name: "0" * 64}}))
    with refused("has no valid file list", "copy it"):
        read_record(record, "copy it")
