"""The preprocessing of transformers and open_clip at 224 px is found exactly, whichever way it crops."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcclip_cli.errors import DcclipError
from dcclip_cli.model.preprocess import Preprocessing, matching_preprocessing

ODD = [(227, 224), (224, 227), (301, 201), (97, 333), (63, 64), (641, 479), (1, 1), (225, 226)]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8))


def processor(kind: str, **settings: Any) -> Any:
    import transformers

    return getattr(transformers, kind)(**settings)


def values(own: Any) -> Any:
    return lambda image: np.asarray(own(images=image, return_tensors="np")["pixel_values"][0], np.float32)


@pytest.mark.parametrize(
    ("kind", "settings", "crop"),
    [
        ("CLIPImageProcessorPil", {}, "floor"),
        ("CLIPImageProcessorPil", {"resample": 2, "size": {"shortest_edge": 224}}, "floor"),
        ("CLIPImageProcessorPil", {"size": {"height": 224, "width": 224}}, "round"),  # MetaCLIP 2's
        ("ChineseCLIPImageProcessorPil", {"do_center_crop": False, "size": {"height": 224, "width": 224}}, "round"),
        ("SiglipImageProcessorPil", {"size": {"height": 224, "width": 224}}, "round"),
    ],
)
def test_a_transformers_processor_at_224_is_matched_on_odd_sizes(kind: str, settings: Any, crop: str) -> None:
    own = processor(kind, **settings)
    found = matching_preprocessing("teacher", values(own), own)
    assert (found.size, found.crop) == (224, crop)
    for size in ODD:
        image = noise(*size)
        np.testing.assert_allclose(found(image), values(own)(image), rtol=0, atol=1e-5, err_msg=str(size))


def test_open_clips_transform_at_224_crops_the_way_torchvision_rounds() -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = Preprocessing().to_config()
    own = image_transform_v2(PreprocessCfg(**config), is_train=False)
    found = matching_preprocessing("teacher", lambda image: own(image).numpy(), config)
    assert found == Preprocessing(crop="round")
    for size in ODD:
        assert np.array_equal(found(noise(*size)), own(noise(*size)).numpy())


def test_the_two_rules_crop_an_odd_margin_one_pixel_apart() -> None:
    # 227 wide, 3 too many: of half of that, 1.5, transformers crops 1 column on the left, torchvision 2.
    columns = np.repeat(np.arange(227, dtype=np.uint8)[None, :, None], 224, 0).repeat(3, 2)
    first = {
        rule: round(
            float(Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), crop=rule)(Image.fromarray(columns))[0, 0, 0] * 255)
        )
        for rule in ("floor", "round")
    }
    assert first == {"floor": 1, "round": 2}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"size": {"shortest_edge": 256}}, "it crops 256 to 224"),
        ({"size": {"height": 224, "width": 192}, "do_center_crop": False}, "its images are not square"),
        ({"do_rescale": False}, "it gives other values than its settings say"),
    ],
)
def test_another_kind_of_preprocessing_is_refused_with_the_reason(settings: dict[str, Any], reason: str) -> None:
    own = processor("CLIPImageProcessorPil", **settings)
    with pytest.raises(DcclipError, match=reason):
        matching_preprocessing("teacher", values(own), own)


@pytest.mark.parametrize(
    ("folder", "crop", "mode"),
    [
        ("altclip_folder", "floor", "shortest"),
        ("chinese_clip_folder", "round", "squash"),
        ("model_folder", "round", "shortest"),
    ],
)
def test_loaded_towers_have_their_preprocessing(
    folder: str, crop: str, mode: str, request: pytest.FixtureRequest
) -> None:
    from dcclip_cli.model.teachers import OpenClipTeacher, TransformersTeacher

    path: Path = request.getfixturevalue(folder)
    teacher = OpenClipTeacher if folder == "model_folder" else TransformersTeacher
    found = teacher(model=str(path)).load().preprocessing
    assert found is not None
    assert (found.crop, found.resize_mode) == (crop, mode)
