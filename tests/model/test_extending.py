"""The tutorial on a new teacher, docs/tutorials/add-a-teacher.md, works as shown."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from dcclip_cli.model import teachers
from dcclip_cli.model.teachers import OpenClipTeacher
from tests.pages import ROOT, blocks

PAGE = ROOT / "docs/tutorials/add-a-teacher.md"


def test_a_teacher_of_the_new_class_is_loaded_from_disk(model_folder: Path, tmp_path: Path) -> None:
    names = dict(vars(teachers))
    for beginning in ("class WiseFtTeacher", "\nTeacher = "):
        [block] = [block for block in blocks(PAGE, "python") if beginning in f"\n{block}"]
        exec(compile("from __future__ import annotations\n" + block, str(PAGE), "exec"), names)
    any_teacher: TypeAdapter[Any] = TypeAdapter(names["Teacher"])
    tuned = shutil.copytree(model_folder, tmp_path / "tuned")
    (tuned / "dcclip.json").unlink()  # it has the checksums of the weights
    weights = load_file(tuned / "open_clip_model.safetensors")
    weights["text.positional_embedding"] += 1
    save_file(weights, tuned / "open_clip_model.safetensors", {"format": "pt"})
    [recipe] = [yaml.safe_load(block) for block in blocks(PAGE, "text") if block.startswith("name: student")]
    options = recipe["teacher"] | {"model": str(tuned), "start": str(model_folder), "alpha": 0.25}
    towers = any_teacher.validate_python(options).load()
    start = OpenClipTeacher(model=str(model_folder)).load()
    moved = towers.model.text.positional_embedding - start.model.text.positional_embedding
    torch.testing.assert_close(moved, torch.full_like(moved, 0.25))
    assert not towers.training and towers.fingerprint != start.fingerprint
    with pytest.raises(ValueError, match="'open_clip', 'wise_ft'"):
        any_teacher.validate_python({"kind": "nothing"})
