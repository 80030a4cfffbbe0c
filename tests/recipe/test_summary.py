"""The table that a run without test sets ends with: mean recall of validation pairs, or agreement with the teacher."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dcclip_cli.inference.bench import bench
from dcclip_cli.inference.encoder import load_encoder
from dcclip_cli.model.preprocess import decode
from dcclip_cli.model.reference import ModelSource, resolve
from dcclip_cli.model.teachers import AltClipTeacher
from tests.cli.conftest import dcclip
from tests.conftest import COLOURS

TEXTS = {"zh": sorted(f"{colour}色的" for colour in COLOURS.values()), "en": sorted(COLOURS)}


@pytest.mark.any_cpu
def test_a_run_on_images_and_texts_ends_with_the_agreement_with_its_teacher(
    whole_recipe: dict[str, Any], pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("\n".join([*TEXTS["zh"], *TEXTS["en"]]), "utf-8")
    recipe = {name: value for name, value in whole_recipe.items() if name not in ("align", "eval")}
    recipe["distill"] = recipe["distill"] | {
        "losses": [{"kind": "embedding"}],
        "steps": 2,
        "batch_size": 4,
        "texts_per_step": 6,
    }
    recipe["data"] = {"images": "./图片 pictures", "texts": "./words.txt"}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), "utf-8")
    done = dcclip("run", "recipe.yaml")
    assert "on 5 images of 图片 pictures, among 5 (zh), 5 (en)" in done.stderr

    rows = json.loads(Path("runs/一生/summary.json").read_text("utf-8"))["rows"]
    assert [row["name"] for row in rows] == ["teacher", "student", "bundle"]
    teacher = best_texts(f"hf:{recipe['teacher']['model']}", pictures)
    student = best_texts("runs/一生/distill/model", pictures)
    agreement = {
        f"图片 pictures {language}": sum(map(str.__eq__, teacher[language], student[language])) / 5
        for language in TEXTS
    }
    assert [row["agreement"] for row in rows] == [dict.fromkeys(agreement, 1), agreement, agreement]
    assert 0 < sum(agreement.values()) < 2  # else nothing could be told from it
    shown = [line for line in done.stdout.splitlines() if line.startswith("agreement with the teacher, 图片 pictures ")]
    assert [line.split()[-4:-2] for line in shown] == [["100.0%", f"{value:.1%}"] for value in agreement.values()]

    summary = Path("runs/一生/summary.json")
    summary.write_text(
        json.dumps(json.loads(summary.read_text("utf-8")) | {"rows": [rows[0] | {"memory_bytes": 0}, *rows[1:]]})
    )
    written = summary.read_bytes()  # as of a teacher whose class only the user's script has
    [memory] = [line for line in dcclip("run", "recipe.yaml").stdout.splitlines() if line.startswith("memory")]
    assert memory.count("MB") == 2 and summary.read_bytes() == written


@pytest.mark.any_cpu
def test_a_run_on_pairs_ends_with_the_mean_recall_of_those_that_it_held_out(
    whole_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = {name: value for name, value in whole_recipe.items() if name not in ("align", "eval", "export")}
    recipe["distill"] = recipe["distill"] | {"losses": [{"kind": "embedding"}], "steps": 2, "batch_size": 2}
    recipe["data"] = recipe["data"] | {"hold_out": 2}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), "utf-8")
    shown = dcclip("run", "recipe.yaml").stdout
    teacher, student = json.loads(Path("runs/一生/summary.json").read_text("utf-8"))["rows"]
    assert student["scores"].keys() == {"mean_recall"}
    for on, value in student["scores"]["mean_recall"].items():
        name = next(line for line in shown.splitlines() if line.startswith(f"mean recall {on}"))
        assert name.split()[-3:-1] == [f"{teacher['scores']['mean_recall'][on]:.1%}", f"{value:.1%}"]
        assert 2 / 3 <= value <= 1  # the best five of two images have both


def best_texts(model: str, pictures: list[Path]) -> dict[str, list[str]]:
    """The text, of each language, that a model finds best for each picture, one after the other."""
    encoder = load_encoder(resolve(model), "cpu")
    images = [encoder.encode_pixels(encoder.preprocess(decode(picture))[None])[0] for picture in pictures]
    return {
        language: [texts[int((encoder.encode_texts(texts) @ image).argmax())] for image in images]
        for language, texts in TEXTS.items()
    }


def test_a_teacher_of_a_class_that_only_the_users_script_has_is_measured_too(altclip_folder: Path) -> None:
    class OwnTeacher(AltClipTeacher):
        kind: str  # type: ignore[assignment]

    OwnTeacher.__module__ = "__main__"
    teacher = OwnTeacher(kind="__main__:OwnTeacher", model=str(altclip_folder))
    [cost] = bench([ModelSource("hf", teacher.model, teacher.kind, teacher=teacher)])
    assert cost.image_ms > 0 and cost.memory_bytes == 0  # the memory of this process says nothing about it
