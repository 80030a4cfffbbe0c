"""An export says what the model says, at any batch size and text length, or leaves nothing."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from dcclip_cli.data.batches import DataOptions
from dcclip_cli.errors import DcclipError
from dcclip_cli.export import export as module
from dcclip_cli.export.export import ExportOptions, ExportResult, export
from dcclip_cli.model.folder import load_folder
from dcclip_cli.model.reference import resolve
from dcclip_cli.model.towers import Tokens


@pytest.fixture(scope="module")
def exported(model_folder: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    return export(
        options=ExportOptions(),
        model=resolve(str(model_folder)),
        data=DataOptions(train=str(pairs_file)),
        out=tmp_path_factory.mktemp("exports") / "fp32",
    )


@pytest.mark.parametrize("batch", [1, 2, 7, 40])
def test_images_in_any_number_come_out_as_from_torch(exported: ExportResult, model_folder: Path, batch: int) -> None:
    pixels = torch.rand(batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch)) * 2 - 1
    with torch.no_grad():
        expected = torch.nn.functional.normalize(load_folder(model_folder).image_features(pixels).embedding, dim=-1)
    session = onnxruntime.InferenceSession(str(exported.folder / "image.onnx"))
    [found] = session.run(["image_embeds"], {"pixel_values": pixels.numpy()})
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(("batch", "length"), [(1, 2), (1, 24), (3, 7), (5, 23), (64, 8)])
def test_texts_of_any_length_come_out_as_from_torch(
    exported: ExportResult, model_folder: Path, batch: int, length: int
) -> None:
    towers = load_folder(model_folder)
    vocabulary = int(towers.model.text.vocab_size)
    ids = torch.randint(4, vocabulary, (batch, length), generator=torch.Generator().manual_seed(length))
    ids[:, 0], ids[:, -1] = 0, 2
    with torch.no_grad():
        features = towers.text_features(Tokens(ids, torch.ones_like(ids)))
    expected = torch.nn.functional.normalize(features.embedding, dim=-1)
    session = onnxruntime.InferenceSession(str(exported.folder / "text.onnx"))
    [found] = session.run(["text_embeds"], {"input_ids": ids.numpy()})
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_the_bundle_says_what_one_must_know_to_use_it(exported: ExportResult, model_folder: Path) -> None:
    towers = load_folder(model_folder)
    about = json.loads((exported.folder / "dcclip.json").read_text("utf-8"))
    assert sorted(file.name for file in exported.folder.iterdir()) == [
        "dcclip.json",
        "image.onnx",
        "text.onnx",
        "tokenizer.json",
    ]
    assert towers.preprocessing is not None
    assert about["preprocessing"] == json.loads(json.dumps(towers.preprocessing.to_config()))
    assert about["logit_scale"] == pytest.approx(towers.logit_scale)
    assert about["prompts"] == {"en": ["{}"], "zh": ["{}"]} and about["languages"] == ["en", "zh"]
    assert about["parity"]["agreement"] == exported.parity.agreement == 1
    assert about["parity"]["images"] == 40 and about["parity"]["text_max_difference"] < 1e-5
    assert (exported.folder / "tokenizer.json").read_bytes() == (model_folder / "tokenizer.json").read_bytes()


def test_the_graphs_do_not_tell_where_they_were_made(exported: ExportResult) -> None:
    for name in ("image.onnx", "text.onnx"):
        content = (exported.folder / name).read_bytes()
        assert b"site-packages" not in content and b"dcclip_cli" not in content


def test_int8_is_smaller_and_still_says_much_the_same(
    exported: ExportResult, model_folder: Path, pairs_file: Path, tmp_path: Path
) -> None:
    # Random weights, whose images all look alike to the model, so agreement says nothing here.
    int8 = export(
        options=ExportOptions(precision="int8", min_agreement=0, calibration_images=20),
        model=resolve(str(model_folder)),
        data=DataOptions(train=str(pairs_file)),
        out=tmp_path / "int8",
    )
    assert int8.size_bytes < exported.size_bytes / 1.5
    assert int8.parity.image_centred_cosine > 0.9 and int8.parity.text_centred_cosine > 0.9


def test_int8_without_images_to_calibrate_on_is_refused(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DcclipError, match="int8 needs images"):
        export(options=ExportOptions(precision="int8"), model=resolve(str(model_folder)), out=tmp_path / "out")


def test_a_bundle_too_far_from_its_model_leaves_what_was_there_before(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    monkeypatch.setattr(module, "MAX_DIFFERENCE", -1.0)
    with pytest.raises(DcclipError, match="the exported graphs differ from the model by"):
        export(options=ExportOptions(), model=resolve(str(model_folder)), out=out)
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "old"]


def test_what_is_no_model_directory_is_refused(exported: ExportResult, tmp_path: Path) -> None:
    for reference in (resolve(str(exported.folder)), resolve("hf:BAAI/AltCLIP")):
        with pytest.raises(DcclipError, match="is no model directory"):
            export(options=ExportOptions(), model=reference, out=tmp_path / "out")
