"""No bit of resume state, best weights, a model directory or a bundle changes unnoticed; the file is named."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcclip_cli.checksums import read_record, write_record
from dcclip_cli.errors import DcclipError
from dcclip_cli.exporters.export import ExportOptions, export
from dcclip_cli.model.model_dir import load_model
from dcclip_cli.model.reference import resolve
from dcclip_cli.predict.onnx_encoder import OnnxEncoder
from dcclip_cli.train.checkpoint import TrainState, load_checkpoint, save_checkpoint
from dcclip_cli.train.validation import BestCheckpoint
from tests.train.jobs import refused
from tests.train.test_checkpoint import trained

Written = tuple[Path, Callable[[], object]]  # a folder, and a function that reads it
KINDS = ("state", "best weights", "model directory", "bundle", "transformers export")


@pytest.fixture(scope="module")
def loaders(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    """What dcclip reads back, by kind."""
    here, (model, optimizer) = tmp_path_factory.mktemp("written"), trained(seed=0)
    save_checkpoint(here / "state", TrainState(step=3), {"名": "red"}, model, optimizer)
    BestCheckpoint(here / "best", 0).update(3, {"top1_zh": 0.5}, model, write=True)
    shutil.copytree(model_folder, here / "model")
    source = resolve(str(model_folder))
    for format in ("onnx", "transformers"):
        options = ExportOptions.model_validate({"format": format, "parity": {"min_agreement": 0.5}})
        export(options=options, model=source, out=here / format)
    state = here / "state/step-00000003"
    other = resolve(f"hf:{here / 'transformers'}")
    return {
        "state": (state, lambda: load_checkpoint(state, {"名": "red"}, *trained(seed=1, steps=0))),
        "best weights": (here / "best", lambda: BestCheckpoint(here / "best", 3).restore(model)),
        "model directory": (here / "model", lambda: load_model(here / "model")),
        "bundle": (here / "onnx", lambda: OnnxEncoder(here / "onnx", "cpu")),
        "transformers export": (here / "transformers", lambda: load_transformers(other.path)),
    }


def load_transformers(folder: Path) -> object:
    from dcclip_cli.model.teachers import TransformersTeacher

    return TransformersTeacher(model=str(folder)).load()


@pytest.fixture(params=KINDS)
def written(request: pytest.FixtureRequest, loaders: dict[str, Written]) -> Iterator[Written]:
    folder, read = loaders[request.param]
    read()
    yield folder, read
    read()  # every change was taken back


def checked_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "README.md")


def refuses(read: Callable[[], object], file: Path, content: bytes | None) -> None:
    """Reading raises a DcclipError that names the file while it has this content, or is missing."""
    before = file.read_bytes()
    file.unlink()
    try:
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(DcclipError) as raised:
            read()
        assert file.name in raised.value.what and raised.value.hint
    finally:
        file.write_bytes(before)


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_flipped_bit_in_any_file_is_refused(written: Written) -> None:
    folder, read = written
    files = checked_files(folder)

    @settings(max_examples=120)
    @given(st.sampled_from(files), st.data())
    def flip(file: Path, data: st.DataObject) -> None:
        content = file.read_bytes()
        refuses(read, file, flipped(content, data.draw(st.integers(0, 8 * len(content) - 1))))

    flip()


def test_a_file_that_is_cut_emptied_lengthened_or_missing_is_refused(
    written: Written,
) -> None:
    folder, read = written
    for file in checked_files(folder):
        content = file.read_bytes()
        for other in (content[:-1], content[: len(content) // 2], b"", content + b"\0"):
            refuses(read, file, other)
        if folder.name not in ("model", "transformers") or file.name != "dcclip.json":  # else one of that library
            refuses(read, file, None)


def test_every_bit_of_a_record_counts_its_keys_too(tmp_path: Path) -> None:
    file = tmp_path / "about.json"
    (tmp_path / "权重").write_bytes(bytes(3))
    write_record(file, {"format": 2, "名": "a", "scale": 14.021965026855469, "small": 1e-07, "none": None})
    content = file.read_bytes()
    assert read_record(file, 2, "").digests.keys() == {"权重"}
    for bit in range(8 * len(content)):
        file.write_bytes(flipped(content, bit))
        with pytest.raises(DcclipError, match=r"about\.json"):
            read_record(file, 2, "copy it")


@pytest.mark.parametrize("name", ["weights", "inner/权重"])
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, name: str) -> None:
    file, record = tmp_path / name, tmp_path / "dcclip.json"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"12345")
    write_record(record, {"format": 2})
    read_record(record, 2, "copy it").check()
    for content, complaint in (
        (b"1234", f"{file} is cut short: 4 bytes instead of 5"),
        (b"123456", f"{file} is too long: 6 bytes instead of 5"),
        (b"12354", f"{file} is damaged or was changed: its SHA-256 is not the one in dcclip.json"),
    ):
        file.write_bytes(content)
        with refused(complaint, "copy it"):
            read_record(record, 2, "copy it").check()
    file.unlink()
    with refused(f"{file} is missing, which dcclip.json lists", "copy it"):
        read_record(record, 2, "copy it").check_sizes()
    file.mkdir()
    with refused(f"{file} is a folder", "copy it"):
        read_record(record, 2, "copy it").check()


def test_a_damaged_file_is_the_error_whatever_its_loader_says(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(3 << 20))
    write_record(tmp_path / "dcclip.json", {"format": 2})
    (tmp_path / "large").write_bytes(bytes((3 << 20) - 1) + b"1")
    record = read_record(tmp_path / "dcclip.json", 2, "copy it")
    with refused("large is damaged or was changed", "copy it"), record.checking():
        raise ValueError("not a weight")


def test_an_edited_record_is_refused_and_a_model_card_may_be_edited(model_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "模型")
    (folder / "README.md").write_text("# 我的模型 mine\n", "utf-8")
    load_model(folder)
    content = json.loads((folder / "dcclip.json").read_text("utf-8"))
    (folder / "dcclip.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    load_model(folder)  # the same text
    (folder / "dcclip.json").write_text(json.dumps(content | {"name": "别的"}, indent=2), "utf-8")
    with refused(r"dcclip\.json is damaged or was edited", "README.md is the file for notes of your own"):
        load_model(folder)


@pytest.mark.parametrize("kind", ["model directory", "bundle"])
def test_records_of_format_1_have_no_checksums_and_still_load(loaders: dict[str, Written], kind: str) -> None:
    folder, read = loaders[kind]
    file = folder / "dcclip.json"
    before = file.read_bytes()
    old = {key: value for key, value in json.loads(before).items() if key not in ("files", "sha256")}
    try:
        file.write_text(json.dumps(old | {"format": 1}), "utf-8")
        read()
        file.write_text(json.dumps(old), "utf-8")
        with pytest.raises(DcclipError, match="damaged or was edited"):
            read()
    finally:
        file.write_bytes(before)


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside", "inner/../../outside"])
def test_a_record_lists_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside").touch()
    (folder / "weights").touch()
    write_record(folder / "dcclip.json", {"format": 2})
    text = (folder / "dcclip.json").read_text().replace("weights", name)
    digest = json.loads(text)["sha256"]
    sealed = hashlib.sha256(text.replace(digest, "0" * 64).encode()).hexdigest()
    (folder / "dcclip.json").write_text(text.replace(digest, sealed))
    with refused("files does not list bytes and sha256 of files", "copy it"):
        read_record(folder / "dcclip.json", 2, "copy it")


def test_the_fingerprint_of_a_model_is_the_same_with_and_without_checksums(model_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "old")
    content = json.loads((folder / "dcclip.json").read_text("utf-8"))
    del content["files"], content["sha256"]
    (folder / "dcclip.json").write_text(json.dumps(content | {"format": 1}), "utf-8")
    assert load_model(folder).fingerprint == load_model(model_folder).fingerprint
    assert torch.equal(load_model(folder).model.logit_scale, load_model(model_folder).model.logit_scale)
