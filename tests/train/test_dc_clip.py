"""The paper's recipe for some steps, with an AltCLIP that has every layer of the true one and is narrow and random."""

from pathlib import Path

import pytest

from dcclip_cli.model.model_dir import load_model
from dcclip_cli.model.teachers import AltClipTeacher
from dcclip_cli.recipe.load import load
from dcclip_cli.run_dir import RunDir
from dcclip_cli.train.align import align
from dcclip_cli.train.distill import distill
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss
from dcclip_cli.train.options import StageContext

RECIPE = Path(__file__).parents[2] / "recipes" / "dc-clip.yaml"
LAYERS = 24  # of both towers of BAAI/AltCLIP


@pytest.fixture(scope="module")
def full_shaped(altclip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AltCLIP of 24 + 24 layers, 224 px in patches of 14, 77 tokens, a space of 768; 32 wide instead of 1,024."""
    from transformers import AltCLIPConfig, AltCLIPModel, AutoTokenizer, CLIPImageProcessor

    folder = tmp_path_factory.mktemp("full") / "AltCLIP"
    tokenizer = AutoTokenizer.from_pretrained(altclip_folder, model_max_length=77)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    config = AltCLIPConfig(
        text_config=sizes
        | {"vocab_size": len(tokenizer), "max_position_embeddings": 514, "type_vocab_size": 1, "project_dim": 768}
        | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
        vision_config=sizes | {"image_size": 224, "patch_size": 14, "projection_dim": 768, "hidden_act": "quick_gelu"},
        projection_dim=768,
    )
    AltCLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}).save_pretrained(folder)
    return folder


def test_the_papers_recipe_trains_both_stages(full_shaped: Path, pairs_file: Path, tmp_path: Path) -> None:
    short = ["steps=2", "epochs=null", "batch_size=4", "warmup_steps=1", "workers=0", "threads=1"]
    sets = [f"{stage}.{one}" for stage in ("distill", "align") for one in short]
    # The recipe's bf16 is for a GPU: most CPUs emulate it, many times slower.
    sets += [f"{section}.precision=fp32" for section in ("teacher", "distill", "align")]
    sets += [f"{key}={pairs_file}" for key in ("data.train", "data.validation", "align.train")]
    sets += [f"teacher.model={full_shaped}", "align.accumulate=2", "distill.augmentations=1", "student.text.width=32"]
    recipe = load(RECIPE, sets).recipe
    assert isinstance(recipe.teacher, AltClipTeacher) and recipe.student and recipe.student.preset == "RN50"
    assert recipe.distill and recipe.align and recipe.data
    assert {type(loss) for loss in recipe.distill.losses} >= {FeatureMapLoss, TokenFeaturesLoss}
    context = StageContext(RunDir(tmp_path / "dc-clip"), recipe.data, recipe.teacher, recipe.student)
    first = distill(recipe.distill, context)
    assert set(first.metrics) >= {"feature_map", "token_features", "embedding"}
    second = align(recipe.align, context)
    assert set(second.metrics) >= {"image_zh", "image_en", "logit_scale", "top1_zh", "top1_en", "best_step"}
    towers = load_model(second.model)
    assert towers.text_features(towers.tokenize(["红色的圆"])).embedding.shape == (1, 768)
