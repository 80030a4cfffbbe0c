"""Files made to mislead a reader are refused in an error and a hint, at once; more of them: benchmarks/dev/hostile."""

import io
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.cli.conftest import dcclip
from tests.images import encode

Change = Callable[[Path], object]
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8), "red").save("good.png")


def refused(*arguments: object) -> str:
    """What a command says that must end in one error and one hint."""
    errors: list[str] = []
    hints: list[str] = []
    for line in dcclip(*arguments, expect=1).stderr.splitlines():
        (errors if line.startswith("error: ") else hints if line.startswith("hint:  ") else []).append(line)
    assert len(errors) == len(hints) == 1 and len(errors[0]) < 1000
    return errors[0]


def header(change: Callable[[dict[str, Any]], object]) -> Change:
    """A change of the header of a model directory's weights."""

    def rewrite(folder: Path) -> None:
        file = folder / "open_clip_model.safetensors"
        content = file.read_bytes()
        size = int.from_bytes(content[:8], "little")
        said = json.loads(content[8 : 8 + size])
        change(said)
        new = json.dumps(said).encode()
        file.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + size :])

    return rewrite


def endless(folder: Path) -> None:
    file = folder / "open_clip_model.safetensors"
    file.write_bytes((2**63).to_bytes(8, "little") + file.read_bytes()[8:])


def config(tower: str, **values: object) -> Change:
    def change(folder: Path) -> None:
        file = folder / "open_clip_config.json"
        content = json.loads(file.read_text("utf-8"))
        content["model_cfg"][tower] |= values
        file.write_text(json.dumps(content), "utf-8")

    return change


MODELS: dict[str, Change] = {
    "a header of 2**63 bytes": endless,
    "a tensor that ends after the file": header(lambda said: said["logit_scale"].update(data_offsets=[0, 2**60])),
    "a tensor of a negative size": header(lambda said: said["logit_scale"].update(shape=[-1])),
    "a tensor fewer": header(lambda said: said.pop("logit_scale")),
    "a vocabulary of 10**9": config("text_cfg", vocab_size=10**9),
    "a tower from a folder of the machine": config("vision_cfg", timm_model_name="local-dir:/etc"),
    "a tokenizer of 100,000 levels": lambda folder: (folder / "tokenizer.json").write_text("[" * 100_000),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_foreign_model_directory_that_misleads_is_refused(name: str, model_folder: Path) -> None:
    folder = shutil.copytree(model_folder, Path("model"))
    (folder / "dcclip.json").unlink()
    MODELS[name](folder)
    assert "model" in refused("predict", "good.png", "--labels", "猫,dog", "--model", folder, "-q")


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def test_code_in_a_pickle_of_weights_does_not_run(altclip_folder: Path) -> None:
    folder = shutil.copytree(altclip_folder, Path("teacher"))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Code()}))
    assert "pytorch_model.bin" in refused("predict", "good.png", "--labels", "猫,dog", "--model", folder, "-q")
    assert not Path("ran").exists()


RECIPES = {
    "a bomb of aliases": "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 12)),
    "20,000 levels": f"name: {'[' * 20_000}",
    "80,000 unknown keys": "name: a\n" + "".join(f"k{n}: 1\n" for n in range(80_000)),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_would_fill_the_memory_is_refused(name: str) -> None:
    Path("r.yaml").write_text(RECIPES[name], "utf-8")
    assert "r.yaml" in refused("recipe", "show", "r.yaml")


def test_a_tar_leads_to_nothing_outside(tmp_path: Path) -> None:
    image, captions = encode(Image.new("RGB", (48, 48), "red")), json.dumps({"en": ["a red square"]}).encode()
    (tmp_path / "secret.json").write_bytes(captions)
    members = {"good.png": image, "good.json": captions, "../../out.png": image, "../../out.json": captions}
    with tarfile.open("pairs.tar", "w") as tar:
        for name, content in (members | {"link.png": image}).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link.json")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.json")
        tar.addfile(link)
    source = {"kind": "tars", "path": "./pairs.tar"}
    Path("c.yaml").write_text(yaml.safe_dump({"name": "raw", "collect": {"sources": [source], "filters": []}}), "utf-8")
    dcclip("collect", "c.yaml", "--workers", 1, "-q")
    pairs = json.loads(Path("runs/raw/collect/manifest.json").read_text("utf-8"))["pairs"]
    assert pairs["kept"] == 1 and not list(tmp_path.parent.glob("out.*"))
