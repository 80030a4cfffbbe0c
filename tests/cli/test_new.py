"""`dcclip new`: recipes of each kind of data that pass --check, questions in a terminal, files that are kept."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from dcclip_cli.data.pair import Pair
from dcclip_cli.recipe import new as recipes
from dcclip_cli.recipe.load import load
from dcclip_cli.train import estimate
from tests.cli.conftest import dcclip
from tests.conftest import SHAPES

PACKAGE = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimate, "_ENOUGH_S", 0.0)  # instead of seconds for each recipe


@pytest.fixture
def data(pairs: list[Pair], pairs_file: Path, tmp_path: Path) -> dict[str, Path]:
    """Some of the drawn pictures in each layout."""
    photos, classes, table = (tmp_path / name for name in ("照片 photos", "classes", "table"))
    for pair in pairs[:16]:
        shape = pair.key.split("-")[1]
        for folder in (photos, classes / shape, table):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{pair.key}.png").write_bytes(pair.image)
    names = {pair.key.split("-")[1]: pair.zh[2] for pair in pairs[:16]}
    lines = (f"{shape}: {{en: {shape}, zh: {zh}}}\n" for shape, zh in names.items())
    (classes / "classes.yaml").write_text("".join(lines), "utf-8")
    rows = ["image\tzh\ten", *(f"{pair.key}.png\t{pair.zh[0]}\t{pair.en[0]}" for pair in pairs[:16])]
    (table / "pairs.tsv").write_text("\n".join(rows) + "\n", "utf-8")
    shutil.copy(pairs_file, tmp_path / "pairs.parquet")
    return {"photos": photos, "pairs": tmp_path / "pairs.parquet", "table": table / "pairs.tsv", "classes": classes}


@pytest.mark.parametrize("kind", ["photos", "pairs", "table", "classes"])
def test_a_recipe_of_each_kind_of_data_passes_check_and_says_what_it_takes(
    data: dict[str, Path], altclip_folder: Path, kind: str
) -> None:
    file = Path("我的-clip.yaml")
    done = dcclip("new", file, "--yes", "--data", data[kind].relative_to(Path.cwd()), "--teacher", altclip_folder)
    assert done.stdout == f"{file}\n" and "warning" not in done.stderr
    text = file.read_text("utf-8")
    loaded = load(file)
    assert loaded.recipe.name == "我的-clip" and recipes.choose_data(str(data[kind])).kind == kind
    stages = {"photos": ("distill",), "pairs": ("distill", "align")}.get(kind, ("collect", "distill", "align"))
    assert loaded.recipe.stages == (*stages, "export")
    assert re.search(r"^# Takes:   distill: .* steps of .* take about", text, re.M)
    assert all("#" in line for line in text.splitlines() if line.strip().startswith(("epochs", "preset", "seed")))


def test_what_it_wrote_for_photographs_trains_from_another_folder(
    data: dict[str, Path], altclip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    dcclip("new", "recipes/mine.yaml", "--yes", "--data", data["photos"], "--teacher", altclip_folder, "--size", "S")
    assert len((tmp_path / "recipes/mine.texts.txt").read_text("utf-8").splitlines()) > 5_000
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    small = ["student.image.size=64", "distill.steps=2", "distill.epochs=null", "distill.texts_per_step=8"]
    sets = [part for value in (*small, "student.text.layers=1", "distill.threads=1") for part in ("--set", value)]
    done = dcclip("distill", "../recipes/mine.yaml", *sets, "--device", "cpu", "-q")
    assert done.stdout == "runs/mine/distill/model\n"
    predicted = dcclip("predict", data["photos"], "--model", "runs/mine", "--labels", "红色的圆,red circle", "--jsonl")
    assert len(predicted.stdout.splitlines()) == 16


def test_a_recipe_that_cannot_run_yet_is_written_with_a_warning(data: dict[str, Path]) -> None:
    done = dcclip("new", "--yes", "--data", data["pairs"])
    assert done.stdout == "my-clip.yaml\n"
    assert (
        "warning: the recipe cannot run yet: my-clip.yaml:" in done.stderr and "hf download BAAI/AltCLIP" in done.stderr
    )
    teacher = load("my-clip.yaml").recipe.teacher
    assert teacher is not None and (teacher.kind, teacher.model) == ("altclip", "BAAI/AltCLIP")
    assert "inherit: embeddings" in Path("my-clip.yaml").read_text("utf-8")


def test_no_file_is_overwritten_without_force(data: dict[str, Path], altclip_folder: Path) -> None:
    Path("mine.yaml").write_text("name: 旧的\n", "utf-8")
    command = ["new", "mine.yaml", "--yes", "--data", data["photos"], "--teacher", altclip_folder]
    refused = dcclip(*command, expect=1)
    assert "error: mine.yaml exists" in refused.stderr and Path("mine.yaml").read_text("utf-8") == "name: 旧的\n"
    Path("mine.yaml").unlink()
    Path("mine.texts.txt").write_text("我的词\n", "utf-8")
    assert "error: mine.texts.txt exists" in dcclip(*command, expect=1).stderr and not Path("mine.yaml").exists()
    dcclip(*command, "--texts", "mine.texts.txt")
    assert Path("mine.texts.txt").read_text("utf-8") == "我的词\n"
    dcclip(*command, "--force")
    assert len(Path("mine.texts.txt").read_text("utf-8")) > 10_000


@pytest.mark.parametrize(
    ("more", "what", "hint"),
    [
        ([], "cannot ask: not running in a terminal", "give --teacher, --data and --size, or --data and --yes"),
        (["--yes"], "no data given", "give your data with --data PATH"),
        (["--yes", "--data", "没有"], "没有 does not exist", "give a folder of photographs"),
        (["--yes", "--data", "."], ". contains no pairs", "give photographs, tars"),
        (["--yes", "--data", "pairs.parquet", "--teacher", "nobody"], "model nobody is not a directory", "hf:ORG/NAME"),
    ],
)
def test_a_choice_that_is_missing_or_wrong_is_an_error_and_nothing_is_written(
    pairs_file: Path, more: list[str], what: str, hint: str
) -> None:
    if "." not in more:
        shutil.copy(pairs_file, "pairs.parquet")
    refused = dcclip("new", *more, expect=1)
    assert f"error: {what}" in refused.stderr and hint in refused.stderr
    assert not list(Path().glob("*.yaml"))


def test_links_that_lead_out_of_class_folders_are_counted_and_collected(
    data: dict[str, Path], altclip_folder: Path
) -> None:
    for file in data["classes"].glob("*/*.png"):
        linked = Path("split") / file.relative_to(data["classes"])
        linked.parent.mkdir(parents=True, exist_ok=True)
        linked.symlink_to(file)
    done = dcclip("new", "a.yaml", "--yes", "--data", "split", "--teacher", altclip_folder)
    assert "On:      16 photographs" in Path("a.yaml").read_text("utf-8") and "warning" not in done.stderr
    dcclip("collect", "a.yaml", "--set", "collect.filters=[]", "--workers", "1", "-q")
    counts = json.loads(Path("runs/a/collect/manifest.json").read_bytes())["pairs"]
    assert counts["read"] == 16 and "image-outside" not in counts["dropped"]


@pytest.mark.parametrize("kind", ["photos", "pairs"])
def test_the_starter_is_a_teacher_whose_student_begins_with_its_channels_and_is_exported_in_int8(
    data: dict[str, Path], kind: str
) -> None:
    Path("starter").mkdir()  # a folder of this name is not meant
    done = dcclip("new", "a.yaml", "--yes", "--data", data[kind], "--teacher", "starter")
    assert "warning" not in done.stderr
    recipe = load("a.yaml").recipe
    assert recipe.teacher and recipe.student and recipe.distill and recipe.export
    assert recipe.teacher.source.path == PACKAGE / "dcclip_cli/starter/model"
    assert recipe.student.inherits_images and recipe.student.embed_dim == 128 and recipe.export.precision == "int8"
    losses = {"photos": ["embedding", "anchors"], "pairs": ["embedding", "interactive"]}[kind]
    assert [loss.kind for loss in recipe.distill.losses] == losses and recipe.distill.optimizer.kind == "muon"
    assert "S" in recipes.sizes_for(recipes.TEACHERS["altclip"])


def test_folders_of_photographs_are_no_classes_if_the_user_says_so(data: dict[str, Path], altclip_folder: Path) -> None:
    dcclip("new", "a.yaml", "--yes", "--data", data["classes"], "--kind", "photos", "--teacher", altclip_folder)
    recipe = load("a.yaml").recipe
    assert recipe.data is not None and recipe.data.images == str(data["classes"]) and recipe.collect is None
    checked = dcclip("run", "a.yaml", "--check", "--device", "cpu").stdout.splitlines()
    assert checked[-1] == "ready to run in runs/a: distill, export" and len(checked) < 10


def test_fg_clip2_runs_code_only_if_that_is_allowed(data: dict[str, Path]) -> None:
    for flag in ((), ("--trust-remote-code",)):
        dcclip("new", "a.yaml", "--yes", "--force", "--data", data["pairs"], "--teacher", "fgclip2", *flag)
        teacher = load("a.yaml").recipe.teacher
        assert teacher is not None and getattr(teacher, "trust_remote_code") is bool(flag)  # noqa: B009


def test_in_a_terminal_it_asks_for_teacher_data_and_size(
    data: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcclip_cli.cli.make._can_ask", lambda: True)
    done = dcclip("new", "asked.yaml", stdin=f"1\n{data['pairs']}\n2\n")
    assert done.stdout.splitlines()[-1] == "asked.yaml"
    assert "1  altclip       BAAI/AltCLIP: 864 M parameters, zh and en" in done.stderr and "RN50" in done.stderr
    student = load("asked.yaml").recipe.student
    assert student is not None and student.preset == "M"


# ---- without it: class folders, by what the hint says


@pytest.mark.any_cpu
def test_class_folders_are_collected_trained_on_and_measured(
    whole_recipe: dict[str, Any], pairs: list[Pair], tmp_path: Path
) -> None:
    for pair in pairs:
        colour, shape = pair.key.split("-")
        folder = tmp_path / ("held out" if colour == "red" else "形状 shapes") / shape
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{colour}.png").write_bytes(pair.image)
    names = {shape: {"en": shape, "zh": zh} for shape, zh in SHAPES.items()}
    for name in ("held out", "形状 shapes"):
        (tmp_path / name / "classes.yaml").write_text(yaml.safe_dump(names, allow_unicode=True), "utf-8")
    recipe = {name: whole_recipe[name] for name in ("name", "student")} | {
        "data": {"train": "./形状 shapes"},
        "align": whole_recipe["align"] | {"start": "scratch"},
        "eval": {"datasets": ["./held out"]},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), "utf-8")
    refused = dcclip("run", "recipe.yaml", "--check", expect=1)
    assert "is a folder of class folders (bar, circle, cross, ...), not of image-caption pairs" in refused.stderr
    hint = re.search(r"write in the recipe: (\{.*\}\}); ", " ".join(refused.stderr.split()))
    assert hint, refused.stderr
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe | yaml.safe_load(hint[1]), allow_unicode=True), "utf-8")
    dcclip("run", "recipe.yaml")
    manifest = json.loads(Path("runs/一生/collect/manifest.json").read_text("utf-8"))
    assert manifest["pairs"] == {"read": 32, "kept": 32, "dropped": {}}
    results = json.loads(Path("runs/一生/eval/held out.json").read_text("utf-8"))
    assert {result["language"]: (result["n"], result["class_names"][0]) for result in results} == {
        "en": (8, "bar"),
        "zh": (8, "横条"),
    }
