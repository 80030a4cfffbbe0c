"""An export says what the model says, at any batch size and text length, or leaves nothing."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from dcclip_cli.data.options import DataOptions
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.evaluate import EvalOptions
from dcclip_cli.exporters.export import ExportOptions, ExportResult, export
from dcclip_cli.exporters.parity import Original, Parity, Thresholds
from dcclip_cli.model.model_dir import load_model
from dcclip_cli.model.precision import NotFiniteError
from dcclip_cli.model.reference import resolve
from dcclip_cli.model.towers import Tokens
from dcclip_cli.predict.encoder import Encoder
from dcclip_cli.predict.onnx_encoder import OnnxEncoder

ZH = ("猫", "一只狗", "雪地里奔跑的两匹马", "热气腾腾的香肠，配酸菜", "汽车", "一张很旧很旧很旧的照片")
EN = ("cat", "a dog", "two horses running through the snow", "steaming sausages with sauerkraut", "car", "old trees")


@pytest.fixture(scope="module")
def exported(model_folder: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    return export(
        options=ExportOptions(),
        model=resolve(str(model_folder)),
        data=DataOptions(train=str(pairs_file)),
        out=tmp_path_factory.mktemp("exports") / "fp32",
    )


def parity(result: ExportResult) -> Parity:
    assert result.parity is not None
    return result.parity


@pytest.mark.any_cpu
@pytest.mark.parametrize("batch", [1, 2, 7, 40])
def test_images_in_any_number_come_out_as_from_torch(exported: ExportResult, model_folder: Path, batch: int) -> None:
    pixels = torch.rand(batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch)) * 2 - 1
    with torch.no_grad():
        expected = torch.nn.functional.normalize(load_model(model_folder).image_features(pixels).embedding, dim=-1)
    session = onnxruntime.InferenceSession(str(exported.folder / "image.onnx"))
    [found] = session.run(["image_embeds"], {"pixel_values": pixels.numpy()})
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.any_cpu
@pytest.mark.parametrize(("batch", "length"), [(1, 2), (1, 24), (3, 7), (5, 23), (64, 8)])
def test_texts_of_any_length_come_out_as_from_torch(
    exported: ExportResult, model_folder: Path, batch: int, length: int
) -> None:
    towers = load_model(model_folder)
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
    towers = load_model(model_folder)
    about = json.loads((exported.folder / "dcclip.json").read_text("utf-8"))
    assert sorted(file.name for file in exported.folder.iterdir()) == [
        "config.json",  # this one and the two other configurations are for transformers.js
        "dcclip.json",
        "image.onnx",
        "preprocessor_config.json",
        "text.onnx",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert towers.preprocessing is not None
    assert about["preprocessing"] == json.loads(json.dumps(towers.preprocessing.to_config()))
    assert about["logit_scale"] == pytest.approx(towers.logit_scale)
    assert about["prompts"] == {"en": ["{}"], "zh": ["{}"]} and about["languages"] == ["en", "zh"]
    assert about["parity"]["agreement"] == parity(exported).agreement == 1
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
        options=ExportOptions(precision="int8", parity=Thresholds(min_agreement=0), calibration_images=20),
        model=resolve(str(model_folder)),
        data=DataOptions(train=str(pairs_file)),
        out=tmp_path / "int8",
    )
    assert int8.size_bytes < exported.size_bytes / 1.5
    assert parity(int8).image_centred_cosine > 0.9 and parity(int8).text_centred_cosine > 0.9


def test_a_fingerprint_changes_with_the_ranges_of_int8_and_with_nothing_else(
    model_folder: Path, pairs_file: Path, tmp_path: Path
) -> None:
    def fingerprint(out: str, images: int) -> str:
        made = export(
            options=ExportOptions(precision="int8", parity=Thresholds(min_agreement=0), calibration_images=images),
            model=resolve(str(model_folder)),
            data=DataOptions(train=str(pairs_file)),
            out=tmp_path / out,
        )
        return str(json.loads((made.folder / "dcclip.json").read_text("utf-8"))["fingerprint"])

    assert fingerprint("few", 2) == fingerprint("few-again", 2) != fingerprint("many", 20)


def test_int8_without_images_to_calibrate_on_is_refused(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DcclipError, match="int8 needs images"):
        export(options=ExportOptions(precision="int8"), model=resolve(str(model_folder)), out=tmp_path / "out")


def test_a_bundle_too_far_from_its_model_leaves_what_was_there_before(model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    exact = ExportOptions(parity=Thresholds(max_difference=0))  # no two libraries add up to the very same last bit
    with pytest.raises(DcclipError, match="onnx export in fp32 differs too much from the model: image embeddings"):
        export(options=exact, model=resolve(str(model_folder)), out=out)
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "old"]


def test_a_bundle_can_not_be_exported_again(exported: ExportResult, tmp_path: Path) -> None:
    with pytest.raises(DcclipError, match="is already a bundle"):
        export(options=ExportOptions(), model=resolve(str(exported.folder)), out=tmp_path / "out")


def test_fp16_halves_the_weights_and_changes_next_to_nothing(
    exported: ExportResult, model_folder: Path, pairs_file: Path, tmp_path: Path
) -> None:
    half = export(
        options=ExportOptions(precision="fp16"),
        model=resolve(str(model_folder)),
        data=DataOptions(train=str(pairs_file)),
        out=tmp_path / "fp16",
    )
    assert (half.folder / "text.onnx").stat().st_size < (exported.folder / "text.onnx").stat().st_size / 1.6
    assert parity(half).image_max_difference < 5e-3 and parity(half).text_centred_cosine > 0.9999


def test_an_fp16_export_that_overflows_keeps_more_in_fp32(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare, overflows = Original.compare, iter([True, False])

    def first_overflows(original: Original, exported: Encoder) -> Parity:
        if next(overflows):
            raise NotFiniteError("tiny-fp16 returned embeddings that are not finite", "")
        return compare(original, exported)

    monkeypatch.setattr(Original, "compare", first_overflows)
    made = export(options=ExportOptions(precision="fp16"), model=resolve(str(model_folder)), out=tmp_path / "fp16")
    assert set(json.loads((made.folder / "dcclip.json").read_text("utf-8"))["kept_fp32"]) == {"image", "text"}


@pytest.mark.parametrize("teacher", ["altclip_folder", "chinese_clip_folder", "siglip_folder", "clip_folder"])
def test_models_of_transformers_can_be_exported(
    teacher: str, pairs_file: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    made = export(
        options=ExportOptions(parity=Thresholds(min_agreement=0.9)),  # random: its best texts are nearly tied
        model=resolve(f"hf:{request.getfixturevalue(teacher)}"),
        data=DataOptions(train=str(pairs_file)),
        out=tmp_path / "out",
    )
    assert parity(made).text_max_difference < 1e-5 and parity(made).image_max_difference < 1e-5
    about = json.loads((made.folder / "dcclip.json").read_text("utf-8"))
    assert about["fixed_length"] == (teacher == "siglip_folder")


def test_models_of_open_clip_can_be_exported_their_text_at_any_length(
    open_clip_name: str, pairs_file: Path, tmp_path: Path
) -> None:
    made = export(
        options=ExportOptions(parity=Thresholds(min_agreement=0.9)),
        model=resolve(open_clip_name),
        data=DataOptions(train=str(pairs_file)),
        out=tmp_path / "out",
    )
    assert parity(made).text_max_difference < 1e-5  # with the texts and the tokens of open_clip's own tokenizer
    session = onnxruntime.InferenceSession(str(made.folder / "text.onnx"))
    ids = np.asarray([[49406, 320, 2368, 49407]])  # "a cat"
    [short] = session.run(["text_embeds"], {"input_ids": ids})
    [padded] = session.run(["text_embeds"], {"input_ids": np.pad(ids, ((0, 0), (0, 73)))})
    np.testing.assert_allclose(short, padded, atol=1e-6)


def test_the_recipes_test_sets_are_evaluated_before_and_after(
    model_folder: Path, pairs_file: Path, tmp_path: Path
) -> None:
    made = export(
        options=ExportOptions(parity=Thresholds(images=15)),
        model=resolve(str(model_folder)),
        evaluation=EvalOptions(datasets=(str(pairs_file),)),
        out=tmp_path / "out",
    )
    figures = parity(made).accuracy
    assert {(one.dataset, one.language, one.images) for one in figures} == {("train", "en", 15), ("train", "zh", 15)}
    assert all(one.before == one.after and one.agreement == 1 for one in figures)


def test_prompts_of_a_recipe_go_into_the_bundle(model_folder: Path, tmp_path: Path) -> None:
    prompts = {"en": ("a photo of a {}",), "zh": ("一张{}的照片", "{}")}
    made = export(options=ExportOptions(prompts=prompts), model=resolve(str(model_folder)), out=tmp_path / "out")
    about = json.loads((made.folder / "dcclip.json").read_text("utf-8"))
    assert about["prompts"] == {"en": ["a photo of a {}"], "zh": ["一张{}的照片", "{}"]}
    with pytest.raises(ValueError, match=r"each template for zh needs {}"):
        ExportOptions(prompts={"zh": ("一张照片",)})


def test_int8_is_calibrated_on_a_folder_of_pictures(model_folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    made = export(
        options=ExportOptions(
            precision="int8", calibration=str(pictures[0].parent), parity=Thresholds(min_agreement=0)
        ),
        model=resolve(str(model_folder)),
        out=tmp_path / "out",
    )
    assert parity(made).images == len(pictures) and parity(made).source == pictures[0].parent.name


def test_one_text_has_one_int8_embedding_alone_and_in_any_batch(
    model_folder: Path, pairs_file: Path, tmp_path: Path
) -> None:
    made = export(
        options=ExportOptions(precision="int8", parity=Thresholds(min_agreement=0), calibration_images=20),
        model=resolve(str(model_folder)),
        data=DataOptions(train=str(pairs_file)),
        out=tmp_path / "out",
    )
    assert parity(made).int8_largest_pair_sum == 255 * 128
    texts = [word for several in zip(EN, ZH, strict=True) for word in several]
    encoder = OnnxEncoder(made.folder, "cpu")
    alone = np.concatenate([encoder.encode_texts([text]) for text in texts])
    for size in (2, 3, 16, 64):
        together = [encoder.encode_texts(texts[start : start + size]) for start in range(0, len(texts), size)]
        np.testing.assert_allclose(np.concatenate(together), alone, atol=1e-5)


def test_an_int8_graph_that_could_overflow_is_refused(
    model_folder: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcclip_cli.exporters.rounding._PAIR", 254)
    with pytest.raises(DcclipError, match="two int8 products can add up to"):
        export(
            options=ExportOptions(precision="int8", parity=Thresholds(min_agreement=0), calibration_images=2),
            model=resolve(str(model_folder)),
            data=DataOptions(train=str(pairs_file)),
            out=tmp_path / "out",
        )
