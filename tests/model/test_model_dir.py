"""Model directories are written atomically and loaded by plain open_clip, wherever they are moved."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.files import read_json
from dcclip_cli.data.pair import Pair
from dcclip_cli.model.model_dir import load_model, model_fingerprint, save_model
from dcclip_cli.model.preprocess import decode
from dcclip_cli.model.tokenizer import load_tokenizer
from tests.records import rewrite

TEXTS = ["红色的圆", "一张三角形的图片。", "A picture of a ring!", "", "ｒｅｄ　圆　 ring", "a long red circle " * 9]
PLAIN_OPEN_CLIP = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("dcclip", "dcclip_cli"):
            raise ImportError("dcclip is not installed here")
sys.meta_path.insert(0, Refuse())
import json, numpy, open_clip, torch
from PIL import Image
torch.set_num_threads(1)
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:moved")
tokenizer = open_clip.get_tokenizer("local-dir:moved")
model.eval()
with torch.no_grad():
    images = model.encode_image(torch.stack([preprocess(Image.open(name)) for name in sys.argv[1:]]))
    texts = model.encode_text(tokenizer(json.load(sys.stdin)))
    numpy.savez("out.npz", images=images, texts=texts, scale=model.logit_scale.exp())
assert not [name for name in sys.modules if name.startswith("dcclip")]
"""


def test_plain_open_clip_loads_a_moved_directory_and_gives_the_same_embeddings(
    model_folder: Path, pairs: list[Pair], tmp_path: Path
) -> None:
    shutil.copytree(model_folder, tmp_path / "moved")
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(pairs[number * 7].image)
    command = [sys.executable, "-I", "-c", PLAIN_OPEN_CLIP, "0.png", "1.png", "2.png"]  # -I leaves PYTHONPATH out
    subprocess.run(command, input=json.dumps(TEXTS), text=True, cwd=tmp_path, check=True, timeout=120)
    plain = np.load(tmp_path / "out.npz")
    towers = load_model(model_folder)
    pixels = torch.from_numpy(np.stack([towers.preprocess(decode(pairs[number * 7].image)) for number in range(3)]))
    with torch.no_grad():
        images = towers.image_features(pixels).embedding.numpy()
        texts = towers.text_features(towers.tokenize(TEXTS)).embedding.numpy()
    np.testing.assert_allclose(plain["images"], images, rtol=0, atol=1e-6)
    np.testing.assert_allclose(plain["texts"], texts, rtol=0, atol=1e-6)
    assert plain["scale"] == pytest.approx(towers.logit_scale)
    assert (towers.training, towers.name) == (False, "tiny")  # the name is that of its run


def test_the_directory_contains_the_documented_files_and_no_path_of_this_machine(model_folder: Path) -> None:
    names = "dcclip.json README.md open_clip_config.json open_clip_model.safetensors tokenizer.json"
    assert {path.name for path in model_folder.iterdir()} == {*names.split(), "tokenizer_config.json"}
    provenance = json.loads((model_folder / "dcclip.json").read_text())
    assert [provenance[key] for key in ("format", "stage", "parent")] == [1, "align", None]
    assert provenance["parameters"] == load_model(model_folder).parameters_count()
    assert set(provenance["metrics"]) >= {"loss", "image_zh", "image_en"}
    assert len(provenance["data"]["train"]) == 64
    assert "torch" in provenance["versions"]
    for file in model_folder.iterdir():
        assert str(model_folder.parent).encode() not in file.read_bytes(), file.name


def test_saving_what_was_loaded_gives_the_same_weights(model_folder: Path, tmp_path: Path) -> None:
    save_again(model_folder, tmp_path / "again")
    for name in ("open_clip_model.safetensors", "open_clip_config.json", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (model_folder / name).read_bytes(), name
    assert model_fingerprint(tmp_path / "again") == model_fingerprint(model_folder)


def save_again(model_folder: Path, target: Path, half: bool = False, scale: float | None = None) -> None:
    towers = load_model(model_folder)
    assert towers.preprocessing is not None
    if scale is not None:
        towers.model.logit_scale.data.fill_(scale)
    config = read_json(model_folder / "open_clip_config.json", "")["model_cfg"]
    save_model(target, towers.model, config, towers.preprocessing, load_tokenizer(model_folder), {}, half)


def test_a_directory_replaces_the_one_that_was_there(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    (tmp_path / "again/old").write_text("旧")
    save_again(model_folder, tmp_path / "again")
    assert not (tmp_path / "again/old").exists() and [*tmp_path.iterdir()] == [tmp_path / "again"]


def test_half_stores_fp16_and_loads_as_fp32(model_folder: Path, tmp_path: Path) -> None:
    save_again(model_folder, tmp_path / "half", half=True)
    stored = load_file(tmp_path / "half" / "open_clip_model.safetensors")
    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.float16}
    full = load_model(model_folder)
    half = load_model(tmp_path / "half")
    assert {value.dtype for value in half.parameters()} == {torch.float32}
    with torch.no_grad():
        embeddings = [towers.text_features(towers.tokenize(["猫", "cat"])).embedding for towers in (full, half)]
    torch.testing.assert_close(*embeddings, rtol=0, atol=0.01)


def test_weights_that_are_not_finite_are_never_saved(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        save_again(model_folder, tmp_path / "m", scale=float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_depends_on_the_outputs_only(model_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "copy")
    (folder / "README.md").write_text("另一个模型卡")
    assert model_fingerprint(folder) == model_fingerprint(model_folder)
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["logit_scale"] += 1
    save_file(weights, folder / "open_clip_model.safetensors")
    assert model_fingerprint(folder) != model_fingerprint(model_folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("open_clip_config.json", None, "has no open_clip_config.json"),
        ("open_clip_model.safetensors", None, "has no open_clip_model.safetensors or open_clip_pytorch_model.bin"),
        ("dcclip.json", "{", "dcclip.json is not JSON"),
    ],
)
def test_a_broken_directory_gets_the_right_error(
    model_folder: Path, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "broken")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content, "utf-8")
    rewrite(folder)
    with pytest.raises(DcclipError) as raised:
        load_model(folder)
    assert message in raised.value.what
    assert str(tmp_path / "broken") in raised.value.what
    assert raised.value.hint
