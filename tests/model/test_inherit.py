"""Students begin with rows, layers and image towers of their teachers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.model.inherit import inherit_image_tower, init_text_tower, principal_components
from dcclip_cli.model.model_dir import load_model
from dcclip_cli.model.students import StudentOptions, build_model, model_config, preprocessing_of
from dcclip_cli.model.teachers import AltClipTeacher, TransformersTeacher
from dcclip_cli.model.tokenizer import load_tokenizer, trim_tokenizer
from dcclip_cli.model.towers import OpenClipTowers


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
    left_vectors, values, _ = np.linalg.svd(centred, full_matrices=False)
    best = left_vectors[:, :8] * values[:8]  # the best eight numbers a row, up to a rotation
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
        weights = small.transformer.resblocks[new].state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    for name in ("positional_embedding", "text_projection"):
        assert torch.equal(getattr(small, name), getattr(big.text, name)), name
    assert torch.equal(small.token_embedding.weight, big.text.token_embedding.weight)


def test_a_student_with_all_layers_of_its_teacher_gives_the_same_embeddings(model_folder: Path) -> None:
    teacher = load_model(model_folder)
    tokenizer = load_tokenizer(model_folder)
    donor = load_model(model_folder)
    donor.model.text = student(32, tokenizer.get_vocab_size()).text.eval()
    init_text_tower(donor.model.text, tokenizer, teacher, layers=True)
    with torch.no_grad():
        tokens = teacher.tokenize(["红色的圆", "a red circle"])
        assert torch.equal(donor.text_features(tokens).embedding, teacher.text_features(tokens).embedding)


def test_layers_that_do_not_fit_are_refused(altclip_folder: Path, model_folder: Path, trimmed: Tokenizer) -> None:
    text = student(32, trimmed.get_vocab_size()).text
    with pytest.raises(DcclipError, match="no layers of altclip fit") as raised:
        init_text_tower(text, trimmed, AltClipTeacher(model=str(altclip_folder)).load(), layers=True)
    assert "inherit: embeddings" in raised.value.hint
    deep = student(32, 300, layers=3).text
    with pytest.raises(DcclipError, match=r"no layers of .* fit"):
        init_text_tower(deep, load_tokenizer(model_folder), load_model(model_folder), layers=True)


def model(timm: str, seed: int = 0, projection: str = "linear") -> Any:
    options = StudentOptions.model_validate(
        {"image": {"timm": timm, "size": 64, "projection": projection}, "text": {"layers": 1, "width": 32}}
    )
    return build_model(model_config(options, 16, 300), seed)


def towers(large: Any, timm: str) -> OpenClipTowers:
    image = StudentOptions.model_validate({"image": {"timm": timm, "size": 64}}).image
    assert not isinstance(image, str)
    return OpenClipTowers(large, lambda _: None, preprocessing_of(image), timm, "")  # type: ignore[arg-type,return-value]


def randomise(visual: Any) -> None:
    """Give batch norms what training would: no two channels are alike."""
    with torch.no_grad():
        for name, value in visual.state_dict().items():
            if "running_var" in name or ("bn" in name and name.endswith("weight")):
                value.uniform_(0.5, 1.5)
            elif "bn" in name and value.is_floating_point():
                value.normal_(std=0.1)


def hide(small: Any, large: Any) -> None:
    """Make `large`, a wider network of the same depth, compute what `small` does in a random part of its channels."""
    random = torch.Generator().manual_seed(0)
    streams: dict[str, Tensor] = {}

    def places(key: str, count: int, of: int) -> Tensor:
        return streams.setdefault(key, torch.randperm(of, generator=random)[:count].sort().values)

    def put(own: Any, wide: Any, names: tuple[str, str], outputs: Tensor, inputs: Tensor | None) -> None:
        conv, norm = (getattr(own, name) for name in names)
        wide_conv, wide_norm = (getattr(wide, name) for name in names)
        for tensor in (wide_conv.weight, wide_norm.weight, wide_norm.bias):
            tensor.zero_()
        rows = outputs[:, None] if inputs is not None else outputs
        wide_conv.weight[(rows, inputs) if inputs is not None else rows] = conv.weight
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(wide_norm, name)[outputs] = getattr(norm, name)

    with torch.no_grad():
        for narrow, wide, names, outputs, inputs in _layers(small, large, places):
            put(narrow, wide, names, outputs, inputs)


def _layers(small: Any, large: Any, places: Any) -> Any:
    before = places("stem", small.conv_stem.out_channels, large.conv_stem.out_channels)
    yield small, large, ("conv_stem", "bn1"), before, torch.arange(3)
    for stage, (own_blocks, wide_blocks) in enumerate(zip(small.blocks, large.blocks, strict=True)):
        for narrow, wide in zip(own_blocks, wide_blocks, strict=True):
            last, norm = ("conv_pwl", "bn3") if hasattr(narrow, "conv_pwl") else ("conv_pw", "bn2")
            after = places(f"stage {stage}", getattr(narrow, last).out_channels, getattr(wide, last).out_channels)
            hidden = before
            if last == "conv_pwl":
                hidden = places(f"{id(narrow)}", narrow.conv_pw.out_channels, wide.conv_pw.out_channels)
                yield narrow, wide, ("conv_pw", "bn1"), hidden, before
                yield narrow, wide, ("conv_dw", "bn2"), hidden, None
            else:
                yield narrow, wide, ("conv_dw", "bn1"), hidden, None
            yield narrow, wide, (last, norm), after, hidden
            before = after
    features = torch.arange(small.conv_head.out_channels)
    yield small, large, ("conv_head", "bn2"), features, before


def test_a_small_network_that_is_hidden_in_a_large_one_is_found_channel_by_channel() -> None:
    hidden = model("mobilenetv2_050", 1).visual
    large = model("mobilenetv2_100", 2)
    student = model("mobilenetv2_050", 3)
    randomise(hidden)
    hide(hidden.trunk, large.visual.trunk)
    large.visual.head.load_state_dict(hidden.head.state_dict())
    inherit_image_tower(student.visual, towers(large, "mobilenetv2_100"))
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, wide, features = (tower.eval()(pixels) for tower in (hidden, large.visual, student.visual))
    torch.testing.assert_close(wide, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features, expected, rtol=0, atol=0)


def test_blocks_are_taken_at_even_distances_kernels_are_cropped_and_surplus_blocks_add_nothing_at_first() -> None:
    # 1 2 2 3 3 4 1 and 1 2 3 4 3 3 1
    teacher = model("efficientnet_lite0")
    student = model("mobilenetv2_050", 1)
    randomise(teacher.visual)
    inherit_image_tower(student.visual, towers(teacher, "efficientnet_lite0"))
    blocks = student.visual.trunk.blocks
    source = teacher.visual.trunk.blocks
    for block, origin in ((blocks[5][0], source[5][0]), (blocks[5][1], source[5][1]), (blocks[5][2], source[5][2])):
        assert set(block.bn2.bias.tolist()) <= set(origin.bn2.bias.tolist())
    centres = {tuple(kernel.flatten().tolist()) for kernel in source[2][0].conv_dw.weight[:, :, 1:4, 1:4]}
    assert {tuple(kernel.flatten().tolist()) for kernel in blocks[2][0].conv_dw.weight} <= centres
    stage = blocks[2].eval()
    pixels = torch.randn(1, 16, 8, 8)
    with torch.no_grad():
        assert torch.equal(stage(pixels), stage[1](stage[0](pixels)))


@pytest.mark.parametrize(
    ("small", "large", "reason"),
    [
        ("test_vit", "efficientnet_lite0", "it is not in timm's EfficientNet family"),
        ("mobilenetv2_035", "test_vit", "the teacher's network is not in timm's EfficientNet family"),
        ("mobilenetv2_100", "mobilenetv2_050", "its stage 0 is wider"),
        ("tinynet_e", "efficientnet_lite0", "the blocks of its stage 0 differ"),  # squeeze-and-excitation
        ("lcnet_035", "mobilenetv2_050", "it has 6 stages instead of 7"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_with_the_reason(small: str, large: str, reason: str) -> None:
    with pytest.raises(DcclipError, match=reason) as raised:
        inherit_image_tower(model(small).visual, towers(model(large), large))
    assert "remove inherit" in raised.value.hint
