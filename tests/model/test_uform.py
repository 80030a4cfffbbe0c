"""UForm's models, in the layout of unum-cloud's repositories, by the package uform, which is optional."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dcclip_cli.errors import DcclipError
from dcclip_cli.model.preprocess import Preprocessing
from dcclip_cli.model.teachers import TransformersTeacher
from tests.model.test_preprocess import noise

TEXTS = ["一张照片", "a photo of 猫", "的" * 300]
SIZES = [(227, 224), (31, 64), (97, 333)]
CONFIG: dict[str, dict[str, Any]] = json.loads("""{
    "text_encoder": {
        "model_type": "bert", "dim": 32, "context_dim": 32, "vocab_size": 400, "padding_idx": 1, "num_layers": 2,
        "num_heads": 2, "embedding_dim": 16, "multimodal_layers_ids": [], "head_one_neuron": true, "pooling": "mean",
        "max_position_embeddings": 50, "dropout_prob": 0.1
    },
    "image_encoder": {
        "dim": 32, "patch_size": 8, "image_size": 32, "num_layers": 2, "num_heads": 2, "num_reg_tokens": 4,
        "embedding_dim": 16, "pooling": "cls", "normalization_means": [0.5, 0.4, 0.3],
        "normalization_deviations": [0.2, 0.3, 0.4]
    }
}""")


@pytest.fixture
def folder(hub_teachers: Path, tmp_path: Path) -> Path:
    """Tiny UForm: its image tower's weights pickled, its text tower's as safetensors."""
    encoders = pytest.importorskip("uform.torch_encoders")
    (folder := tmp_path / "uform3").mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    shutil.copy(hub_teachers / "metaclip2" / "tokenizer.json", folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        fields = encoders.TextEncoder.__dataclass_fields__
        text = encoders.TextEncoder(**{key: value for key, value in CONFIG["text_encoder"].items() if key in fields})
        fields = encoders.ImageEncoder.__dataclass_fields__
        image = encoders.ImageEncoder(**{key: value for key, value in CONFIG["image_encoder"].items() if key in fields})
    save_file(text.state_dict(), folder / "text_encoder.safetensors")
    torch.save(image.state_dict(), folder / "image_encoder.pt")
    return folder


def load(folder: Path) -> Any:
    return TransformersTeacher(model=str(folder), precision="fp32").load()


@torch.no_grad()
def test_embeddings_equal_those_of_the_package(folder: Path) -> None:
    from uform.torch_encoders import ImageEncoder, TextEncoder
    from uform.torch_processors import ImageProcessor, TextProcessor

    config = str(folder / "config.json")
    image = ImageEncoder.from_pretrained(config, torch.load(folder / "image_encoder.pt")).eval()
    text = TextEncoder.from_pretrained(config, load(folder).model["text_encoder"].state_dict()).eval()
    images, towers = [noise(*size) for size in SIZES], load(folder)
    pixels = torch.from_numpy(np.stack([towers.preprocess(picture) for picture in images]))
    features_of = towers.image_features(pixels, layers=(0,))
    features, expected = image(ImageProcessor(config)(images), return_features=True)
    torch.testing.assert_close(features_of.embedding, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(features_of.map, features[:, 5:].transpose(1, 2).unflatten(2, (4, 4)), rtol=0, atol=1e-5)
    assert features_of.layer(0).shape == (3, 32, 4, 4)
    tokens = TextProcessor(config, str(folder / "tokenizer.json"))(TEXTS)
    features, expected = text(tokens, return_features=True)
    ours = towers.text_features(towers.tokenize(TEXTS))
    torch.testing.assert_close(ours.embedding, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.tokens, features, rtol=0, atol=1e-5)
    assert towers.preprocessing == Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def test_without_the_package_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uform.torch_encoders", None)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "image_encoder.pt").touch()
    with pytest.raises(DcclipError, match="needs the package uform") as raised:
        load(tmp_path)
    assert raised.value.hint == "pip install uform"
