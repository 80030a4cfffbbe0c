"""Test sets are read from pairs, class folders and named layouts, and wrong ones are refused."""

from pathlib import Path

import pytest

from dcclip_cli.data.pair import Pair
from dcclip_cli.data.table import write_parquet
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval import prompts
from dcclip_cli.eval.datasets import known_names, open_dataset


@pytest.fixture
def folders(tmp_path: Path, pairs: list[Pair]) -> Path:
    """Three class folders with 2, 1 and 1 images, and one without any."""
    root = tmp_path / "动物"
    for number, name in enumerate(("big_cat/1.png", "big_cat/2.PNG", "dog/1.png", "wolf/1.png", "wolf/notes.txt")):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pairs[number].image)
    (root / "empty").mkdir()
    return root


def test_equal_first_captions_are_one_class_in_each_language_by_itself(tmp_path: Path, pairs: list[Pair]) -> None:
    image = pairs[0].image
    rows = [
        Pair("1", image, zh=("猫", "小猫"), en=("cat",)),
        Pair("2", image, zh=("狗",), en=("dog",)),
        Pair("3", image, zh=("猫",), en=("tomcat",)),
    ]
    write_parquet(tmp_path / "pets.parquet", rows)
    pets = open_dataset(str(tmp_path / "pets.parquet"))
    assert pets.name == "pets" and pets.count == 3
    assert list(pets.classes) == ["en", "zh"]
    assert pets.classes["zh"].names == ("猫", "狗")
    assert pets.classes["zh"].labels.tolist() == [0, 1, 0]
    assert pets.classes["en"].names == ("cat", "dog", "tomcat")
    assert pets.picture(0).size == (48, 48)


def test_a_language_that_is_not_complete_is_left_out_and_can_not_be_asked_for(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    file = tmp_path / "pets.parquet"
    write_parquet(file, [Pair("1", pairs[0].image, zh=("猫",)), Pair("2", pairs[0].image, zh=("狗",), en=("dog",))])
    assert list(open_dataset(str(file)).classes) == ["zh"]
    with pytest.raises(DcclipError, match="pets has no class names in en") as caught:
        open_dataset(str(file), ["zh", "en"])
    assert "--languages zh" in caught.value.hint
    write_parquet(file, [Pair("1", pairs[0].image, zh=("猫",)), Pair("2", pairs[0].image, en=("dog",))])
    with pytest.raises(DcclipError, match="class is unknown"):
        open_dataset(str(file))


def test_folder_names_are_class_names_in_their_own_language(folders: Path) -> None:
    animals = open_dataset(str(folders))
    assert list(animals.classes) == ["en"]
    assert animals.classes["en"].names == ("big cat", "dog", "wolf")
    assert animals.classes["en"].labels.tolist() == [0, 0, 1, 2]
    (folders / "dog").rename(folders / "狗")
    assert list(open_dataset(str(folders)).classes) == ["zh"]


def test_classes_yaml_names_the_folders_in_both_languages(folders: Path) -> None:
    names = "big_cat: {en: cat, zh: 猫}\ndog: {en: dog, zh: 狗}\nwolf: {en: dog, zh: 狼}\nunused: {en: x, zh: y}\n"
    (folders / "classes.yaml").write_text(names, "utf-8")
    animals = open_dataset(str(folders), ["zh", "en"])
    assert animals.classes["zh"].names == ("猫", "狗", "狼")
    assert animals.classes["en"].names == ("cat", "dog")
    assert animals.classes["en"].labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("big_cat: {en: cat, zh: 猫}", "no names for the folder dog"),
        ("- 猫", "no mapping from folders to names"),
        ("big_cat: {en: [", "is not YAML"),
        ("{big_cat: {zh: 猫}, dog: {en: dog}, wolf: {en: 1}}", "names all folders neither in en nor in zh"),
    ],
)
def test_a_wrong_classes_yaml_says_what_is_wrong(folders: Path, text: str, complaint: str) -> None:
    (folders / "classes.yaml").write_text(text, "utf-8")
    with pytest.raises(DcclipError, match=complaint):
        open_dataset(str(folders))


def test_cifar10_and_cifar10_cn_are_the_same_images(tmp_path: Path, pairs: list[Pair]) -> None:
    for number, folder in enumerate(prompts.read("cifar10").folders):
        (tmp_path / "cifar10/test" / folder).mkdir(parents=True)
        (tmp_path / "cifar10/test" / folder / "0001.png").write_bytes(pairs[number].image)
    english = open_dataset("cifar10", data_root=tmp_path).classes
    chinese = open_dataset("cifar10-cn", data_root=tmp_path).classes
    assert english["en"].names[3] == "cat" and chinese["zh"].names[3] == "猫"
    assert english["en"].labels.tolist() == chinese["zh"].labels.tolist() == list(range(10))
    (tmp_path / "cifar10/test/kitten").mkdir()
    (tmp_path / "cifar10/test/kitten/1.png").write_bytes(pairs[0].image)
    with pytest.raises(DcclipError, match="kitten is no class of cifar10"):
        open_dataset("cifar10", data_root=tmp_path)
    (tmp_path / "cifar10/test/kitten/1.png").unlink()
    (tmp_path / "cifar10/test/frog/0001.png").unlink()
    with pytest.raises(DcclipError, match="1 of 10 classes have no images, frog for one"):
        open_dataset("cifar10-cn", data_root=tmp_path)


def test_imagenet_has_a_thousand_classes_in_the_order_of_the_wnids() -> None:
    imagenet = prompts.read("imagenet")
    assert imagenet.folders == sorted(imagenet.folders) and len(imagenet.folders) == 1000
    places = [imagenet.folders.index(wnid) for wnid in ("n01440764", "n02123045", "n03594945")]
    assert [imagenet.names["en"][place] for place in places] == ["tench", "tabby cat", "jeep"]
    assert [imagenet.names["zh"][place] for place in places] == ["丁鲷", "虎斑猫", "吉普车"]
    assert len(set(imagenet.names["zh"])) == 1000
    assert all(template.count("{}") == 1 for several in imagenet.templates.values() for template in several)


def test_an_unknown_name_gets_the_nearest_one() -> None:
    assert {"cifar10", "cifar10-cn", "imagenet", "imagenet-cn"} <= set(known_names())
    with pytest.raises(DcclipError, match="imagnet-cn is neither") as caught:
        open_dataset("imagnet-cn")
    assert caught.value.hint == "did you mean imagenet-cn?"


def test_a_name_without_its_images_says_where_they_are_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DcclipError, match="needs its images") as caught:
        open_dataset("imagenet-cn")
    assert "imagenet/val/n01440764/" in caught.value.hint
    with pytest.raises(DcclipError, match="imagenet/val is no folder"):
        open_dataset("imagenet", data_root=tmp_path)
