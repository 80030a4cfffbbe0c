"""A model without weights has the shapes of the one with weights, and the errors of one that cannot be built."""

from pathlib import Path

import pytest

from dcclip_cli.model.students import TextTower
from dcclip_cli.model.teachers import OpenClipTeacher, TransformersTeacher
from dcclip_cli.train.teacher import map_grids, widths


@pytest.mark.parametrize("kind", ["altclip", "chineseclip", "siglip2", "openclip-xlmr", "student"])
def test_a_teacher_has_its_widths_and_grids_without_its_weights(
    kind: str, hub_teachers: Path, model_folder: Path
) -> None:
    library = OpenClipTeacher if kind in ("openclip-xlmr", "student") else TransformersTeacher
    teacher = library(model=str(model_folder if kind == "student" else hub_teachers / kind))
    blank = teacher.source.blank()
    loaded = teacher.load()
    assert blank is not None and {str(parameter.device) for parameter in blank.parameters()} == {"meta"}
    assert widths(blank, (0,)) == widths(loaded, (0,)) and map_grids(blank, (0,)) == map_grids(loaded, (0,))
    assert blank.parameters_count() == loaded.parameters_count()


def test_heads_have_to_divide_the_width() -> None:
    for heads, width, near in ((7, 64, 8), (None, 224, 2)):
        with pytest.raises(ValueError, match=f"set heads: {near}"):
            TextTower(heads=heads, width=width)
    assert TextTower(width=96).head_count == 1
