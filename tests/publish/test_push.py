"""A model is pushed with huggingface_hub's client to a server on this machine, and loaded back from it by its name."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.curation.collect import collect
from dcclip_cli.curation.options import CollectOptions
from dcclip_cli.data.prompts import read
from dcclip_cli.eval.registry import SETS, prompts_of
from dcclip_cli.eval.result import save_results, sha256_of
from dcclip_cli.exporters.export import ExportOptions, export
from dcclip_cli.inference.model import load
from dcclip_cli.model.model_dir import model_fingerprint
from dcclip_cli.model.reference import resolve
from dcclip_cli.publish.push import PushPlan, plan_push, push
from tests.conftest import Build
from tests.eval.test_compare import guesses, result
from tests.hub_server import Hub, serving

TEXTS = ["红色的圆", "a red circle", "一张蓝色的，方块！", "a picture of a " + "green " * 40 + "cross", "ＡＢ　猫"]


@pytest.fixture(scope="module")
def run(model_folder: Path, pairs_file: Path, build_once: Build) -> Path:
    """A run whose pairs were collected, with a model, results on a named data set in Chinese, and a bundle."""
    return build_once("pushed", partial(_write_run, model_folder, pairs_file)) / "小模型"


def _write_run(model_folder: Path, pairs_file: Path, folder: Path) -> None:
    root = folder / "小模型"
    shutil.copytree(model_folder, root / "align" / "model")
    source = {"kind": "table", "path": str(pairs_file), "name": "drawn", "license": "CC0"}
    options = CollectOptions.model_validate({"sources": [source], "filters": [{"kind": "length", "zh": [2, 99]}]})
    collect(options, root / "collect")
    recipe = {"teacher": {"kind": "altclip", "model": "BAAI/AltCLIP"}, "data": {"train": str(root / "collect")}}
    (root / "resolved.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), "utf-8")
    prompts = read(prompts_of(SETS["dtd"]))
    fingerprint = model_fingerprint(model_folder)
    hashes = {"class_names_sha256": prompts.names["zh"], "templates_sha256": prompts.templates["zh"]}
    zh = {"dataset": "dtd-cn", "language": "zh", **{key: sha256_of(value) for key, value in hashes.items()}}
    mine = result("小模型", guesses(300), **(zh | {"model_fingerprint": f"{fingerprint}-fp32"}))
    save_results([mine, result("teacher", guesses(390), **zh)], root / "eval")
    export(options=ExportOptions(), model=resolve(str(root / "align" / "model")), out=root / "export")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(tmp_path / "hub") as server:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_writes")
        yield server


def python(hub: Hub, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python as a user has it: with the network, whose hub is `hub`, and an empty cache."""
    env = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder / "home")}
    environment = os.environ | env | {"HF_TOKEN": "hf_writes", "COLUMNS": "100"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


_LOAD = """
import json, sys
import numpy as np, open_clip, torch
from huggingface_hub import snapshot_download
from dcclip_cli import load
texts, image, out = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
found = {}
bundle = snapshot_download("ORG/small", allow_patterns="onnx-fp32/*") + "/onnx-fp32"
for name in ("hf-hub:ORG/small", "hf-hub:ORG/bundle", bundle):
    model = load(name)
    found[f"{name} texts"], found[f"{name} images"] = model.embed_texts(texts), model.embed_images([image])
model, preprocess = open_clip.create_model_from_pretrained("hf-hub:ORG/small")
tokenize = open_clip.get_tokenizer("hf-hub:ORG/small")
with torch.no_grad():
    from PIL import Image
    found["open_clip texts"] = model.eval().encode_text(tokenize(texts), normalize=True).numpy()
    pixels = preprocess(Image.open(image).convert("RGB"))[None]
    found["open_clip images"] = model.encode_image(pixels, normalize=True).numpy()
np.savez(out, **found)
"""


def test_a_pushed_model_is_loaded_by_its_name_with_the_same_embeddings(run: Path, hub: Hub, tmp_path: Path) -> None:
    command = ("-m", "dcclip_cli", "push")
    dry = python(hub, tmp_path, *command, str(run), "ORG/small", "--license", "mit")
    assert hub.asked == [] and "dry run: nothing was sent" in dry.stderr
    assert "onnx-fp32/image.onnx" in dry.stdout and "license: mit" in dry.stdout and "8 files" not in dry.stdout
    pushed = python(hub, tmp_path, *command, str(run), "ORG/small", "--license", "mit", "--yes")
    assert pushed.stdout == f"{hub.url}/ORG/small\n" and "hf_writes" not in pushed.stderr
    bundle = [str(run / "export"), "ORG/bundle", "--license", "mit", "--private"]
    python(hub, tmp_path, *command, *bundle, "--yes")
    assert (hub.branch("ORG/bundle").parent / "visibility").read_text() == "private"
    with pytest.raises(DcclipError, match="ORG/small exists and is public") as caught:
        push(plan_push(resolve(str(run / "export")), "ORG/small", "mit"), private=True, overwrite=True)
    assert "omit --private" in caught.value.hint
    assert "if it exists and is public" in python(hub, tmp_path, *command, *bundle).stderr
    again = python(hub, tmp_path, *command, str(run), "ORG/small", "--license", "mit", "--yes")
    assert "0 files uploaded" in again.stderr and sum("/commit/" in request for request in hub.asked) == 2

    picture = "docs/images/cat.png"
    hub.asked.clear()
    python(hub, tmp_path, "-c", _LOAD, json.dumps(TEXTS), picture, str(tmp_path / "found.npz"))
    assert hub.asked.count("GET /api/models/ORG/small/revision/main") == 2, hub.asked  # with that of the bundle
    local = load(str(run / "align" / "model"))
    expected = {"texts": local.embed_texts(TEXTS), "images": local.embed_images([picture])}
    arrays = np.load(tmp_path / "found.npz")
    assert len(arrays) == 8
    for name in arrays:
        np.testing.assert_allclose(arrays[name], expected[name.split()[-1]], atol=2e-6, err_msg=name)
    # The model of this repository is dcclip's directory, checksums and all.
    repository = hub.branch("ORG/small")
    config = json.loads((repository / "open_clip_config.json").read_text())
    assert config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "ORG/small"


def test_the_card_names_licenses_sources_rules_results_and_the_teacher(run: Path) -> None:
    plan = plan_push(resolve(str(run), trained=True), "ORG/small", "apache-2.0")
    card = ModelCard(plan.card)
    data = card.data.to_dict()
    assert (data["license"], data["base_model"], data["library_name"]) == ("apache-2.0", "BAAI/AltCLIP", "open_clip")
    assert data["language"] == ["zh", "en"] and data["tags"] == ["clip", "dcclip", "onnx"]
    [entry] = data["model-index"][0]["results"]
    assert entry["dataset"]["name"] == "dtd-cn" and entry["metrics"][0]["value"] == 75.0
    assert "| drawn | table | CC0 | 40 | 40 |" in card.text and "Captions kept: 115 in zh, 120 in en" in card.text
    assert re.search(r"^\| Too few characters .* \| 0 \| 5 \|$", card.text, re.M)  # 圆, of five pairs
    assert "| dtd-cn | zh | top-1, % | 75.00 |" in card.text and "hf-hub:ORG/small" in card.text
    assert str(run.parent) not in plan.card and plan.notes == ()


def test_the_card_lists_no_data_of_another_project(
    run: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {"kind": "table", "path": str(pairs_file), "name": "别人的"}
    collect(CollectOptions.model_validate({"sources": [source]}), tmp_path / "collect")
    shutil.copytree(tmp_path / "collect", tmp_path / "数据")
    copy = Path(shutil.copytree(run, tmp_path / "runs" / "a"))
    for train in ("collect", "数据"):
        (copy / "resolved.yaml").write_text(yaml.safe_dump({"data": {"train": train}}), "utf-8")
        for folder, names in ((tmp_path, ["drawn", "别人的"]), (copy, ["drawn"]), (tmp_path / "collect", ["drawn"])):
            monkeypatch.chdir(folder)
            card = plan_push(resolve(str(copy), trained=True), "ORG/small", "mit").card
            listed = re.findall(r"^\| (\S+) \| table ", card, re.M)
            assert listed == (names if train == "数据" else ["drawn"])


def test_what_the_author_wrote_in_the_card_stays(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run / "align" / "model", tmp_path / "model"))
    text = (folder / "README.md").read_text("utf-8").replace("language:", "license: mit\ntags: [鸟]\nlanguage:")
    (folder / "README.md").write_text(f"{text}\n## Training data\n\n自己拍的照片。\n", "utf-8")
    plan = plan_push(resolve(str(folder), trained=True), "ORG/small", data=[run / "collect"])
    card = ModelCard(plan.card)
    assert card.data.to_dict()["license"] == "mit" and card.data.to_dict()["tags"] == ["鸟", "clip", "dcclip"]
    assert "自己拍的照片。" in card.text and "| drawn |" not in card.text
    assert plan_push(resolve(str(folder), trained=True), "ORG/small", "mit").notes == (
        "the card: it has no results: evaluate with a recipe (dcclip eval RECIPE), and push again",
    )


def test_no_license_a_foreign_bundle_and_a_damaged_model_are_refused(run: Path, tmp_path: Path) -> None:
    model = resolve(str(run), trained=True)
    with pytest.raises(DcclipError, match="no license given for ORG/small; that of its data: CC0") as caught:
        plan_push(model, "ORG/small")
    assert "--license apache-2.0" in caught.value.hint
    with pytest.raises(DcclipError, match=r"'evil: \[x\\n' is not a hub license id"):
        plan_push(model, "ORG/small", "evil: [x\n")
    with pytest.raises(DcclipError, match="small is not a repository name"):
        plan_push(model, "small", "mit")
    with pytest.raises(DcclipError, match="openai is already a hub model"):
        plan_push(resolve("open_clip:ViT-B-32/openai"), "ORG/small", "mit")
    folder = Path(shutil.copytree(run / "align" / "model", tmp_path / "model"))
    weights = bytearray((folder / "open_clip_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "open_clip_model.safetensors").write_bytes(weights)
    with pytest.raises(DcclipError, match=r"open_clip_model\.safetensors is damaged or was changed"):
        plan_push(resolve(str(folder), trained=True), "ORG/small", "mit")
    starter = resolve("starter").path
    with pytest.raises(DcclipError, match="is not an export of the current model"):
        plan_push(model, "ORG/small", "mit", bundles=[starter])


def test_files_of_a_repository_change_only_where_the_user_says_so(run: Path, hub: Hub) -> None:
    first = plan_push(resolve(str(run), trained=True), "ORG/small", "mit")
    assert push(first).changed == len(first.files)
    main = hub.branch("ORG/small")
    (main / "LICENSE").write_text("of another hand")
    changes = {"README.md": first.card.encode() + "\n改了\n".encode(), "新.txt": b"new"}
    second = PushPlan(first.repository, {**first.files, **changes}, first.notes)
    with pytest.raises(
        DcclipError, match=r"ORG/small exists, and 1 of its files would be replaced: README\.md"
    ) as caught:
        push(second)
    assert "--overwrite" in caught.value.hint and "改了" not in (main / "README.md").read_text("utf-8")
    pushed = push(second, pull_request=True)
    assert pushed.url == f"{hub.url}/ORG/small/discussions/1" and pushed.changed == 2
    assert "改了" not in (main / "README.md").read_text("utf-8")
    assert "改了" in (main.parent / "refs_pr_1" / "README.md").read_text("utf-8")
    assert push(second, overwrite=True).changed == 2
    assert "改了" in (main / "README.md").read_text("utf-8")
    assert (main / "LICENSE").read_text() == "of another hand" and (main / "新.txt").is_file()


def test_an_upload_that_broke_goes_on_with_what_is_not_there(run: Path, hub: Hub) -> None:
    plan = plan_push(resolve(str(run), trained=True), "ORG/small", "mit")
    hub.faults = [("PUT /lfs/", 413, "Payload too large")]
    with pytest.raises(
        DcclipError, match=r"rejected the upload: HTTP 413: Error while uploading '[\w./-]+'.*Payload too large"
    ):
        push(plan)
    large = sum(request.startswith("PUT") for request in hub.asked)
    hub.asked.clear()
    assert push(plan).changed == len(plan.files)
    assert sum(request.startswith("PUT") for request in hub.asked) == 1 < large


_COMMIT = "POST /api/models/ORG/small/commit"


@pytest.mark.parametrize(
    ("token", "fault", "options", "what", "hint"),
    [
        ("", None, {}, r"rejected the upload: HTTP 401: Invalid username", "hf auth login"),
        ("hf_reads", None, {}, r"rejected the upload: HTTP 403: You don't have the rights", "that may write"),
        ("hf_writes", None, {"pull_request": True}, r"rejected the upload: HTTP 404", "an existing repository"),
        (
            "hf_writes",
            (_COMMIT, 412, "since"),
            {},
            r"rejected the upload: HTTP 412: since",
            "run the same command again",
        ),
        ("hf_writes", (_COMMIT, 500, "oops"), {}, r"rejected the upload: HTTP 500: oops", "run the same command again"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence_with_a_hint(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str, fault: Any, options: Any, what: str, hint: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    hub.faults = [fault] if fault else []
    with pytest.raises(DcclipError, match=f"ORG/small: .*{what}") as caught:
        push(plan_push(resolve(str(run), trained=True), "ORG/small", "mit"), **options)
    assert hint in caught.value.hint and "\n" not in caught.value.what and "hf_w" not in str(caught.value)
