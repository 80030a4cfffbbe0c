"""What keeps a stage from running, by its options alone: found before it begins, each with its key."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dcclip_cli.core.run_dir import RunDir
from dcclip_cli.data.options import DataOptions
from dcclip_cli.model.students import StudentOptions
from dcclip_cli.model.teachers import AltClipTeacher
from dcclip_cli.train.options import AlignOptions, DistillOptions, TrainOptions
from dcclip_cli.train.problems import problems, warnings
from dcclip_cli.train.stage import Stage
from tests.train.jobs import refused

TEACHER = AltClipTeacher(model="老师")
STUDENT: dict[str, Any] = {"image": {"timm": "test_resnet", "size": 32}}
EMBEDDING = {"kind": "embedding"}
MAPS = {"kind": "feature_map"}


def stage_of(name: str, options: dict[str, Any], data: dict[str, Any], **context: Any) -> Stage:
    """A stage of three steps under a teacher."""
    kind: type[DistillOptions | AlignOptions] = DistillOptions if name == "distill" else AlignOptions
    options = {"steps": 3} | ({"start": "scratch"} if name == "align" else {}) | options
    context = {"teacher": TEACHER, "student_options": StudentOptions.model_validate(STUDENT)} | context
    return Stage(kind.model_validate(options), RunDir(Path("跑")), DataOptions(**data), **context)


def found(name: str, options: dict[str, Any], data: dict[str, Any], **context: Any) -> list[tuple[str, str, str]]:
    """Key, error and hint of each problem."""
    stage = stage_of(name, options, data, **context)
    return [(".".join(map(str, key)), error.what, error.hint) for key, error in problems(stage)]


PAIRS = {"train": "对.tar"}
TEXTS = {"texts": "词.tsv"}
INHERITING: dict[str, Any] = {"text": {"inherit": "layers", "vocabulary": {"from": "teacher", "size": 300}}}


@pytest.mark.parametrize(
    ("stage", "options", "data", "at", "what", "hint"),
    [
        ("distill", {"precision": "fp16"}, PAIRS, "precision", "fp16 needs a GPU", "precision: auto"),
        ("distill", {"more_teachers": [{"kind": "altclip", "precision": "fp16"}]}, PAIRS, "more_teachers.0.precision",
         "fp16 needs a GPU", "precision: auto"),
        ("align", {"validate_every_steps": 1}, PAIRS, "validate_every_steps", "requires validation pairs",
          "set data.validation"),
        *(("distill", {key: value, "losses": [{"kind": "similarity"}]}, PAIRS, key,
           "parts per batch depends on the machine, but similarity", "gradient_cache: true")
          for key, value in (("accumulate", "auto"), ("images_per_part", 8))),
        ("distill", {"losses": [EMBEDDING, EMBEDDING | {"teacher": 2}]}, PAIRS, "losses.1",
         "the loss embedding uses teacher 2, but the recipe has 1, numbered from 0", "more_teachers"),
        ("align", {"losses": [EMBEDDING | {"teacher": 1}]}, PAIRS, "losses.0", "the recipe has 1", "more_teachers"),
        ("distill", {"losses": [EMBEDDING | {"weight": 0}]}, PAIRS, "losses", "all losses have weight 0", "above 0"),
        ("distill", {"lora": {"towers": "image"}, "optimizer": {"image_lr_scale": 0}}, PAIRS, "lora.towers",
         "the adapted layers are not trained (image)", "apply lora to a tower that is trained"),
        ("distill", {"losses": [{"kind": "anchors"}]}, TEXTS, "losses.0", "nothing that the loss anchors can use",
         "set data.train or data.images and data.texts, or"),
        ("distill", {"losses": [EMBEDDING | {"languages": ["zh"]}], "captions": {"languages": ["en"]}}, TEXTS, "losses",
         "no loss trains an unlocked tower that has data", "add a loss"),
        ("align", {"start": "distill"}, PAIRS, "start", "align starts from 跑/distill/model, which does not exist",
         "run stage 1 first"),
        ("align", {"start": "不在"}, PAIRS, "start", "align starts from 不在, which does not exist", "or scratch"),
    ],
)  # fmt: skip
def test_what_keeps_a_stage_from_running_is_named_with_its_key(
    stage: str, options: dict[str, Any], data: dict[str, Any], at: str, what: str, hint: str
) -> None:
    [(key, problem, so)] = found(stage, options, data)
    assert key == f"{stage}.{at}" and what in problem and hint in so


def test_a_step_of_nothing_and_a_vocabulary_of_no_text_are_refused() -> None:
    [(key, problem, _), *_] = found("distill", {"texts_per_step": 0}, TEXTS)
    assert (key, problem) == ("distill", "a step has no pairs, images or texts")
    [(key, problem, _)] = found("distill", {"losses": [MAPS]}, {"images": "图"})
    assert (key, problem) == ("student.text.vocabulary", "the data contains no text for the student's vocabulary")
    student = StudentOptions.model_validate(STUDENT | INHERITING)
    assert not found("distill", {"losses": [MAPS]}, {"images": "图"}, student_options=student)
    student = StudentOptions.model_validate(INHERITING | {"image": "teacher"})
    [(key, problem, _)] = found("distill", {"losses": [MAPS]}, PAIRS, student_options=student)
    assert (key, problem) == ("distill.losses", "no loss trains an unlocked tower that has data")


def test_a_long_warm_up_and_lora_on_random_weights_are_warned_of() -> None:
    options = {"steps": 4, "warmup_steps": 1_000, "lora": {}}
    student = StudentOptions.model_validate(STUDENT | {"text": {"inherit": "layers"}})
    stage = stage_of("distill", options, PAIRS, student_options=student)
    stage.steps = 4
    assert list(warnings(stage)) == [
        "warning: distill: warmup_steps is 1,000 of 4 steps, so optimizer.lr is never reached",
        "warning: distill: LoRA keeps the image tower's weights, which are random",
    ]
    stage.steps = 1_001
    stage.new_student = None
    assert not list(warnings(stage))


def test_what_a_student_takes_from_a_teacher_needs_one_unless_it_is_made_already(model_folder: Path) -> None:
    student = StudentOptions.model_validate(STUDENT | INHERITING)
    without: dict[str, Any] = {"student_options": student, "teacher": None}
    keys = [key for key, problem, _ in found("align", {}, PAIRS, **without) if "requires a teacher" in problem]
    assert keys == ["student.text.inherit", "student.text.vocabulary.from"]
    assert not found("align", {"start": str(model_folder)}, PAIRS, **without)
    assert not found("align", {}, PAIRS, student_options=student)


@pytest.mark.parametrize(
    ("data", "options", "said", "hint"),
    [
        (PAIRS, {"images_per_step": 4}, "images_per_step is 4, but data.images is not set", "data.images"),
        (PAIRS, {"texts_per_step": 4}, "texts_per_step is 4, but data.texts is not set", "data.texts"),
        (PAIRS | TEXTS, {"texts_per_step": 4}, "the contrastive loss uses only pairs", "add a distillation loss"),
        (TEXTS, {}, "align needs image-caption pairs, but data has none", "data.train"),
    ],
)
def test_what_stage_2_can_make_nothing_of_is_refused(
    data: dict[str, Any], options: dict[str, Any], said: str, hint: str
) -> None:
    with refused(said, hint):
        found("align", options, data)


def test_epochs_count_whole_batches() -> None:
    assert TrainOptions(epochs=3).total_steps(2) == 6
    assert TrainOptions(epochs=0.1).total_steps(2) == 1
    assert TrainOptions(steps=5).total_steps(2) == 5


@pytest.mark.parametrize(
    ("size", "sizes", "processes", "parts"),
    [
        *((256, {"pairs": 2048}, processes, parts) for processes, parts in ((1, 8), (2, 4), (8, 1), (32, 1))),
        *((size, {"pairs": 24, "images": 12}, 1, parts) for size, parts in ((36, 1), (18, 2), (10, 4), (3, 12))),
        *((size, {"pairs": 24, "texts": 10}, 2, parts) for size, parts in ((12, 1), (1, 12))),  # no equal parts
        (1, {"texts": 8}, 1, 1),
    ],
)
def test_parts_are_the_fewest_equal_ones_of_so_many_images(
    size: int, sizes: dict[str, int], processes: int, parts: int
) -> None:
    assert TrainOptions(steps=1, images_per_part=size).fewest_parts(sizes, processes) == parts


@pytest.mark.parametrize(
    ("given", "said"),
    [
        *((counts, "set either epochs or steps") for counts in ({}, {"steps": 5, "epochs": 1})),
        *((counts, "greater than 0|greater than or equal to 1") for counts in ({"steps": 0}, {"epochs": 0})),
        ({"steps": 1, "optimizer": {"other_lr": 1e-3}}, "other_lr needs kind: muon"),
        ({"steps": 1, "batch_size": 10, "accumulate": 4}, "must be a multiple of accumulate"),
        ({"steps": 1, "gradient_cache": True}, "set images_per_part or accumulate"),
        *(({"steps": 1, "images_per_part": 2, "accumulate": count}, "remove one of them") for count in (2, "auto")),
        ({"steps": 1, "keep": "best"}, "set validate_every_steps"),
        ({"steps": 1, "patience": 3}, "set validate_every_steps"),
    ],
)
def test_options_that_contradict_or_need_each_other_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrainOptions.model_validate(given)
