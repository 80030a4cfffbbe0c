"""An export gives what its model gives, at any batch size and text length; a failed export leaves nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from dcclip_cli.core.checksums import write_record
from dcclip_cli.core.errors import DcclipError
from dcclip_cli.data.options import DataOptions
from dcclip_cli.eval.evaluate import EvalOptions
from dcclip_cli.exporters.export import ExportOptions, ExportResult, export
from dcclip_cli.exporters.parity import _DEFAULTS as parity_limits
from dcclip_cli.exporters.parity import Parity, ParityTest, TowerEmbeddings
from dcclip_cli.inference.encoder import Encoder
from dcclip_cli.inference.onnx_encoder import OnnxEncoder
from dcclip_cli.model.model_dir import WEIGHTS, load_model, read_provenance
from dcclip_cli.model.precision import NotFiniteError
from dcclip_cli.model.reference import resolve
from dcclip_cli.model.tokenizer import load_tokenizer
from dcclip_cli.model.towers import Tokens
from tests.exporters.conftest import Exporting

TEXTS = ["猫", "cat", "一只狗", "a dog", "雪地里奔跑的两匹马", "two horses running through the snow", "汽车", "car"]
TEXTS += ["热气腾腾的香肠，配酸菜", "steaming sausages with sauerkraut", "一张很旧很旧很旧的照片", "old trees"]
ANY_AGREEMENT = {"min_agreement": 0}  # random weights, for which all images look alike: agreement means nothing


@pytest.fixture(scope="module")
def exported(model_folder: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    data = DataOptions(train=str(pairs_file))
    out = tmp_path_factory.mktemp("exports") / "fp32"
    return export(options=ExportOptions(), model=resolve(str(model_folder)), data=data, out=out)


def parity(result: ExportResult) -> Parity:
    assert result.parity is not None
    return result.parity


def about(result: ExportResult) -> dict[str, Any]:
    return dict(json.loads((result.folder / "dcclip.json").read_text("utf-8")))


@pytest.mark.any_cpu
@pytest.mark.parametrize(("batch", "length"), [(1, 2), (1, 24), (5, 23)])
def test_texts_of_any_length_come_out_as_from_torch(
    exported: ExportResult, model_folder: Path, batch: int, length: int
) -> None:
    towers = load_model(model_folder)
    vocabulary = int(towers.model.text.vocab_size)
    ids = torch.randint(4, vocabulary, (batch, length), generator=torch.Generator().manual_seed(length))
    ids[:, 0] = 0
    ids[:, -1] = 2
    with torch.no_grad():
        features = towers.text_features(Tokens(ids, torch.ones_like(ids)))
    expected = torch.nn.functional.normalize(features.embedding, dim=-1)
    session = onnxruntime.InferenceSession(str(exported.folder / "text.onnx"))
    [rows] = session.run(["text_embeds"], {"input_ids": ids.numpy()})
    np.testing.assert_allclose(rows, expected.numpy(), atol=1e-5)


def test_the_bundle_contains_what_is_needed_to_use_it(exported: ExportResult, model_folder: Path) -> None:
    towers = load_model(model_folder)
    record = about(exported)
    assert sorted(file.name for file in exported.folder.iterdir()) == [
        "README.md",
        "dcclip.json",
        "image.onnx",
        "text.onnx",
        "tokenizer.json",
    ]
    assert towers.preprocessing is not None
    assert record["preprocessing"] == json.loads(json.dumps(towers.preprocessing.to_config()))
    assert record["logit_scale"] == pytest.approx(towers.logit_scale)
    assert record["prompts"] == {"en": ["{}"], "zh": ["{}"]} and record["languages"] == ["en", "zh"]
    assert record["parity"]["agreement"] == parity(exported).agreement == 1
    assert record["parity"]["images"] == 40 and record["parity"]["text_max_difference"] < 1e-5
    assert record["parity"]["image_max_difference"] < 1e-5
    theirs, ours = (load_tokenizer(folder).encode_batch(TEXTS) for folder in (exported.folder, model_folder))
    assert [item.ids for item in theirs] == [item.ids for item in ours]
    for name in ("image.onnx", "text.onnx"):  # without source paths
        content = (exported.folder / name).read_bytes()
        assert b"site-packages" not in content and b"dcclip_cli" not in content


def test_int8_is_smaller_close_to_the_model_the_same_each_time_and_independent_of_the_batch(
    exported: ExportResult, export_model: Exporting
) -> None:
    int8, again = (
        export_model(out=out, precision="int8", parity=ANY_AGREEMENT, calibration_images=20) for out in ("out", "again")
    )
    assert about(int8)["fingerprint"] == about(again)["fingerprint"]
    assert int8.size_bytes < exported.size_bytes / 1.5
    assert parity(int8).image_centred_cosine > 0.9 and parity(int8).text_centred_cosine > 0.9
    assert parity(int8).int8_largest_pair_sum == 255 * 128
    encoder = OnnxEncoder(int8.folder, "cpu")
    alone = np.concatenate([encoder.encode_texts([text]) for text in TEXTS])
    for size in (2, 3, 16, 64):
        together = [encoder.encode_texts(TEXTS[start : start + size]) for start in range(0, len(TEXTS), size)]
        np.testing.assert_allclose(np.concatenate(together), alone, atol=1e-5)


def test_an_export_that_differs_too_much_leaves_the_earlier_one(
    export_model: Exporting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    content = {"kind": "bundle"}
    (tmp_path / "out/dcclip.json").write_text(json.dumps(content)[:-1])
    for fresh in (True, False):
        with pytest.raises(DcclipError, match=r"dcclip\.json is not JSON") as damaged:
            export(options=ExportOptions(), model=resolve("starter"), out=tmp_path / "out", fresh=fresh)
        assert damaged.value.hint == "choose a new folder with --out"
    (tmp_path / "out/dcclip.json").write_text(json.dumps(content))
    # No two libraries agree in the very last bit.
    monkeypatch.setitem(parity_limits, "fp32", {**parity_limits["fp32"], "max_difference": 0})
    with pytest.raises(DcclipError, match="onnx export in fp32 differs too much from the model: image embeddings"):
        export_model()
    assert json.loads((tmp_path / "out/dcclip.json").read_text()) == content
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "dcclip.json"]


def test_a_bundle_is_exported_to_other_formats_of_its_graphs(exported: ExportResult, export_model: Exporting) -> None:
    result = export_model(exported.folder, format="immich")
    assert parity(result).image_max_difference == parity(result).text_max_difference == 0
    assert about(result)["name"] == about(exported)["name"]


def test_an_fp16_export_that_overflows_keeps_more_in_fp32(
    export_model: Exporting, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = ParityTest.embed
    overflows = iter([True])

    def first_overflows(on: ParityTest, model: Encoder, *more: Any) -> TowerEmbeddings:
        if isinstance(model, OnnxEncoder) and next(overflows, False):
            raise NotFiniteError("tiny-fp16 returned embeddings that are not finite", "")
        return embed(on, model, *more)

    monkeypatch.setattr(ParityTest, "embed", first_overflows)
    assert set(about(export_model(precision="fp16", data=None))["kept_fp32"]) == {"image", "text"}


@pytest.mark.parametrize("teacher", ["altclip", "metaclip2", "siglip", "clip"])
def test_models_of_transformers_can_be_exported(
    teacher: str, hub_teachers: Path, siglip_folder: Path, clip_folder: Path, export_model: Exporting
) -> None:
    model = {"siglip": siglip_folder, "clip": clip_folder}.get(teacher, hub_teachers / teacher)
    result = export_model(f"hf:{model}", parity={"min_agreement": 0.9})  # random: its best texts are nearly tied
    assert parity(result).text_max_difference < 1e-5 and parity(result).image_max_difference < 1e-5
    assert about(result)["fixed_length"] == (teacher == "siglip")


def test_models_of_open_clip_can_be_exported_with_texts_of_any_length(
    open_clip_name: str, export_model: Exporting
) -> None:
    result = export_model(open_clip_name, parity={"min_agreement": 0.9})
    assert parity(result).text_max_difference < 1e-5  # with the texts and the tokens of open_clip's own tokenizer
    session = onnxruntime.InferenceSession(str(result.folder / "text.onnx"))
    ids = np.asarray([[49406, 320, 2368, 49407]])  # "a cat"
    [short] = session.run(["text_embeds"], {"input_ids": ids})
    [padded] = session.run(["text_embeds"], {"input_ids": np.pad(ids, ((0, 0), (0, 73)))})
    np.testing.assert_allclose(short, padded, atol=1e-6)


def test_the_recipes_test_sets_are_evaluated_before_and_after(export_model: Exporting, pairs_file: Path) -> None:
    result = export_model(data=None, parity={"images": 15}, evaluation=EvalOptions(datasets=(str(pairs_file),)))
    rows = parity(result).accuracy
    assert {(row.dataset, row.language, row.images) for row in rows} == {("train", "en", 15), ("train", "zh", 15)}
    assert all(row.before == row.after and row.agreement == 1 for row in rows)


def test_prompts_of_a_recipe_are_written_to_the_bundle_whose_graphs_have_the_same_bytes(
    exported: ExportResult, export_model: Exporting
) -> None:
    prompts = {"en": ["a photo of a {}"], "zh": ["一张{}的照片", "{}"]}
    result = export_model(data=None, prompts=prompts)
    assert about(result)["prompts"] == prompts
    for name in ("image.onnx", "text.onnx"):  # that of `exported` was traced by itself
        assert (result.folder / name).read_bytes() == (exported.folder / name).read_bytes()
    with pytest.raises(ValueError, match=r"every template for zh needs {}"):
        ExportOptions(prompts={"zh": ("一张照片",)})


def test_models_with_the_same_image_tower_have_bundles_with_the_same_image_fingerprint(
    exported: ExportResult, model_folder: Path, export_model: Exporting, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "other"
    shutil.copytree(model_folder, elsewhere)
    weights = load_file(elsewhere / WEIGHTS)
    save_file(weights | {"text.text_projection": weights["text.text_projection"] + 1}, elsewhere / WEIGHTS)
    write_record(elsewhere / "dcclip.json", read_provenance(model_folder).content)
    second = OnnxEncoder(export_model(elsewhere, parity=ANY_AGREEMENT).folder, "cpu")
    first = OnnxEncoder(exported.folder, "cpu")
    assert first.fingerprint != second.fingerprint and first.image_fingerprint == second.image_fingerprint
