"""`dcclip doctor`: the page, its JSON, and machines on which things are missing, slow or unknown."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from dcclip_cli import __version__
from dcclip_cli.cli import about as diagnosis
from dcclip_cli.cli.app import app


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch is not looked for in this process, for speed."""
    monkeypatch.setattr(diagnosis, "_torch", lambda notes: None)


def test_json_is_one_object_whose_keys_are_the_same_on_every_machine() -> None:
    facts = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert list(facts) == [
        *("versions", "system", "onnxruntime", "int8_vnni", "variables", "model"),
        *("processor", "storage", "torch", "extras", "notes"),
    ]
    assert facts["versions"]["dcclip"] == __version__ and facts["versions"]["python"].startswith("3.")
    assert facts["versions"]["torch"] and facts["torch"]["device"] in ("cpu", "cuda", "mps")
    assert facts["processor"]["cores"] >= 1 and facts["processor"]["class"] in ("fast", "plain", "other")
    assert facts["storage"]["free_here_bytes"] > 0
    assert "CPU" in facts["onnxruntime"]
    assert {facts["extras"][name] for name in ("train", "collect", "eval", "export", "heic", "serve")} == {"installed"}
    assert facts["model"].startswith("starter")
    is_installed = importlib.util.find_spec("pillow_jxl") is not None
    assert facts["extras"]["jxl"] == "installed" if is_installed else "pip install" in facts["extras"]["jxl"]
    assert {facts["torch"][use].split()[0] for use in ("inference", "training")} <= {"fp32", "bf16"}


def test_without_the_train_extra_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "timm", "duckdb"):
        monkeypatch.setitem(sys.modules, name, None)
    lines = [line.split(maxsplit=1) for line in CliRunner().invoke(app, ["doctor"]).stdout.splitlines()]
    assert ["train", "pip install 'dcclip[train]' (missing: timm, torch)"] in lines
    assert ["collect", "pip install 'dcclip[collect]' (missing: duckdb)"] in lines
    assert not any(line[0] in ("GPU", "inference") for line in lines)


@pytest.mark.usefixtures("no_torch")
def test_no_user_name_and_no_secret_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "小明 jane"
    (home / "cache" / "features" / "model").mkdir(parents=True)
    (home / "cache" / "features" / "model" / "image.npy").write_bytes(bytes(1500))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv("DCCLIP_CACHE", str(home / "cache"))
    monkeypatch.setenv("DCCLIP_MODEL", str(home / "nowhere"))
    monkeypatch.setenv("HF_ENDPOINT", "https://jane:密码p4ss@hub.example.cn")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for arguments in (["doctor"], ["doctor", "--json"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0
        assert not any(word in result.stdout for word in ("jane", "小明", "p4ss", "hf_secret"))
        assert "https://hub.example.cn" in result.stdout
    facts = diagnosis.diagnose()
    assert facts["storage"]["cache_folder"] == "~/cache" and facts["storage"]["cached_bytes"]["features"] == 1500
    assert facts["notes"]["model"].startswith("model ~/nowhere is not a directory: ")
    monkeypatch.setenv("DCCLIP_MODEL", f"{home}s/elsewhere")
    assert diagnosis.diagnose()["variables"]["DCCLIP_MODEL"] == f"{home}s/elsewhere"


def test_gpus_are_listed_and_decide_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    properties = SimpleNamespace(name="NVIDIA T4", total_memory=16_000_000_000, major=7, minor=5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", lambda number: __import__("contextlib").nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    page = CliRunner().invoke(app, ["doctor"]).stdout
    assert "  GPU            NVIDIA T4, 16.0 GB, capability 7.5, no bf16\n" in page
    assert "  newton_schulz  fp32\n" in page
    assert "  inference      fp16 (no native bf16 on this GPU)\n" in page
    assert "  training       fp16 (no native bf16 on this GPU)\n" in page

    def broken(number: int) -> Any:
        raise RuntimeError("CUDA error: device is busy\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)
    facts = diagnosis.diagnose()
    assert facts["notes"]["GPU"] == "CUDA error: device is busy" and facts["torch"]["GPU"] == []
