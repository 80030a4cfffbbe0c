"""A model without weights has the shapes of the one with weights, and the errors of one that cannot be built."""

from typing import Any

import pytest

from dcclip_cli.model.students import StudentOptions
from dcclip_cli.model.teachers import OpenClipTeacher, TransformersTeacher
from dcclip_cli.train.teacher import map_grids, widths


@pytest.mark.parametrize("kind", ["altclip", "siglip", "model"])
def test_a_teacher_has_its_widths_and_grids_without_its_weights(kind: str, request: pytest.FixtureRequest) -> None:
    library = OpenClipTeacher if kind == "model" else TransformersTeacher
    teacher = library(model=str(request.getfixturevalue(f"{kind}_folder")))
    blank, loaded = teacher.source.blank(), teacher.load()
    assert blank is not None and {str(parameter.device) for parameter in blank.parameters()} == {"meta"}
    assert widths(blank, (0,)) == widths(loaded, (0,)) and map_grids(blank, (0,)) == map_grids(loaded, (0,))
    assert blank.parameters_count() == loaded.parameters_count()


def test_a_teacher_that_is_not_here_has_no_shapes() -> None:
    assert TransformersTeacher(model="ORG/没有").source.blank() is None
    assert OpenClipTeacher(model="ViT-B-32/laion2b_s34b_b79k").source.blank() is None


def student(timm: str, size: int, **text: Any) -> StudentOptions:
    text = {"layers": 1, "width": 64, "vocabulary": {"size": 300}, **text}
    return StudentOptions.model_validate({"image": {"timm": timm, "size": size}, "text": text})


def test_heads_have_to_divide_the_width() -> None:
    for heads, width, near in ((7, 64, 8), (None, 224, 2)):
        with pytest.raises(ValueError, match=f"heads: set heads: {near}"):
            student("test_vit", 64, heads=heads, width=width)
    assert student("test_vit", 64, width=96).text.head_count == 1
