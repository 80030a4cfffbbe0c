"""Resolution of a model by path, hub name, environment or not at all."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

import dcclip_cli
from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.files import file_sha256
from dcclip_cli.core.hub import modelscope_folder
from dcclip_cli.inference.encoder import load_encoder
from dcclip_cli.model.reference import ModelSource, resolve
from dcclip_cli.model.teachers import TransformersTeacher
from tests.cli.conftest import dcclip


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
    folder = model(tmp_path / "模型")
    onnx = bundle(tmp_path / "bundle")
    assert resolve("模型") == ModelSource("folder", str(folder), "模型")
    assert resolve(str(onnx)) == ModelSource("bundle", str(onnx), f"bundle {onnx}")
    assert resolve("模型").path == folder


@pytest.mark.parametrize("stages", [["distill"], ["distill", "align"], ["distill", "align", "export"]])
def test_a_run_directory_means_its_furthest_finished_stage(stages: list[str]) -> None:
    for stage in stages:
        folder = bundle(Path("runs/a/export")) if stage == "export" else model(Path("runs/a") / stage / "model")
    source = resolve("runs/a")
    assert (source.kind, source.path) == ("bundle" if stages[-1] == "export" else "folder", folder)


def test_without_a_reference_the_environment_decides_or_the_starter_whose_line_names_the_newest_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starter = Path(dcclip_cli.__file__).parent / "starter"
    assert resolve() == ModelSource("bundle", str(starter), "starter, included in dcclip")
    model(Path("runs/older/align/model"), mtime=1_000)
    newest = bundle(Path("runs/newer/export"), mtime=2_000)
    model(Path("runs/oldest/distill/model"), mtime=500)
    Path("runs/unfinished/distill/state").mkdir(parents=True)
    source = resolve()
    assert (source.kind, source.path) == ("bundle", starter)
    assert source.description.endswith("in dcclip; use the newest run with --model runs/newer")
    folder = model(Path("elsewhere"))
    monkeypatch.setenv("DCCLIP_MODEL", "elsewhere")
    assert resolve() == ModelSource("folder", str(folder), "elsewhere ($DCCLIP_MODEL)")
    assert resolve("runs/newer").path == resolve("runs/newer", trained=True).path == newest
    trained = model(Path("runs/newer/align/model"))
    assert resolve("runs/newer").path == newest and resolve("runs/newer", trained=True).path == trained
    assert resolve("runs/newer/export", trained=True).path == newest


@pytest.mark.parametrize(
    ("reference", "what", "hint"),
    [
        *((name, f"model {name} is not a directory", "hf:ORG/NAME, open_clip:ARCH/TAG, hf-hub:ORG/NAME, ms:ORG/NAME or")
          for name in ("nowhere", "hf:", "BAAI/AltCLIP", "model.onnx", "猫")),
        *((name, f"model {name} is neither a directory nor the name of a hub model",
           f"write {name.partition(':')[0]}:ORG")
          for name in ("hf:猫 a", "hf-hub:/nowhere", "ms:../x")),
        ("runs/unfinished", "export bundle or finished run (found: align)", "dcclip run"),
    ],
)  # fmt: skip
def test_what_is_not_a_model_is_named_with_the_alternatives(reference: str, what: str, hint: str) -> None:
    Path("model.onnx").touch()
    Path("runs/unfinished/align/state").mkdir(parents=True)
    with pytest.raises(DcclipError) as raised:
        resolve(reference)
    assert raised.value.what.endswith(what) and reference in raised.value.what and hint in raised.value.hint


# ---- ModelScope, by its own client against its HTTP interface on a socket here


class ModelScope(BaseHTTPRequestHandler):
    """`repo/files` lists the files of a revision, `repo?FilePath=` is one: of the folder ROOT/REVISION."""

    root: Path

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        target = urlsplit(self.path)
        query = dict(parse_qsl(urlsplit(self.path).query))
        folder = self.root / query.get("Revision", "none")
        status = 404
        content = json.dumps({"Code": 404, "Message": "not found", "Success": False}).encode()
        if target.path == "/api/v1/models/org/tiny/repo/files" and folder.is_dir():
            files = [
                {"Path": file.name, "Type": "blob", "Size": file.stat().st_size, "Sha256": file_sha256(file)}
                for file in folder.iterdir()
            ]
            files.append({"Path": "../../../led-out.json", "Type": "blob", "Size": 2, "Sha256": None})
            status = 200
            content = json.dumps({"Code": 200, "Success": True, "Data": {"Files": files}}).encode()
        elif target.path == "/api/v1/models/org/tiny/repo":
            file = folder / query["FilePath"]
            status = 200
            content = file.read_bytes() if file.is_file() else b"{}"
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_HEAD = do_GET


@pytest.fixture
def modelscope(hub_teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the client's cache; the server has the tiny SigLIP2 as `master` and v2, AltCLIP as xlm-r."""
    from huggingface_hub import constants

    modelscope_folder.cache_clear()
    for revision, model in (("master", "siglip2"), ("v2", "siglip2"), ("xlm-r", "altclip")):
        shutil.copytree(hub_teachers / model, tmp_path / "served" / revision)
    (tmp_path / "served/v2/README.md").write_text("of v2")
    handler = type("Handler", (ModelScope,), {"root": tmp_path / "served"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("modelscope_hub.config._default_config", None)  # which reads that once
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield tmp_path / "cache"
    server.shutdown()
    server.server_close()


def test_a_model_of_modelscope_is_downloaded_into_its_own_cache_and_found_there_offline(
    modelscope: Path, hub_teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    source = resolve("ms:org/tiny")
    assert source.kind == "hf" and source.path == modelscope / "models/org--tiny/snapshots/master"
    encoder, peer = (load_encoder(ref, "cpu") for ref in (source, resolve(f"hf:{hub_teachers / 'siglip2'}")))
    assert encoder.name == "tiny" and encoder.fingerprint == peer.fingerprint
    assert (resolve("ms:org/tiny@v2").path / "README.md").read_text() == "of v2"
    assert not list(tmp_path.rglob("led-out.json"))
    with pytest.raises(DcclipError, match=r"ms:org/other cannot be loaded: .*(not found|404)"):
        resolve("ms:org/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    assert resolve("ms:org/tiny").path == source.path
    with pytest.raises(DcclipError, match=r"ms:org/tiny@v3 cannot be loaded: .*v3") as raised:
        resolve("ms:org/tiny@v3")
    assert "HF_HUB_OFFLINE" in raised.value.hint


def test_a_recipes_teacher_may_be_a_model_of_modelscope(
    modelscope: Path,
    hub_teachers: Path,
    pairs_file: Path,
    student_section: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    from dcclip_cli.recipe.run import teacher_reference

    student_section["text"]["vocabulary"] = {"from": "teacher", "size": 300}
    stage = {"batch_size": 8, "steps": 2, "warmup_steps": 0, "workers": 0, "threads": 1}
    recipe = {
        "name": "老师",
        "teacher": {"kind": "transformers", "model": "ms:org/tiny@xlm-r"},
        "student": student_section,
        "data": {"train": str(pairs_file)},
        "distill": stage,
    }
    Path("a.yaml").write_text(json.dumps(recipe), "utf-8")
    checked = ("run", "a.yaml", "--check")
    shown = dcclip(*checked, "--set", "teacher.model=ms:org/../tiny", expect=1).stderr
    assert "ms:org/../tiny is neither a directory nor the name of a hub model" in shown and "write ms:ORG/NAME" in shown
    dcclip(*checked)
    dcclip("run", "a.yaml", "-q")
    record = json.loads(Path("runs/老师/distill/model/dcclip.json").read_text("utf-8"))
    assert record["teacher"]["name"] == "tiny@xlm-r"
    assert not any(str(modelscope) in file.read_text("utf-8") for file in Path("runs").rglob("*.yaml"))
    folder = dcclip("new", "b.yaml", "--yes", "--data", pairs_file, "--teacher", "ms:org/tiny")
    assert 'model: "ms:org/tiny"' in Path("b.yaml").read_text("utf-8"), folder.output
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    modelscope_folder.cache_clear()
    dcclip(*checked)
    peer = TransformersTeacher(model=str(hub_teachers / "altclip"), precision="fp32").load()
    teacher = TransformersTeacher(model="ms:org/tiny@xlm-r", precision="fp32")
    assert teacher.load().fingerprint == peer.fingerprint
    assert teacher_reference(teacher).path == modelscope / "models/org--tiny/snapshots/xlm-r"


def test_a_model_of_modelscope_without_its_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    shown = dcclip("predict", "a.png", "--labels", "猫,dog", "--model", "ms:org/new", expect=1).stderr
    assert "error: the command needs the package modelscope_hub" in shown and "dcclip[modelscope]" in shown
