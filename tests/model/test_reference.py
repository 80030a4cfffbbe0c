"""Resolution of a model by path, hub name, environment or not at all."""

import os
from functools import partial
from pathlib import Path

import pytest

import dcclip_cli
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.reference import ModelReference, resolve


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def model(folder: Path, mtime: float | None = None, file: str = "open_clip_config.json") -> Path:
    folder.mkdir(parents=True)
    (folder / file).write_text("{}")
    if mtime is not None:
        os.utime(folder, (mtime, mtime))
    return folder.resolve()


bundle = partial(model, file="image.onnx")


def test_a_model_directory_and_a_bundle_are_taken_as_they_are(tmp_path: Path) -> None:
    folder, onnx = model(tmp_path / "模型"), bundle(tmp_path / "bundle")
    assert resolve("模型") == ModelReference("folder", str(folder), "model: 模型")
    assert resolve(str(onnx)) == ModelReference("bundle", str(onnx), f"model: bundle {onnx}")
    assert resolve("模型").path == folder


@pytest.mark.parametrize("stages", [["distill"], ["distill", "align"], ["distill", "align", "export"]])
def test_a_run_directory_means_its_furthest_finished_stage(stages: list[str]) -> None:
    for stage in stages:
        made = bundle(Path("runs/a/export")) if stage == "export" else model(Path("runs/a") / stage / "model")
    found = resolve("runs/a")
    assert (found.kind, found.path) == ("bundle" if stages[-1] == "export" else "folder", made)


@pytest.mark.parametrize(
    ("reference", "kind", "target"),
    [
        ("hf:BAAI/AltCLIP", "hf", "BAAI/AltCLIP"),
        ("hf:OFA-Sys/chinese-clip-vit-base-patch16", "hf", "OFA-Sys/chinese-clip-vit-base-patch16"),
        ("open_clip:ViT-B-32/openai", "open_clip", "ViT-B-32/openai"),
        ("hf-hub:timm/ViT-B-16-SigLIP", "open_clip", "hf-hub:timm/ViT-B-16-SigLIP"),
    ],
)
def test_a_hub_name_says_which_library_reads_it(reference: str, kind: str, target: str) -> None:
    found = resolve(reference)
    assert (found.kind, found.target) == (kind, target)
    assert target in found.description


def test_without_a_reference_the_environment_decides_or_the_starter_whose_line_names_the_newest_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starter = Path(dcclip_cli.__file__).parent / "starter"
    assert resolve() == ModelReference("bundle", str(starter), "model: starter, which comes with dcclip")
    model(Path("runs/older/align/model"), mtime=1_000)
    newest = bundle(Path("runs/newer/export"), mtime=2_000)
    model(Path("runs/oldest/distill/model"), mtime=500)
    Path("runs/unfinished/distill/state").mkdir(parents=True)
    found = resolve()
    assert (found.kind, found.path) == ("bundle", starter)
    assert found.description.endswith("with dcclip; the newest run is used with --model runs/newer")
    folder = model(Path("elsewhere"))
    monkeypatch.setenv("DCCLIP_MODEL", "elsewhere")
    assert resolve() == ModelReference("folder", str(folder), "model: elsewhere ($DCCLIP_MODEL)")
    assert resolve("runs/newer").path == newest


def test_the_starter_model_is_found_by_name() -> None:
    bundle(Path("starter"))
    model(Path("runs/a/align/model"))
    said = "model: starter, which comes with dcclip, not the folder here, which is ./starter"
    assert resolve("starter").description == said
    assert resolve("./starter").path == Path("starter").resolve()


@pytest.mark.parametrize("reference", ["nowhere", "hf:", "BAAI/AltCLIP", "model.onnx", "猫", "runs/unfinished"])
def test_what_is_not_a_model_is_named_with_the_alternatives(reference: str) -> None:
    Path("model.onnx").touch()
    Path("runs/unfinished/align/state").mkdir(parents=True)
    with pytest.raises(DcclipError, match=r"is not a directory|is neither a directory|is no model directory") as raised:
        resolve(reference)
    assert reference in raised.value.what
    assert ("dcclip run" if reference == "runs/unfinished" else "hf:ORG/NAME") in raised.value.hint
