"""Initialisation of a student's text tower from its teacher's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from dcclip_cli.errors import DcclipError
from dcclip_cli.model.init_from_teacher import init_text_tower, principal_components
from dcclip_cli.model.model_dir import load_model
from dcclip_cli.model.students import StudentOptions, build_model, model_config
from dcclip_cli.model.teachers import AltClipTeacher, TransformersTeacher
from dcclip_cli.model.tokenizer import load_tokenizer, trim_tokenizer


@pytest.fixture(scope="module")
def trimmed(altclip_folder: Path, captions: list[str]) -> Tokenizer:
    return trim_tokenizer(altclip_folder, captions, 70)


def student(width: int, vocabulary: int, layers: int = 1, embed_dim: int = 16) -> Any:
    options = StudentOptions.model_validate(
        {"image": {"timm": "test_efficientnet"}, "text": {"layers": layers, "width": width, "context_length": 24}}
    )
    return build_model(model_config(options, embed_dim, vocabulary), seed=0)


def test_rows_of_equal_width_are_the_teachers_for_the_same_tokens(altclip_folder: Path, trimmed: Tokenizer) -> None:
    text = student(32, trimmed.get_vocab_size()).text
    teacher = AltClipTeacher(model=str(altclip_folder)).load()
    init_text_tower(text, trimmed, teacher, layers=False)
    table, vocab = teacher.token_embedding()
    for token in ("▁red", "▁picture", "红", "</s>"):
        assert torch.equal(text.token_embedding.weight[trimmed.token_to_id(token)], table[vocab[token]]), token


def test_projected_rows_keep_the_teachers_distances(chinese_clip_folder: Path) -> None:
    teacher = TransformersTeacher(model=str(chinese_clip_folder)).load()
    table, _ = teacher.token_embedding()
    small = principal_components(table, 8).double().numpy()
    centred = (table - table.mean(0)).double().numpy()
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    best = left[:, :8] * values[:8]  # the best eight numbers a row, up to a rotation
    np.testing.assert_allclose(small @ small.T, best @ best.T, atol=1e-5)


def test_projected_rows_have_the_random_ones_deviation(altclip_folder: Path, trimmed: Tokenizer) -> None:
    model = student(32, trimmed.get_vocab_size())
    before = float(model.text.token_embedding.weight.detach().std())
    teacher = AltClipTeacher(model=str(altclip_folder)).load()
    teacher.model.text_model.roberta.set_input_embeddings(torch.nn.Embedding(79, 64))
    init_text_tower(model.text, trimmed, teacher, layers=False)
    assert float(model.text.token_embedding.weight.detach().std()) == pytest.approx(before, rel=0.1)


def test_layers_are_copied_at_even_distances_with_norm_and_positions(model_folder: Path) -> None:
    teacher = load_model(model_folder)
    tokenizer = load_tokenizer(model_folder)
    big = student(32, tokenizer.get_vocab_size(), layers=4)
    teacher.model.text = big.text
    small = student(32, tokenizer.get_vocab_size(), layers=2).text
    init_text_tower(small, tokenizer, teacher, layers=True)
    for new, old in ((0, 0), (1, 2)):
        expected = big.text.transformer.resblocks[old].state_dict()
        taken = small.transformer.resblocks[new].state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in taken.items())
    for name in ("positional_embedding", "text_projection"):
        assert torch.equal(getattr(small, name), getattr(big.text, name)), name
    assert torch.equal(small.token_embedding.weight, big.text.token_embedding.weight)


def test_a_student_with_all_layers_of_its_teacher_gives_the_same_embeddings(model_folder: Path) -> None:
    teacher, tokenizer = load_model(model_folder), load_tokenizer(model_folder)
    other = load_model(model_folder)
    other.model.text = student(32, tokenizer.get_vocab_size()).text.eval()
    init_text_tower(other.model.text, tokenizer, teacher, layers=True)
    with torch.no_grad():
        tokens = teacher.tokenize(["红色的圆", "a red circle"])
        assert torch.equal(other.text_features(tokens).embedding, teacher.text_features(tokens).embedding)


def test_layers_that_do_not_fit_are_refused(altclip_folder: Path, model_folder: Path, trimmed: Tokenizer) -> None:
    text = student(32, trimmed.get_vocab_size()).text
    with pytest.raises(DcclipError, match="no layers of altclip fit") as raised:
        init_text_tower(text, trimmed, AltClipTeacher(model=str(altclip_folder)).load(), layers=True)
    assert "inherit: embeddings" in raised.value.hint
    deep = student(32, 300, layers=3).text
    with pytest.raises(DcclipError, match=r"no layers of .* fit"):
        init_text_tower(deep, load_tokenizer(model_folder), load_model(model_folder), layers=True)


@pytest.mark.parametrize(("count", "most"), [(100, 32), (11, 11)])
def test_a_width_above_the_components_of_the_tokens_is_refused(count: int, most: int) -> None:
    with pytest.raises(DcclipError, match=rf"have {most} principal components, fewer than .* 40$") as raised:
        principal_components(torch.randn(count, 32), 40)
    assert f"at most {most}," in raised.value.hint
