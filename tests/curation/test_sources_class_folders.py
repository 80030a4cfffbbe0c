"""Class folders become pairs whose captions are the classes' names, which no rule on captions drops."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dcclip_cli.curation.collect import collect
from dcclip_cli.curation.executors import Engine
from dcclip_cli.curation.options import CollectOptions
from dcclip_cli.curation.sources.captions import ClassFoldersSource
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.datasets import open_dataset
from tests.curation.conftest import make_picture
from tests.curation.reading import PIXEL, faults, read

NAMES = "cat: {en: cat, zh: 猫}\nil: {en: Il-76, zh: 伊尔-76}\n"


def folders(path: Path, **images: int) -> Path:
    """Class folders with so many images each."""
    for name, count in images.items():
        (path / name).mkdir(parents=True)
        for number in range(count):
            (path / name / f"{number}.png").write_bytes(make_picture(f"{name}{number}"))
    return path


def test_captions_are_the_name_and_the_name_in_templates_in_both_languages(tmp_path: Path) -> None:
    folders(tmp_path, cat=2, il=1)
    (tmp_path / "classes.yaml").write_text(NAMES, "utf-8")
    first, second, third = (one.pair for one in read(ClassFoldersSource(path=tmp_path)))
    assert [first.key, second.key, third.key] == ["cat/0.png", "cat/1.png", "il/0.png"]
    assert first.meta == {"class": "cat"} and first.image == (tmp_path / "cat/0.png").read_bytes()
    assert (first.zh[0], first.en[0], third.zh[0], third.en[0]) == ("猫", "cat", "伊尔-76", "Il-76")
    assert len(first.zh) == len(first.en) == 3 and all("cat" in text for text in first.en)
    assert first.en != second.en  # the path chooses the templates, each time the same
    assert [one.pair for one in read(ClassFoldersSource(path=tmp_path))] == [first, second, third]
    own = ClassFoldersSource(path=tmp_path, captions=2, templates={"zh": ("一只{}",)})
    assert [one.pair.zh for one in read(own)] == [("猫", "一只猫")] * 2 + [("伊尔-76", "一只伊尔-76")]
    with pytest.raises(ValueError, match=r"has no \{\} for the name"):
        ClassFoldersSource(path=tmp_path, templates={"zh": ("一只猫",)})


def test_slices_end_in_the_middle_of_a_class(tmp_path: Path) -> None:
    source = ClassFoldersSource(path=folders(tmp_path, cat=5, dog=1, emu=3))
    keys = [one.pair.key for one in read(source)]
    assert len(set(keys)) == 9
    for size in (1, 2, 4, 9, 20):
        slices = source.slices(size)
        assert [part.about for part in slices] == [size] * (9 // size) + [9 % size] * (9 % size > 0)
        assert [one.pair.key for one in read(source, size)] == keys


def test_what_cannot_be_read_in_a_class_folder_is_a_candidate_with_a_fault(tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(PIXEL)
    root = folders(tmp_path / "photos", cat=1)
    (root / "cat/2.gif").write_bytes(PIXEL)
    (root / "cat/3.png").symlink_to(tmp_path / "outside.png")
    (root / "cat/notes.txt").write_text("no image")
    found = faults(ClassFoldersSource(path=root))
    assert found == {"cat/0.png": None, "cat/2.gif": None, "cat/3.png": "image-outside"}
    with pytest.raises(DcclipError, match="has no folders with images"):
        ClassFoldersSource(path=tmp_path / "photos/cat").slices(10)


def test_collected_class_folders_keep_their_captions_and_are_an_evaluation_set(tmp_path: Path) -> None:
    root = folders(tmp_path / "photos", cat=4, il=2)
    (root / "classes.yaml").write_text(NAMES, "utf-8")
    (root / "cat/9.png").write_bytes(b"broken")
    given = {
        "sources": [{"kind": "class_folders", "path": str(root)}],
        "duplicates": [{"kind": "same-caption", "at_most": 1}],
    }
    done = collect(CollectOptions.model_validate(given), tmp_path / "out", engine=Engine(workers=1))
    manifest = json.loads((tmp_path / "out/manifest.json").read_text("utf-8"))
    assert manifest["pairs"]["dropped"] == {"image-format": 1}
    # The language filter takes "Il-76" for no English, and 猫 is the caption of four images.
    assert done.captions["en"].kept == done.captions["zh"].kept == 18
    assert {len(texts) for pair in open_pairs(tmp_path / "out") for texts in (pair.zh, pair.en)} == {3}
    found = open_dataset(str(tmp_path / "out"))
    assert {language: truth.names for language, truth in found.truth.items()} == {  # type: ignore[union-attr]
        "en": ("cat", "Il-76"),
        "zh": ("猫", "伊尔-76"),
    }
