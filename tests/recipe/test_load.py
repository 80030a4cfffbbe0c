from pathlib import Path

import pytest

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.recipe.load import check_finished, load, record, resolved_yaml

SMALL = """\
name: 小
teacher: {kind: altclip, model: BAAI/AltCLIP}
student: {preset: S, text: {width: 128}}
data: {train: ./train.parquet}
distill: {epochs: 1e0, optimizer: {lr: 2e-4}}
align: {steps: 3}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(SMALL, "utf-8")
    return tmp_path / "small.yaml"


def test_a_recipe_has_its_values_its_defaults_and_its_stages_in_order(recipe: Path) -> None:
    loaded = load(recipe, ["distill.epochs=3", "seed=7"])
    assert loaded.recipe.distill is not None and loaded.recipe.student is not None
    assert (loaded.recipe.distill.epochs, loaded.recipe.distill.optimizer.lr, loaded.recipe.seed) == (3, 2e-4, 7)
    assert (loaded.recipe.student.text.layers, loaded.recipe.student.text.width) == (4, 128)
    assert loaded.recipe.stages == ("distill", "align")
    assert loaded.text == SMALL
    assert [line.partition(": ")[2] for line in loaded.missing_files().values()] == [
        f"data.train: {recipe.parent}/train.parquet does not exist"
    ]


def test_a_recipe_written_out_reads_back_as_itself(recipe: Path, tmp_path: Path) -> None:
    first = load(recipe).recipe
    (tmp_path / "resolved.yaml").write_text(resolved_yaml(first), "utf-8")
    assert load(tmp_path / "resolved.yaml").recipe == first


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_lines(recipe: Path) -> None:
    recipe.write_text(
        "name: a/b\nsed: 1\nteacher: {kind: altclp}\nstudent: {preset: S}\n"
        "distill: {epoch: 3, epochs: 1, losses: [{kind: feature_map, weight: -1}]}\n",
        "utf-8",
    )
    with pytest.raises(DcclipError) as caught:
        load(recipe, ["distill.optimizer.lr=快"])
    assert caught.value.what.replace(f"{recipe}:", "").splitlines() == [
        "1: name: 'a/b' is a path: use a plain name of letters, digits, _ - and .",
        "2: sed: unknown key, did you mean 'seed'?",
        "3: teacher.kind: 'altclp' is not one of altclip, transformers, fgclip2, open_clip, did you mean 'altclip'?",
        "5: distill.losses.0.weight: input should be greater than or equal to 0 (got -1)",
        "5: distill.epoch: unknown key, did you mean 'epochs'?",
        "--set distill.optimizer.lr=快: distill.optimizer.lr: expected a number (got '快')",
    ]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("name: x\ndistill: {epochs: 1}\n", ":2: distill: needs a section teacher, student, data"),
        ("name: x\nalign: {epochs: 1}\n", ":2: align: needs a section data|:2: align.start: needs a section distill"),
        (
            "name: x\ndata: {train: ./x}\nalign: {epochs: 1, start: scratch}\n",
            ":3: align.start: needs a section student",
        ),
        ("name: x\ndata: {train: collect}\n", ":2: data.train: needs a section collect"),
        ("name: x\ndata: {train: ./x, phrases: 5}\n", ":2: data: phrases are built from texts: set texts too"),
        ("seed: 1\n", ":1: name: missing"),
        (
            "name: x\nstudent: {text: {vocabulary: {form: data}}}\n",
            ":2: student.image: missing|:2: student.text.vocabulary.form: unknown key, did you mean 'from'?",
        ),
        (
            "name: x\ndata: {texts: ./x}\nteacher: {model: 猫}\n",
            ":3: teacher: needs kind: altclip, fgclip2, open_clip, transformers",
        ),
        (
            "name: x\ndata: {train: ./x}\nalign: {steps: 1, start: ./x, accumulate: 二, losses: [{kind: task, a: 1}]}",
            ":3: align.accumulate: expected an integer or input should be 'auto' (got '二')|"
            ":3: align.losses.0.a: unknown key",
        ),
        ("name: ../../小\n", ":1: name: '../../小' is a path: use a plain name of letters, digits, _ - and ."),
        ("name: x\nformat: 2\n", ":2: format: input should be 1 (got 2)"),
    ],
)
def test_what_a_stage_needs_is_reported_where_it_is_asked_for(recipe: Path, text: str, what: str) -> None:
    recipe.write_text(text, "utf-8")
    with pytest.raises(DcclipError) as caught:
        load(recipe)
    assert caught.value.what.replace(str(recipe), "").splitlines() == what.split("|")


def test_a_run_remembers_its_recipe_and_refuses_another_for_what_is_finished(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "小"
    record(load(recipe, ["align.steps=5"]), run)
    assert (run / "recipe.yaml").read_text("utf-8") == SMALL
    assert "# --set align.steps=5\n" in (run / "resolved.yaml").read_text("utf-8")
    _finish(run, "distill")
    check_finished(load(recipe, ["align.steps=6"]).recipe, run, again=())
    _finish(run, "align")
    check_finished(load(recipe, ["align.steps=5", "align.workers=0"]).recipe, run, again=())
    check_finished(load(recipe, ["align.steps=6"]).recipe, run, again=("align",))
    with pytest.raises(DcclipError) as caught:
        check_finished(load(recipe, ["align.steps=7", "seed=1"]).recipe, run, again=("distill",))
    differs = "was created with a different recipe: seed was 0 and is now 1, align.steps was 5 and is now 7"
    assert caught.value.what == f"{run}/align {differs}"


def _finish(run: Path, stage: str) -> None:
    (run / stage / "model").mkdir(parents=True)
    (run / stage / "model/dcclip.json").touch()


def test_a_url_with_another_signature_is_the_same_recipe(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "small"
    data = "data.train=https://host/a.tar?signature="
    record(load(recipe, [f"{data}猫"]), run)
    _finish(run, "align")
    check_finished(load(recipe, [f"{data}dog"]).recipe, run, again=())
    with pytest.raises(
        DcclipError, match=r"data.train was https://host/a.tar and is now https://host/b.tar$"
    ) as caught:
        check_finished(load(recipe, ["data.train=https://host/b.tar?signature=猫"]).recipe, run, again=())
    assert "猫" not in caught.value.what


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("true", "expected an integer (got True)"),
        ("'12'", "expected an integer (got '12')"),
        ("1e3", "expected an integer (got 1000.0)"),
        ("999999999999", "input should be less than or equal to 99999999 (got 999999999999)"),
    ],
)
def test_a_number_is_nothing_else_in_the_file_and_on_the_command_line(recipe: Path, value: str, what: str) -> None:
    recipe.write_text(SMALL.replace("steps: 3", f"steps: {value}"), "utf-8")
    with pytest.raises(DcclipError) as caught:
        load(recipe)
    assert caught.value.what == f"{recipe}:6: align.steps: {what}"
    recipe.write_text(SMALL, "utf-8")
    with pytest.raises(DcclipError) as caught:
        load(recipe, [f"align.steps={value}"])
    assert caught.value.what == f"--set align.steps={value}: align.steps: {what}"
    assert load(recipe, ["align.steps=12"]).recipe.align.steps == 12  # type: ignore[union-attr]


def test_numbers_are_finite_and_ranges_begin_with_the_smaller_one(recipe: Path) -> None:
    for override, problem in {
        "align.optimizer.lr=1e400": "input should be a finite number (got inf)",
        "align.optimizer.lr=.nan": "expected a number (got '.nan')",
        "align.augment.scale=[2, 1]": "the range starts at 2 and ends at 1: put the smaller number first",
        "align.augment.scale=[0, 0]": "input should be greater than or equal to 0.05 (got 0)",
    }.items():
        with pytest.raises(DcclipError) as caught:
            load(recipe, [override])
        assert caught.value.what.splitlines()[0].endswith(f": {problem}"), override
    for value, problem in (("1e-3", "expected a number"), (float("nan"), "finite")):
        with pytest.raises(DcclipError, match=problem):
            load(recipe, values={"align.optimizer.lr": value})
