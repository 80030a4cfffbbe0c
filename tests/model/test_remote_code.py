"""Code in a model's repository: it runs only where the user allows it, and nothing but that repository's own."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.progress import Lines
from dcclip_cli.inference.encoder import load_encoder
from dcclip_cli.model.reference import resolve
from dcclip_cli.model.teachers import FgClip2Teacher, TransformersTeacher
from dcclip_cli.recipe.run import teacher_reference


@pytest.fixture
def folder(hub_teachers: Path, tmp_path: Path, own_modules: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of tiny FG-CLIP2 whose code writes a line to the file `ran` next to it."""
    monkeypatch.setenv("FGCLIP2_MARKER", str(tmp_path / "ran"))
    return Path(shutil.copytree(hub_teachers / "fgclip2", tmp_path / "模型"))


def allowed(folder: Path, **more: Any) -> Any:
    return FgClip2Teacher(model=str(folder), precision="fp32", trust_remote_code=True).load(**more)


def test_nothing_runs_without_leave_and_the_error_says_what_would(folder: Path) -> None:
    for load in (
        lambda: TransformersTeacher(model=str(folder)).load(),
        lambda: FgClip2Teacher(model=str(folder)).load(),
        lambda: FgClip2Teacher(model=str(folder)).source.blank(),
        lambda: load_encoder(resolve(str(folder)), "cpu"),
    ):
        with pytest.raises(
            DcclipError, match=r"custom code \(configuration_fgclip2\.py, modeling_fgclip2\.py\)"
        ) as raised:
            load()
        assert "then add --trust-remote-code" in raised.value.hint
        assert "trust_remote_code: true" in raised.value.hint
    assert not (folder.parent / "ran").exists()
    teachers = [FgClip2Teacher(model=str(folder), trust_remote_code=leave) for leave in (False, True)]
    assert [teacher_reference(teacher).trust_remote_code for teacher in teachers] == [False, True]
    lines: list[str] = []
    allowed(folder, progress=Lines(lines.append))
    assert (folder.parent / "ran").read_text() == "ran\n"
    [line] = lines
    assert line.startswith(f"running code of {folder} (sha256 ")
    assert line.endswith("): configuration_fgclip2.py, modeling_fgclip2.py")


def test_code_of_a_repository_runs_from_the_hubs_cache_at_the_revision_that_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    revision = "430fbc8a912c86fd4de601381b6245a0edab22f0"
    cached = tmp_path / "hub" / "models--qihoo360--fg-clip2-base"
    shutil.copytree(folder, cached / "snapshots" / revision)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    lines: list[str] = []
    towers = FgClip2Teacher(precision="fp32", trust_remote_code=True).load(progress=Lines(lines.append))
    assert lines == [
        f"running code of qihoo360/fg-clip2-base (revision {revision}): configuration_fgclip2.py, modeling_fgclip2.py"
    ]
    assert towers.fingerprint == allowed(folder).fingerprint


def test_other_code_is_another_fingerprint(folder: Path) -> None:
    before = allowed(folder).fingerprint
    with (folder / "modeling_fgclip2.py").open("a") as file:
        file.write("# another version\n")
    assert allowed(folder).fingerprint != before


CONFIG = "configuration_fgclip2.Fgclip2Config"
MODEL = "modeling_fgclip2.Fgclip2Model"


@pytest.mark.parametrize(
    ("auto_map", "what"),
    [
        (None, "auto_map contains no AutoConfig, and transformers has none"),
        ({"AutoConfig": CONFIG}, "auto_map contains no AutoModel"),
        (
            {"AutoConfig": CONFIG, "AutoModel": "nobody/code--modeling.Model"},
            "is not MODULE.CLASS of a file in the same folder",
        ),
        ({"AutoConfig": "../../elsewhere.Config", "AutoModel": MODEL}, "'../../elsewhere.Config' is not MODULE.CLASS"),
        ({"AutoConfig": CONFIG, "AutoModel": "absent.Fgclip2Model"}, "has no absent.py"),
    ],
)
def test_code_elsewhere_or_without_a_file_is_refused(folder: Path, auto_map: Any, what: str) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}), "utf-8")
    with pytest.raises(DcclipError, match=re.escape(what)):
        allowed(folder)
    assert not (folder.parent / "ran").exists()


def test_code_that_cannot_be_imported_names_the_reason(folder: Path) -> None:
    file = folder / "modeling_fgclip2.py"
    file.write_text("import einops_of_nobody\n" + file.read_text("utf-8"), "utf-8")
    with pytest.raises(DcclipError, match=r"the code of .* failed: .*einops_of_nobody"):
        allowed(folder)


def test_code_finds_the_function_that_transformers_has_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "transformers.modeling_attn_mask_utils"
    monkeypatch.delitem(sys.modules, name, raising=False)
    file = folder / "modeling_fgclip2.py"
    line = f"from {name} import _prepare_4d_attention_mask\n"
    file.write_text(line + file.read_text("utf-8"), "utf-8")
    code = sys.modules[type(allowed(folder).model).__module__]
    least = torch.finfo(torch.float32).min
    mask = code._prepare_4d_attention_mask(torch.tensor([[1, 1, 0], [1, 0, 0]]), torch.float32, 2)
    assert mask.tolist() == [[[[0, 0, least]] * 2], [[[0, least, least]] * 2]]
