"""Exports of tiny models, and two more of them: the original CLIP's architecture in transformers and open_clip."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.progress import Silent
from dcclip_cli.data.options import DataOptions
from dcclip_cli.exporters.export import ExportOptions, ExportResult, export
from dcclip_cli.exporters.formats.web import FILES
from dcclip_cli.model.reference import resolve
from tests.conftest import Build, small
from tests.teachers import seeded

Exporting = Callable[..., ExportResult]


@pytest.fixture
def export_model(model_folder: Path, pairs_file: Path, tmp_path: Path) -> Exporting:
    """Exports a model, by default the tiny student, with options to tmp_path/out, checked and calibrated on pairs."""

    def run(model: str | Path = model_folder, out: str = "out", data: Path | None = pairs_file, **more: Any) -> Any:
        evaluation = more.pop("evaluation", None)
        data_options = DataOptions(train=str(data)) if data else None
        options = ExportOptions.model_validate(more)
        where = tmp_path / out
        return export(options=options, model=resolve(str(model)), out=where, data=data_options, evaluation=evaluation)

    return run


@pytest.fixture(scope="session")
def packages() -> Path:
    """The folder with the packages of the web page, downloaded once."""
    try:
        archives = [package.fetch(Silent()) for package in FILES]
    except DcclipError as error:
        pytest.skip(f"the packages of the page are not available: {error.what}")
    return archives[0].parent


@pytest.fixture(scope="session")
def page_folder(packages: Path, build_once: Build) -> Path:
    """The starter's web page."""
    options = ExportOptions(format="web")
    model = resolve("starter")
    return build_once("pages", lambda folder: export(options=options, model=model, out=folder / "starter")) / "starter"


@pytest.fixture(scope="session")
def clip_folder(build_once: Build) -> Path:
    """A tiny random CLIP of transformers, padded with its end token as the original is."""
    return build_once("clip", _save_clip)


def _save_clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "ca", "cat</w>"]
    vocabulary = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    begin = vocabulary["<|startoftext|>"]
    end = vocabulary["<|endoftext|>"]
    text = {"vocab_size": len(vocabulary), "max_position_embeddings": 24, "bos_token_id": begin, "eos_token_id": end}
    config = CLIPConfig(
        text_config=small(**text, pad_token_id=end),
        vision_config=small(image_size=32, patch_size=8),
        projection_dim=16,
    )
    seeded(CLIPModel, config).save_pretrained(folder)
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[("c", "a"), ("ca", "t</w>")], model_max_length=24)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)


@pytest.fixture
def open_clip_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny random CLIP of open_clip as `hf-hub:test/tiny`, in a cache such as a download leaves."""
    import huggingface_hub.constants
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    preprocessing = {"size": 32, "mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest"}
    mean = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
    repository = tmp_path / "hub/models--test--tiny"
    folder = repository / "snapshots/0123456789"
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123456789")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocessing | mean})
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        weights = CLIP(**config).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "open_clip_model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return "hf-hub:test/tiny"


def student(
    folder: Path,
    timm: str,
    teacher: Path | None = None,
    bias: float = 0.0,
    logit_bias: float | None = None,
    pooling: str | None = None,
    **image: Any,
) -> Path:
    """A student with random weights, and the vocabulary of a `teacher`, or else one of its own.

    `bias` is that of a projection in place of the network's classifier, `logit_bias` that of a sigmoid loss.
    With `pooling`, texts are bidirectional.
    """
    from dcclip_cli.model import students
    from dcclip_cli.model.model_dir import save_model
    from dcclip_cli.model.tokenizer import train_tokenizer, trim_tokenizer

    text = {"layers": 1, "width": 32, "pooling": pooling, "attention": "bidirectional" if pooling else None}
    section = {"image": {"timm": timm, "size": 64, **image}, "text": text}
    options = students.StudentOptions.model_validate(section)
    captions = ["a red circle", "红色的圆"] * 20
    tokenizer = trim_tokenizer(teacher, captions, 300) if teacher else train_tokenizer(captions, 300)
    config = students.model_config(options, 16, tokenizer.get_vocab_size())
    if logit_bias is not None:
        config["init_logit_bias"] = logit_bias
    model = students.build_model(config, 0)
    if bias and (projection_bias := students.projection_bias(model)) is not None:
        projection_bias.data.fill_(bias)
    assert isinstance(options.image, students.ImageTower)
    save_model(folder, model, config, students.preprocessing_of(options.image), tokenizer, {})
    return folder
