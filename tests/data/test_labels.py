"""Class labels of pairs and of class folders."""

from pathlib import Path

import numpy as np
import pytest

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.data import labels
from dcclip_cli.data.dataset import open_pairs, write_parquet
from dcclip_cli.data.labels import find_labels
from dcclip_cli.data.pair import LANGUAGES, Pair, Rows
from dcclip_cli.data.unpaired import open_images, open_texts

pytestmark = pytest.mark.any_cpu


@pytest.fixture
def folders(pairs: list[Pair], tmp_path: Path) -> Path:
    """Two class folders with an image and three, a folder of folders, and an image without a class."""
    for place, pair in zip(("cat/1.png", "dog/1.png", "dog/2.png", "dog/旧/3.png", "loose.png"), pairs, strict=False):
        file = tmp_path / "classes" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pair.image)
    return tmp_path / "classes"


def of_captions(folder: Path, pairs: list[Pair], captions: list[tuple[str | None, str | None]]) -> Path:
    file = folder / "pairs.parquet"
    named = [
        Pair(pair.key, pair.image, (zh,) if zh else (), (en, "a picture") if en else ())
        for pair, (zh, en) in zip(pairs, captions, strict=False)
    ]
    write_parquet(file, named)
    return file


def test_the_class_of_an_image_is_its_class_folder(folders: Path) -> None:
    found = find_labels({"images": open_images(folders)}, LANGUAGES)
    assert found is not None
    assert found.names == {"en": ["cat", "dog"]}
    assert found.of_samples.tolist() == [0, 1, 1, 1, -1]
    assert found.counts.tolist() == [1, 3]


def test_classes_yaml_names_the_folders_in_both_languages(folders: Path) -> None:
    (folders / "classes.yaml").write_text("cat: {zh: 猫, en: cat}\ndog: {zh: 狗, en: dog}\n", "utf-8")
    found = find_labels({"images": open_images(folders)}, LANGUAGES)
    assert found is not None and found.names == {"zh": ["猫", "狗"], "en": ["cat", "dog"]}
    chinese = find_labels({"images": open_images(folders)}, ["zh"])
    assert chinese is not None and chinese.names == {"zh": ["猫", "狗"]}


def test_a_part_of_class_folders_keeps_the_labels_of_its_samples(folders: Path) -> None:
    part = Rows(open_images(folders), np.array([0, 3, 4]))
    found = find_labels({"images": part}, LANGUAGES)
    assert found is not None and found.of_samples.tolist() == [0, 1, -1]


def test_the_class_of_a_pair_is_its_first_caption(tmp_path: Path, pairs: list[Pair]) -> None:
    file = of_captions(tmp_path, pairs, [("猫", "cat"), (None, "dog"), ("狗", "dog"), (None, None)])
    found = find_labels({"pairs": open_pairs(file)}, LANGUAGES)
    assert found is not None
    assert found.names == {"zh": ["猫", "狗"], "en": ["cat", "dog"]}
    assert found.of_samples.tolist() == [0, 1, 1, -1]


def test_a_language_without_the_name_of_some_class_is_left_out(tmp_path: Path, pairs: list[Pair]) -> None:
    file = of_captions(tmp_path, pairs, [("猫", "cat"), (None, "dog")])
    found = find_labels({"pairs": open_pairs(file)}, LANGUAGES)
    assert found is not None and found.names == {"en": ["cat", "dog"]}
    file = of_captions(tmp_path, pairs, [("猫", None), (None, "dog"), ("狗", None)])
    chinese = find_labels({"pairs": open_pairs(file)}, ["zh"])
    assert chinese is not None and chinese.names == {"zh": ["猫", "狗"]}
    assert chinese.of_samples.tolist() == [0, -1, 1]


def test_pairs_and_images_share_classes_and_texts_have_none(tmp_path: Path, pairs: list[Pair], folders: Path) -> None:
    file = of_captions(tmp_path, pairs, [("狗", "dog"), ("鸟", "bird")])
    (tmp_path / "texts.txt").write_text("cat\n", "utf-8")
    datasets = {"pairs": open_pairs(file), "images": open_images(folders), "texts": open_texts(tmp_path / "texts.txt")}
    found = find_labels(datasets, LANGUAGES)
    assert found is not None
    assert found.names == {"en": ["dog", "bird", "cat"]}
    assert found.of_samples.tolist() == [0, 1, 2, 0, 0, 0, -1]


def test_one_class_and_loose_images_are_no_labels(folders: Path, tmp_path: Path, pairs: list[Pair]) -> None:
    assert find_labels({"images": open_images(folders / "dog")}, LANGUAGES) is None
    file = of_captions(tmp_path, pairs, [("狗", "dog"), ("狗", "dog")])
    assert find_labels({"pairs": open_pairs(file)}, LANGUAGES) is None


def test_captions_that_are_no_class_names_are_refused(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labels, "MOST_CLASSES", 2)
    file = of_captions(tmp_path, pairs, [(None, "one"), (None, "two"), (None, "three")])
    with pytest.raises(DcclipError, match="more than 2 different"):
        find_labels({"pairs": open_pairs(file)}, LANGUAGES)
