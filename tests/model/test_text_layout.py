"""How text towers attend and pool, what students take from their teachers, and what `token_features` pairs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.model import inherit
from dcclip_cli.model.model_dir import load_model, save_model
from dcclip_cli.model.students import StudentOptions, TextTower, build_model, model_config, preprocessing_of
from dcclip_cli.model.teachers import FgClip2Teacher, OpenClipTeacher, TransformersTeacher
from dcclip_cli.model.tokenizer import tokenize_with, train_tokenizer
from dcclip_cli.model.towers import OpenClipTowers, TextLayout, Towers
from dcclip_cli.train.losses.features import resample_tokens
from tests.teachers import KINDS

TEXTS = ["一只猫", "a photo of two dogs"]
IMAGE = {"timm": "test_resnet", "size": 32}


def student(text: dict[str, Any], layout: TextLayout | None, folder: Path | None = None) -> OpenClipTowers:
    """A student with random weights, of a teacher with this layout."""
    text = {"layers": 1, "width": 32, "context_length": 24, **text}
    options = StudentOptions.model_validate({"image": IMAGE, "text": text})
    tokenizer = train_tokenizer(["一只猫", "一只狗", "a photo of two cats", "a photo of two dogs"] * 5, 300)
    config = model_config(options, 16, tokenizer.get_vocab_size(), layout=layout)
    model = build_model(config, seed=0).eval()
    preprocessing = preprocessing_of(options.image)  # type: ignore[arg-type]
    if folder is not None:
        save_model(folder, model, config, preprocessing, tokenizer, {"kind": "model"})
    tokenize = tokenize_with(tokenizer, config["text_cfg"])
    return OpenClipTowers(model, tokenize, preprocessing, "student", "", tokenizer.get_vocab())


@pytest.fixture(params=[*sorted(KINDS), "student"])
def teacher(request: pytest.FixtureRequest, hub_teachers: Path, model_folder: Path, own_modules: Path) -> Towers:
    """A tiny teacher of each family."""
    if request.param == "student":
        return load_model(model_folder)
    folder = hub_teachers / request.param
    if not folder.is_dir():
        pytest.skip("transformers does not have the model")
    if request.param == "fgclip2":
        return FgClip2Teacher(model=str(folder), trust_remote_code=True, precision="fp32").load()
    library = OpenClipTeacher if request.param.startswith("openclip") else TransformersTeacher
    return library(model=str(folder), precision="fp32").load()


def test_a_students_pooled_token_learns_the_teachers_and_differs_between_texts(teacher: Towers) -> None:
    teacher.requires_grad_(True)
    features = teacher.text_features(teacher.tokenize(TEXTS))
    [gradient] = torch.autograd.grad(features.embedding.sum(), features.tokens)
    share = gradient.abs().sum(-1)
    share = share / share.sum(1, keepdim=True)  # which states the embedding is computed from
    pooled = (features.tokens * share[..., None]).sum(1)
    layouts: list[dict[str, Any]] = [{}, {"attention": "causal"}, {"pooling": "first"}, {"pooling": "last"}]
    for text in layouts:
        towers = student(text, teacher.text_layout)
        tokens = towers.tokenize(TEXTS)
        learning = towers.text_features(tokens)
        end = torch.arange(len(TEXTS)), tokens.mask.sum(1) - 1
        torch.testing.assert_close(resample_tokens(features, tokens.mask)[end], pooled)
        state = learning.states[end]
        projection: Any = towers.model.text.text_projection
        torch.testing.assert_close(state @ projection, learning.embedding)
        assert (state[0] - state[1]).abs().max() > 1e-3
    if teacher.text_layout.attention == "bidirectional":  # all states then depend on the whole text
        first = student({}, teacher.text_layout).text_features(tokens).tokens[:, 0]
        assert (first[0] - first[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("text", "teacher", "expected"),
    [
        ({}, None, ("causal", "end")),
        ({}, ("causal", "end"), ("causal", "end")),
        ({}, ("bidirectional", "first"), ("bidirectional", "first")),
        ({}, ("bidirectional", "last"), ("bidirectional", "last")),
        ({}, ("bidirectional", "mean"), ("bidirectional", "first")),
        ({"attention": "causal"}, ("bidirectional", "first"), ("causal", "end")),
        ({"attention": "bidirectional"}, ("causal", "end"), ("bidirectional", "first")),
        ({"pooling": "last"}, ("causal", "end"), ("bidirectional", "last")),
        ({"pooling": "end"}, ("bidirectional", "first"), ("bidirectional", "end")),
    ],
)
def test_a_text_tower_attends_and_pools_as_told_or_else_as_its_teacher(
    text: dict[str, Any], teacher: tuple[Any, Any] | None, expected: tuple[str, str]
) -> None:
    layout = TextLayout(*teacher) if teacher else None
    assert TextTower.model_validate(text).layout(layout) == expected
    assert student(text, layout).text_layout == expected


def test_layers_keep_the_attention_that_they_were_trained_with(tmp_path: Path) -> None:
    for attention, other in (("causal", "bidirectional"), ("bidirectional", "causal")):
        donor = student({"attention": attention}, None)
        inherit.check_inherits(student({}, donor.text_layout).model.text, donor, layers=True)
        target = student({"attention": other}, donor.text_layout).model.text
        inherit.check_inherits(target, donor, layers=False)
        with pytest.raises(DcclipError, match=f"were trained with {attention} attention"):
            inherit.check_inherits(target, donor, layers=True)


@pytest.mark.parametrize("pooling", ["first", "last", "end"])
def test_open_clip_and_dcclip_give_a_bidirectional_student_one_embedding(pooling: str, tmp_path: Path) -> None:
    student({"attention": "bidirectional", "pooling": pooling}, None, tmp_path / "student")
    towers = load_model(tmp_path / "student")
    alone = [towers.text_features(towers.tokenize([text])).embedding for text in TEXTS]
    embeddings = towers.text_features(towers.tokenize(TEXTS)).embedding
    torch.testing.assert_close(torch.cat(alone), embeddings)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'student'}")
    tokenizer: Callable[..., Any] = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'student'}")
    torch.testing.assert_close(model.eval().encode_text(tokenizer(TEXTS)), embeddings)
