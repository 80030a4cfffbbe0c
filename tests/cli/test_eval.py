"""`dcclip eval` and `dcclip datasets` as they are typed."""

import json
from pathlib import Path

import numpy as np
import pytest

from dcclip_cli.data.pair import Pair
from dcclip_cli.eval.registry import KnownSet
from dcclip_cli.eval.result import unpack
from dcclip_cli.model.reference import resolve
from dcclip_cli.predict.encoder import load_encoder
from tests.cli.conftest import dcclip
from tests.eval import layouts
from tests.eval.conftest import small

__all__ = ["small"]  # a fixture


@pytest.fixture
def imagenet(tmp_path: Path, small: dict[str, KnownSet], pairs: list[Pair]) -> Path:
    """A root with `imagenet`: a drawn image in each of its thousand class folders."""
    for number in range(1000):
        layouts.write(tmp_path / f"data/imagenet/val/alpha_{number}/x.JPEG", pairs[number % 40].image)
    return tmp_path / "data"


def test_imagenet_cn_on_class_folders_equals_an_independent_computation(
    imagenet: Path, model_folder: Path, tmp_path: Path, pairs: list[Pair]
) -> None:
    import open_clip
    import torch

    from dcclip_cli.data import prompts
    from dcclip_cli.model.preprocess import decode

    names = [f"{pairs[number % 40].zh[0]}和{pairs[number // 40].zh[0]}" for number in range(1000)]
    file = prompts.FOLDER / "imagenet.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text("utf-8")), "zh": {"names": names, "templates": ["一张{}", "{}"]}})
    )
    prompts.read.cache_clear()
    out = tmp_path / "out"
    shown = dcclip("eval", "--dataset", "imagenet-cn", "--data-root", str(imagenet), "--model", str(model_folder),
                   "--out", str(out), "--quiet", "--device", "cpu")  # fmt: skip
    [found] = json.loads((out / "imagenet-cn.json").read_text("utf-8"))

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{model_folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{model_folder}")
    head = open_clip.build_zero_shot_classifier(
        model.eval(), tokenizer, names, [lambda name: f"一张{name}", lambda name: name], num_classes_per_batch=100
    )
    with torch.no_grad():
        images = model.encode_image(torch.stack([transform(decode(pair.image)) for pair in pairs]), normalize=True)
    logits = images.repeat(25, 1) @ head
    assert unpack(found["details"]["predictions"], "").tolist() == logits.argmax(1).tolist()
    assert (found["n"], found["classes"], found["language"], found["split"]) == (1000, 1000, "zh", "val")
    assert f"{found['value']:.1%}" in shown.stdout and "imagenet-cn zh" in shown.stdout
    assert sorted(file.name for file in out.iterdir()) == [
        "bars.svg", "imagenet-cn.json", "report.html", "summary.json", "table.csv", "table.md", "table.tex",
    ]  # fmt: skip


def test_results_are_written_in_another_format_without_measuring_again(
    imagenet: Path, model_folder: Path, tmp_path: Path
) -> None:
    shared = ["eval", "--data-root", str(imagenet), "--model", str(model_folder), "--quiet"]
    measured = dcclip(*shared, "--dataset", "imagenet-cn", "--out", str(tmp_path / "a"))
    again = ["eval", "--results", str(tmp_path / "a"), "--format", "hub"]
    shown = dcclip(*again, "--out", str(tmp_path / "b"), "--owner", "o")
    assert shown.stdout == measured.stdout and "hf upload o/imagenet-family-zh" in shown.stderr
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["hub"]
    assert len(list((tmp_path / "b/hub").glob("models/*/.eval_results/imagenet-family-zh.yaml"))) == 1
    assert "--results needs --out DIR" in dcclip(*again, expect=2).stderr
    assert "error: --format hub needs a name" in dcclip(*again, "--out", str(tmp_path / "c"), expect=1).stderr
    before = [*shared, "--format", "hub", "--out", str(tmp_path / "c"), "--dataset"]
    assert "error: --format hub needs a name" in dcclip(*before, "imagenet-cn", expect=1).stderr
    owned = [*before[:-1], "--owner", "o", "--dataset"]
    assert "hint:  omit --limit" in dcclip(*owned, "imagenet-cn", "--limit", "9", expect=1).stderr
    assert "measure one, such as imagenet-cn" in dcclip(*owned, "我的.parquet", expect=1).stderr


def test_compare_tells_differences_and_refuses_unlike_prompts(
    imagenet: Path, model_folder: Path, tmp_path: Path
) -> None:
    shared = ["eval", "--data-root", str(imagenet), "--model", str(model_folder), "--quiet", "--limit", "60"]
    dcclip(*shared, "--dataset", "imagenet", "--out", str(tmp_path / "a"))
    dcclip(*shared, "--dataset", "imagenet", "--out", str(tmp_path / "b"), "--templates", "name")
    files = str(tmp_path / "a/imagenet.json"), str(tmp_path / "b/imagenet.json")
    refused = dcclip("compare", *files, expect=1)
    assert "error: imagenet en: the prompts differ" in refused.stderr and "--force" in refused.stderr
    forced = dcclip("compare", *files, "--force")
    assert "95 % interval" in forced.stdout and "imagenet en" in forced.stdout
    same = json.loads(dcclip("compare", files[0], files[0], "--json").stdout)
    assert same[0]["difference"] == same[0]["low"] == same[0]["high"] == 0 and same[0]["paired"]


def test_a_group_without_data_says_which_set_is_missing(imagenet: Path, model_folder: Path) -> None:
    shared = ["eval", "--data-root", str(imagenet), "--model", str(model_folder)]
    refused = dcclip(*shared, "--dataset", "imagenet-family-cn", expect=1)
    assert "error: data set imagenet-v2 needs its images" in refused.stderr
    assert refused.stderr.count("\n") == 3 and "hint:  give --data-root DIR" in refused.stderr


def test_probes_by_shots(tmp_path: Path, small: dict[str, KnownSet], model_folder: Path, pairs: list[Pair]) -> None:
    for number in range(10):
        layouts.write(tmp_path / f"mnist/test/alpha_{number}/1.png", pairs[number].image)
        layouts.write(tmp_path / f"mnist/train/alpha_{number}/1.png", pairs[number].image)
    shared = ["eval", "--dataset", "mnist", "--data-root", str(tmp_path), "--model", str(model_folder)]
    shown = dcclip(*shared, "--task", "probe", "--shots", "1，all")
    assert "mnist en (linear probe, 1 shots)" in shown.stdout and "mnist en (linear probe)" in shown.stdout
    assert "eval.shots.0: expected a whole number" in dcclip(*shared, "--shots", "few", expect=1).stderr


@pytest.mark.parametrize("folder", ["test", "train"])
def test_an_image_that_cannot_be_read_ends_eval_with_1_unless_a_part_is_accepted(
    folder: str, tmp_path: Path, small: dict[str, KnownSet], model_folder: Path, pairs: list[Pair]
) -> None:
    for number in range(10):
        layouts.write(tmp_path / f"mnist/test/alpha_{number}/1.png", pairs[number].image)
        layouts.write(tmp_path / f"mnist/train/alpha_{number}/1.png", pairs[number].image)
    layouts.write(tmp_path / f"mnist/{folder}/alpha_3/1.png", pairs[3].image[:40])
    shared = ["eval", "--dataset", "mnist", "--data-root", str(tmp_path), "--model", str(model_folder), "--quiet"]
    shared += ["--task", "probe", "--shots", "1"] if folder == "train" else []
    refused = dcclip(*shared, "--out", str(tmp_path / "out"), expect=1)
    title, error = refused.stdout.splitlines()[0], "error: the results lack 1 images that cannot be read: "
    assert title.endswith("(without 1 images that cannot be read)")
    assert refused.stderr.startswith(f"{error}mnist: {'train ' * (folder == 'train')}alpha_3/1.png (")
    assert "--partial all" in refused.stderr
    [written] = json.loads((tmp_path / "out/mnist.json").read_text("utf-8"))
    assert len(written["corrupt"]) == 1
    accepted = dcclip(*shared, "--partial", "all")
    assert accepted.stdout == refused.stdout and accepted.stderr == ""


def test_a_model_of_other_makers_with_code_of_its_own_is_measured_in_both_languages(
    hub_teachers: Path, pairs_file: Path, own_modules: Path
) -> None:
    model = f"hf:{hub_teachers / 'fgclip2'}"
    shared = ["eval", "--model", model, "--dataset", str(pairs_file), "--json", "--device", "cpu"]
    shown = dcclip(*shared, "--trust-remote-code")
    found = {one["language"]: one for one in json.loads(shown.stdout)}
    assert "running code of" in shown.stderr and found.keys() == {"zh", "en"}
    budgets = {"as_in": "fgclip2", "max_num_patches": [128, 256, 576, 784, 1024]}
    assert found["zh"]["preprocessing"] == budgets


@pytest.mark.parametrize(("layout", "length"), [("chineseclip", 52), ("metaclip2", 77), ("metaclip2-mt5", 64)])
def test_a_model_of_other_makers_embeds_texts_as_its_card_says(
    layout: str, length: int, hub_teachers: Path, pairs: list[Pair]
) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder, texts = hub_teachers / layout, [text for pair in pairs for text in (pair.zh[0], pair.en[0])]
    more = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    tokens = AutoTokenizer.from_pretrained(folder)(texts, **more)
    with torch.no_grad():
        found = AutoModel.from_pretrained(folder).eval().get_text_features(**tokens).pooler_output
    expected = torch.nn.functional.normalize(found).numpy()
    np.testing.assert_allclose(load_encoder(resolve(f"hf:{folder}"), "cpu").encode_texts(texts), expected, atol=1e-5)


def test_data_sets_are_listed_and_found(imagenet: Path, small: dict[str, KnownSet]) -> None:
    listed = dcclip("datasets").stdout
    assert "kitti-distance, kitti-distance-cn" in listed and "no centre crop" in listed
    assert "groups: elevater, elevater-cn" in listed
    found = {line.split(",")[0]: line for line in dcclip("datasets", "--data-root", str(imagenet)).stdout.splitlines()}
    assert "SPLIT/CLASS/*.jpg" in found["imagenet"] and "SPLIT" not in found["dtd"]
