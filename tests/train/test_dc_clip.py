"""The paper's recipe for some steps, with a small random AltCLIP."""

import json
from pathlib import Path

from dcclip_cli.model.model_dir import load_model, model_fingerprint
from dcclip_cli.model.teachers import AltClipTeacher
from dcclip_cli.recipe.load import load
from dcclip_cli.run_dir import RunDir
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss
from dcclip_cli.train.stage import Stage
from dcclip_cli.train.trainer import train_stage

RECIPE = Path(__file__).parents[2] / "recipes" / "dc-clip.yaml"


def test_the_papers_recipe_trains_both_stages(altclip_folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    short = ["steps=2", "epochs=null", "batch_size=4", "warmup_steps=1", "workers=0", "threads=1"]
    sets = [f"{stage}.{one}" for stage in ("distill", "align") for one in short]
    # The recipe's bf16 is for a GPU: most CPUs emulate it, many times slower.
    sets += [f"{section}.precision=fp32" for section in ("teacher", "distill", "align")]
    sets += [f"{key}={pairs_file}" for key in ("data.train", "data.validation", "align.train")]
    sets += [
        f"teacher.model={altclip_folder}",
        "align.accumulate=2",
        "distill.augmentations=1",
        "student.text.width=32",
        "student.image.size=64",
    ]
    recipe = load(RECIPE, sets).recipe
    assert isinstance(recipe.teacher, AltClipTeacher) and recipe.student and recipe.student.preset == "RN50"
    assert recipe.distill and recipe.align and recipe.data
    assert {type(loss) for loss in recipe.distill.losses} >= {FeatureMapLoss, TokenFeaturesLoss}
    shared = RunDir(tmp_path / "dc-clip"), recipe.data, recipe.teacher, recipe.student
    first = train_stage(Stage(recipe.distill, *shared))
    assert set(first.metrics) >= {"feature_map", "token_features", "embedding"}
    second = train_stage(Stage(recipe.align, *shared))
    assert json.loads((second.model / "dcclip.json").read_text())["parent"] == model_fingerprint(first.model)
    assert (second.model / "tokenizer.json").read_bytes() == (first.model / "tokenizer.json").read_bytes()
    assert set(second.metrics) >= {"image_zh", "image_en", "logit_scale", "top1_zh", "top1_en", "best_step"}
    towers = load_model(second.model)
    assert towers.text_features(towers.tokenize(["红色的圆"])).embedding.shape == (1, 16)
