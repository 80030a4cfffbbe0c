"""Configurations, weights and tokenizers of other libraries are checked before anything is built from them."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dcclip_cli.errors import DcclipError
from dcclip_cli.model.hub_models import check_timm_name
from dcclip_cli.model.model_dir import load_model

Keys = tuple[str | int, ...]


@pytest.fixture
def open_clip_folder(model_folder: Path, tmp_path: Path) -> Path:
    """A model directory as open_clip has it: without dcclip's record."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "模型"))
    (folder / "dcclip.json").unlink()
    return folder


def change(file: Path, keys: Keys, value: Any) -> None:
    """Set the value at `keys` of a JSON file."""
    content = json.loads(file.read_text("utf-8"))
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    file.write_text(json.dumps(content, ensure_ascii=False), "utf-8")


def refused(load: Callable[[Path], Any], folder: Path, what: str) -> None:
    """Loading ends within seconds in one line that says `what` about a file in the folder, and in a hint."""
    begin = time.monotonic()
    with pytest.raises(DcclipError) as raised:
        load(folder)
    assert what in raised.value.what and str(folder) in raised.value.what
    assert raised.value.hint and "\n" not in raised.value.what
    assert time.monotonic() - begin < 60  # also on a busy machine


# ---- open_clip_config.json

TEXT, VISION = ("model_cfg", "text_cfg"), ("model_cfg", "vision_cfg")


@pytest.mark.parametrize(
    ("keys", "value", "what"),
    [
        (TEXT, "文本", "model_cfg.text_cfg is missing, or no section"),
        ((*TEXT, "layers"), 10**6, "model_cfg.text_cfg.layers is 1000000: no model has that"),
        (("model_cfg", "embed_dim"), 4096, "by open_clip_config.json it is (4096, "),
        ((*TEXT, "pool_type"), "最大", "open_clip cannot build this model: AssertionError: assert pool_type in"),
        ((*VISION, "timm_model_name"), "test_eficientnet", "timm has no network 'test_eficientnet'"),
        (("preprocess_cfg", "size"), 0, "preprocess_cfg: size should be a whole number from 1 to 4,096 (got 0)"),
    ],
)
def test_a_wrong_value_in_open_clips_configuration_is_named(
    open_clip_folder: Path, keys: Keys, value: Any, what: str
) -> None:
    change(open_clip_folder / "open_clip_config.json", keys, value)
    refused(load_model, open_clip_folder, what)


# ---- config.json and preprocessor_config.json


# ---- weights

WEIGHTS = "open_clip_model.safetensors"


def test_weights_of_another_model_are_named_by_the_first_that_differs(open_clip_folder: Path) -> None:
    weights = load_file(open_clip_folder / WEIGHTS)
    name = "text.token_embedding.weight"
    rows, width = weights[name].shape
    cut, integers = weights[name][:-1].clone(), weights[name].to(torch.int8)
    for changed, what in (
        (weights | {name: cut}, f"{name} has the shape ({rows - 1}, {width}), by open_clip_con"),
        (weights | {name: integers}, f"{name} has numbers of type I8, not F64, F32, F16, BF16"),
        ({key: value for key, value in weights.items() if key != name}, f"lacks {name} (1 missing in all)"),
        (weights | {"text.更多": torch.zeros(1)}, "has text.更多, which is no part of the model (1 such weights)"),
    ):
        save_file(changed, open_clip_folder / WEIGHTS)
        refused(load_model, open_clip_folder, what)


# ---- tokenizers


# ---- names of timm's networks


def test_a_wrong_name_of_a_timm_network_gets_the_nearest() -> None:
    check_timm_name("test_resnet", "network")
    check_timm_name("test_efficientnet.r160_in1k", "network")
    listed, elsewhere = "list timm's networks in Python: timm.list_models()", "leads to a hub or another directory"
    for name, what, hint in (
        ("test_resnt", "network: timm has no network 'test_resnt'", "did you mean test_resnet, "),
        ("网络", "network: timm has no network '网络'", listed),
        ("test_resnet.r160", "timm has no network 'test_resnet.r160'", "did you mean test_resnet.r160_in1k?"),
        ("hf-hub:nobody/network", elsewhere, "write the name of a network that timm itself"),
    ):
        with pytest.raises(DcclipError) as raised:
            check_timm_name(name, "network")
        assert what in raised.value.what and raised.value.hint.startswith(hint)
