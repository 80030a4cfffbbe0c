"""Teachers as the files of their hub repositories: pickled weights, other libraries' directories, long texts."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.progress import Lines
from dcclip_cli.inference.encoder import load_encoder
from dcclip_cli.model.hub_models import check_timm_name
from dcclip_cli.model.model_dir import load_model
from dcclip_cli.model.reference import resolve
from dcclip_cli.model.teachers import OpenClipTeacher, TransformersTeacher
from tests.model.test_preprocess import noise

TEXTS = ["一张照片", "a photo of 猫", "Ｔ恤 ，！", "“quoted” &amp; the", "a " * 200, "的" * 200]
ODD = [(227, 224), (31, 64), (97, 333), (33, 32)]


def load(folder: Path, kind: Any = TransformersTeacher, **more: Any) -> Any:
    return kind(model=str(folder), precision="fp32").load(**more)


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


@pytest.mark.parametrize("kind", ["altclip", "chineseclip", "siglip2", "metaclip2"])
def test_embeddings_and_layers_equal_those_of_transformers(hub_teachers: Path, kind: str) -> None:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, Siglip2Tokenizer

    folder = hub_teachers / kind
    peer: Any = AutoModel.from_pretrained(folder).eval()
    processor: Any = AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokenizer: Any = (Siglip2Tokenizer if kind == "siglip2" else AutoTokenizer).from_pretrained(folder)
    length = {"chineseclip": 52, "siglip2": 64}.get(kind, 77)  # of texts in training
    fixed = {"padding": "max_length" if kind == "siglip2" else True, "max_length": length}
    tokens = tokenizer(TEXTS, truncation=True, return_tensors="pt", **fixed)
    if kind == "siglip2":
        tokens = {"input_ids": tokens["input_ids"]}
    images = [noise(*size) for size in ODD]
    towers = load(folder)
    with torch.no_grad():
        expected = peer.get_image_features(**processor(images=images, return_tensors="pt"), output_hidden_states=True)
        pixels = torch.from_numpy(np.stack([towers.preprocess(image) for image in images]))
        output = towers.image_features(pixels, layers=(0,))
        torch.testing.assert_close(output.embedding, expected.pooler_output, rtol=0, atol=1e-5)
        for own_map, hidden in ((output.layer(0), expected.hidden_states[1]), (output.map, expected.last_hidden_state)):
            patches = hidden[:, -16:].transpose(1, 2).unflatten(2, (4, 4))  # in reading order, after a class token
            torch.testing.assert_close(own_map, patches, rtol=0, atol=1e-5)
        text = peer.get_text_features(**tokens)
        ours = towers.text_features(towers.tokenize(TEXTS))
        torch.testing.assert_close(ours.embedding, text.pooler_output, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.tokens, text.last_hidden_state, rtol=0, atol=1e-5)


def test_an_open_clip_directory_with_a_text_tower_of_transformers_loads_offline_and_equals_open_clip(
    hub_teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip
    from open_clip import hf_model
    from transformers import AutoConfig

    folder = hub_teachers / "openclip-xlmr"
    towers = load(folder, OpenClipTeacher)
    assert towers.vocab is not None and len(towers.vocab) == 400

    class Offline:  # open_clip itself asks the hub for the sizes of the text tower
        from_pretrained = staticmethod(lambda name: AutoConfig.from_pretrained(folder))

    monkeypatch.setattr(hf_model, "AutoConfig", Offline)
    peer, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    peer.eval()
    images = [noise(*size) for size in ODD]
    with torch.no_grad():
        expected = peer.encode_image(torch.stack([transform(image) for image in images]))
        pixels = torch.from_numpy(np.stack([towers.preprocess(image) for image in images]))
        torch.testing.assert_close(towers.image_features(pixels).embedding, expected, rtol=0, atol=1e-5)
        output = towers.text_features(towers.tokenize(TEXTS))
        torch.testing.assert_close(output.embedding, peer.encode_text(tokenizer(TEXTS)), rtol=0, atol=1e-5)
    assert output.tokens.shape == (6, 77, 32)


def test_only_robertas_position_table_loses_two_of_its_positions(hub_teachers: Path, altclip_folder: Path) -> None:
    long = ["a " * 200]
    assert load(hub_teachers / "metaclip2").tokenize(long).ids.shape == (1, 77)  # of 77 positions
    assert load(hub_teachers / "altclip").tokenize(long).ids.shape == (1, 77)  # of 514
    assert load(altclip_folder).tokenize(long).ids.shape == (1, 38)  # of 40
    assert load(hub_teachers / "chineseclip").tokenize(long).ids.shape == (1, 52)  # of 512


@pytest.mark.parametrize(("kind", "text"), [("siglip2", "A PHOTO of 猫"), ("metaclip2-mt5", "A, Photo of 猫!")])
def test_siglips_tokenizers_cut_and_pad_texts_to_64_tokens_and_lower_case_them(
    hub_teachers: Path, kind: str, text: str
) -> None:
    tokens = load(hub_teachers / kind).tokenize([text, "a photo of 猫", "a " * 200])
    assert tokens.ids.shape == (3, 64) and torch.equal(tokens.ids[0], tokens.ids[1])
    assert kind == "siglip2" or set(tokens.ids[:, -1].tolist()) == {1}  # mT5's end of text is its padding, too


def test_pickled_weights_are_read_once_and_kept_as_safetensors(
    hub_teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCCLIP_CACHE", str(tmp_path / "cache"))
    lines: list[str] = []
    first = load(hub_teachers / "chineseclip", progress=Lines(lines.append))
    [weights_file] = (tmp_path / "cache" / "weights").glob("*/model.safetensors")
    assert lines == [
        "chineseclip has only pickled weights (pytorch_model.bin): reading only tensors, and saving a safetensors "
        f"copy in {weights_file.parent}"
    ]
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled again"))
    again = load(copy(hub_teachers / "chineseclip", tmp_path / "moved"), progress=Lines(lines.append))
    assert len(lines) == 1 and again.fingerprint == first.fingerprint
    pixels = torch.from_numpy(first.preprocess(noise(40, 50)))[None]
    assert torch.equal(again.image_features(pixels).embedding, first.image_features(pixels).embedding)


def test_pickled_shards_and_old_checkpoints_are_read_too(hub_teachers: Path, tmp_path: Path) -> None:
    full = load(hub_teachers / "chineseclip")
    folder = copy(hub_teachers / "chineseclip", tmp_path / "shards")
    weights = torch.load(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").unlink()
    names = sorted(weights)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for shard, part in shards.items():  # the format before torch 1.6, which is no zip file
        torch.save({name: weights[name] for name in part}, folder / shard, _use_new_zipfile_serialization=False)
    index = {name: shard for shard, part in shards.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    pixels = torch.from_numpy(full.preprocess(noise(40, 50)))[None]
    assert torch.equal(load(folder).image_features(pixels).embedding, full.image_features(pixels).embedding)
    (folder / next(iter(shards))).unlink()
    with pytest.raises(DcclipError, match=r"lacks pytorch_model-00001-of-00002\.bin, which"):
        load(folder)


class Malicious:
    def __reduce__(self) -> Any:
        return os.system, ("touch PWNED",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_runs_nothing(
    hub_teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = copy(hub_teachers / "chineseclip", tmp_path / "malicious")
    weights = torch.load(folder / "pytorch_model.bin") | {"logit_bias": Malicious()}
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(DcclipError, match=r"is rejected: it refers to posix\.system besides weights, and could"):
        load(folder)
    assert not Path("PWNED").exists()


def test_an_open_clip_directory_with_pickled_weights_is_read(hub_teachers: Path, tmp_path: Path) -> None:
    folder = copy(hub_teachers / "openclip-xlmr", tmp_path / "pickled")
    weights = {f"module.{name}": value for name, value in load_file(folder / "open_clip_model.safetensors").items()}
    weights["module.text.transformer.embeddings.position_ids"] = torch.arange(514)[None]
    torch.save({"epoch": 3, "state_dict": weights}, folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_model.safetensors").unlink()
    expected = load(hub_teachers / "openclip-xlmr", OpenClipTeacher)
    output = load(folder, OpenClipTeacher)
    pixels = torch.from_numpy(output.preprocess(noise(40, 50)))[None]
    assert torch.equal(output.image_features(pixels).embedding, expected.image_features(pixels).embedding)


@pytest.mark.parametrize("kind", ["altclip", "openclip-xlmr"])
@pytest.mark.parametrize("form", ["hf:{}", "open_clip:{}"])
def test_any_directory_is_a_model_whatever_library_wrote_it(
    hub_teachers: Path, kind: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hub_teachers)
    encoder = load_encoder(resolve(form.format(kind)), "cpu")
    assert encoder.name == kind
    assert encoder.encode_texts(["猫"]).shape[0] == 1
    assert encoder.encode_pixels(encoder.preprocess(Image.new("RGB", (50, 40)))[None]).shape[0] == 1


def test_a_directory_of_both_libraries_is_read_by_the_one_named(hub_teachers: Path, tmp_path: Path) -> None:
    both = copy(hub_teachers / "altclip", tmp_path / "both")
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        shutil.copy(hub_teachers / "openclip-xlmr" / name, both)
    assert resolve(f"hf:{both}").kind == "hf"
    assert resolve(str(both)).kind == resolve(f"open_clip:{both}").kind == "folder"


def test_a_directory_without_a_model_is_named_with_what_it_contains(
    hub_teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy(hub_teachers / "altclip", tmp_path / "saved" / "0_CLIPModel")
    (tmp_path / "saved" / "modules.json").write_text("[]")
    for name in (resolve, lambda path: load(Path(path))):
        with pytest.raises(DcclipError, match=r"\(found: 0_CLIPModel, modules.json\)") as raised:
            name(str(tmp_path / "saved"))
        assert raised.value.hint == f"give its subdirectory {tmp_path / 'saved' / '0_CLIPModel'}"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DcclipError, match=r"\(found: nothing\)"):
        load(tmp_path / "empty")


# ---- configurations, weights and tokenizers of other libraries are checked before anything is built from them


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


TEXT = ("model_cfg", "text_cfg")
VISION = ("model_cfg", "vision_cfg")


@pytest.mark.parametrize(
    ("keys", "value", "what"),
    [
        (TEXT, "文本", "model_cfg.text_cfg is missing or is not a JSON object"),
        ((*TEXT, "layers"), 10**6, "model_cfg.text_cfg.layers is 1000000, which is out of range"),
        (("model_cfg", "embed_dim"), 4096, "; open_clip_config.json requires (4096, "),
        ((*TEXT, "pool_type"), "最大", "open_clip cannot build this model: AssertionError: assert pool_type in"),
        ((*VISION, "timm_model_name"), "test_eficientnet", "timm has no network 'test_eficientnet'"),
        (("preprocess_cfg", "size"), 0, "preprocess_cfg: size must be an integer from 1 to 4,096 (got 0)"),
    ],
)
def test_a_wrong_value_in_open_clips_configuration_is_named(
    open_clip_folder: Path, keys: Keys, value: Any, what: str
) -> None:
    change(open_clip_folder / "open_clip_config.json", keys, value)
    refused(load_model, open_clip_folder, what)


WEIGHTS = "open_clip_model.safetensors"


def test_weights_of_another_model_are_named_by_the_first_that_differs(open_clip_folder: Path) -> None:
    file = open_clip_folder / WEIGHTS
    weights = {key: value.clone() for key, value in load_file(file).items()}  # they are mapped from the file
    name = "text.token_embedding.weight"
    rows, width = weights[name].shape
    cut = weights[name][:-1].clone()
    integers = weights[name].to(torch.int8)
    for changed, problem in (
        (weights | {name: cut}, f"{name} has the shape ({rows - 1}, {width}); open_clip_con"),
        (weights | {name: integers}, f"{name} has the data type I8 instead of F64, F32, F16, BF16"),
        ({key: value for key, value in weights.items() if key != name}, f"lacks {name} (1 missing in all)"),
        (weights | {"text.更多": torch.zeros(1)}, "contains text.更多, which is not part of the model (1 such"),
    ):
        save_file(changed, open_clip_folder / WEIGHTS)
        refused(load_model, open_clip_folder, problem)


def test_a_wrong_name_of_a_timm_network_gets_the_nearest() -> None:
    check_timm_name("test_resnet", "network")
    check_timm_name("test_efficientnet.r160_in1k", "network")
    listed = "list timm's networks in Python: timm.list_models()"
    elsewhere = "refers to a hub or another directory"
    for name, problem, hint in (
        ("test_resnt", "network: timm has no network 'test_resnt'", "did you mean test_resnet, "),
        ("网络", "network: timm has no network '网络'", listed),
        ("test_resnet.r160", "timm has no network 'test_resnet.r160'", "did you mean test_resnet.r160_in1k?"),
        ("hf-hub:nobody/network", elsewhere, "choose the name of a timm network"),
    ):
        with pytest.raises(DcclipError) as raised:
            check_timm_name(name, "network")
        assert problem in raised.value.what and raised.value.hint.startswith(hint)
