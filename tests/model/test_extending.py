"""The example of a new teacher in docs/how-to/extend.md works as shown."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from dcclip_cli.model import teachers
from dcclip_cli.model.teachers import TransformersTeacher
from tests.test_docs import ROOT, blocks

PAGE = ROOT / "docs/how-to/extend.md"


def test_a_teacher_of_the_new_class_is_loaded_from_disk(altclip_folder: Path, tmp_path: Path) -> None:
    names = dict(vars(teachers))
    for beginning in ("class WiseFtTeacher", "\nTeacher = "):
        [block] = [block for block in blocks(PAGE, "python") if beginning in f"\n{block}"]
        exec(compile("from __future__ import annotations\n" + block, str(PAGE), "exec"), names)
    any_teacher: TypeAdapter[Any] = TypeAdapter(names["Teacher"])
    tuned = shutil.copytree(altclip_folder, tmp_path / "tuned")
    weights = load_file(tuned / "model.safetensors")
    weights["visual_projection.weight"] += 1
    save_file(weights, tuned / "model.safetensors", {"format": "pt"})
    options = {"kind": "wise_ft", "model": str(tuned), "start": str(altclip_folder), "alpha": 0.25}
    towers = any_teacher.validate_python(options).load()
    start = TransformersTeacher(model=str(altclip_folder)).load()
    moved = towers.model.visual_projection.weight - start.model.visual_projection.weight
    torch.testing.assert_close(moved, torch.full_like(moved, 0.25))
    assert not towers.training and towers.fingerprint != start.fingerprint
    with pytest.raises(ValueError, match="'open_clip', 'wise_ft'"):
        any_teacher.validate_python({"kind": "nothing"})
