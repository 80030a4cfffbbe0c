"""The starter as a model directory, and the recipe that distils it into a smaller model."""

from pathlib import Path

import numpy as np
import pytest

from dcclip_cli.model.model_dir import load_model
from dcclip_cli.model.preprocess import decode
from dcclip_cli.model.reference import resolve
from dcclip_cli.predict.encoder import TorchEncoder, load_encoder
from dcclip_cli.recipe.load import load
from dcclip_cli.run_dir import RunDir
from dcclip_cli.train.distill import distill
from dcclip_cli.train.options import StageContext

ROOT = Path(__file__).parent.parent.parent
MODEL, PHOTOS = ROOT / "recipes/starter/model", ROOT / "recipes/starter/photos"


@pytest.fixture(scope="module")
def model() -> TorchEncoder:
    return TorchEncoder(load_model(MODEL))


@pytest.mark.any_cpu
def test_bundle_and_model_directory_agree(model: TorchEncoder) -> None:
    bundle = load_encoder(resolve("starter"), "cpu")
    labels = ["cat", "coffee", "rocket", "flower", "temple", "dog", "猫", "咖啡", "火箭", "花", "寺庙", "狗"]
    pixels = np.stack([model.preprocess(decode(file)) for file in sorted(PHOTOS.glob("*.jpg"))])
    found = [(one.encode_pixels(pixels) @ one.encode_texts(labels).T).argmax(axis=1) for one in (model, bundle)]
    assert (found[0] == found[1]).mean() >= 5 / 6


def test_a_smaller_model_learns_from_it_on_photographs_without_labels(tmp_path: Path) -> None:
    recipe = load(ROOT / "recipes/distill-photos.yaml", ["distill.epochs=20", "distill.augmentations=1"]).recipe
    assert recipe.distill and recipe.teacher and recipe.student and recipe.data
    run = RunDir(tmp_path / "runs/distill-photos")
    result = distill(recipe.distill, StageContext(run, recipe.data, recipe.teacher, recipe.student))
    student = load_model(result.model)
    assert student.parameters_count() < load_model(MODEL).parameters_count() / 4
    assert 0 < result.metrics["embedding"] < 0.8  # two random directions are 1 apart
