"""Test sets of one's own are read from pairs and class folders, and groups stand for what they say."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.data import prompts
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Language, Pair
from dcclip_cli.eval.dataset import Captions, Classes, DataSet
from dcclip_cli.eval.datasets import Templates, classes_yaml, open_dataset
from dcclip_cli.eval.evaluate import EvalOptions
from dcclip_cli.eval.registry import ELEVATER, IMAGENETS, RETRIEVAL, KnownSet, expand, find
from tests.eval import layouts


def classes(dataset: DataSet, language: Language) -> Classes:
    truth = dataset.truth[language]
    assert isinstance(truth, Classes)
    return truth


def test_equal_first_captions_are_one_class_in_each_language_by_itself(tmp_path: Path, pairs: list[Pair]) -> None:
    image = pairs[0].image
    rows = [
        Pair("1", image, zh=("猫", "小猫"), en=("cat",)),
        Pair("2", image, zh=("狗",), en=("dog",)),
        Pair("3", image, zh=("猫",), en=("tomcat",)),
    ]
    write_parquet(tmp_path / "pets.parquet", rows)
    pets = open_dataset(str(tmp_path / "pets.parquet"))
    assert pets.name == "pets" and len(pets.images) == 3
    assert list(pets.truth) == ["en", "zh"]
    assert classes(pets, "zh").names == ("猫", "狗")
    assert classes(pets, "zh").labels.tolist() == [0, 1, 0]
    assert classes(pets, "en").names == ("cat", "dog", "tomcat")
    assert pets.images.load(0).size == (48, 48)
    texts = open_dataset(str(tmp_path / "pets.parquet"), retrieval=True).truth["zh"]
    assert isinstance(texts, Captions)
    assert texts.texts == ("猫", "小猫", "狗") and texts.images == ((0, 2), (0,), (1,))  # both images are right for 猫


@pytest.mark.parametrize("kind", ["folders", "pairs"])
@pytest.mark.parametrize("templates", ["own", "name", "compact"])
def test_own_data_sets_have_bare_names_or_generic_prompts(tmp_path: Path, kind: str, templates: Templates) -> None:
    names = [(" 猫\u3000", "cat"), ("猫", " cat "), ("狗", "dog")]
    if kind == "pairs":
        path = tmp_path / "p.parquet"
        write_parquet(path, [Pair(str(row), layouts.image(row), (zh,), (en,)) for row, (zh, en) in enumerate(names)])
    else:
        path = tmp_path / "p"
        layouts.class_folders(path, ["a", "b", "c"])
        layouts.write(path / "a/notes.txt", "no image")
        (path / "empty").mkdir()
        named = {folder: {"zh": zh, "en": en} for folder, (zh, en) in zip("abc", names, strict=True)}
        (path / "classes.yaml").write_text(json.dumps(named))
    dataset = open_dataset(str(path), templates=templates)
    names_of: dict[Language, tuple[str, ...]] = {"zh": ("猫", "狗"), "en": ("cat", "dog")}
    for language, expected in names_of.items():
        truth = classes(dataset, language)
        assert truth.templates == (prompts.compact(language) if templates == "compact" else ("{}",))
        assert (truth.names, truth.labels.tolist()) == (expected, [0, 0, 1])


def test_a_language_that_is_not_complete_is_left_out_and_refused(tmp_path: Path, pairs: list[Pair]) -> None:
    file = tmp_path / "pets.parquet"
    write_parquet(file, [Pair("1", pairs[0].image, zh=("猫",)), Pair("2", pairs[0].image, zh=("狗",), en=("dog",))])
    assert list(open_dataset(str(file)).truth) == ["zh"]
    with pytest.raises(DcclipError, match="pets has no class names in en") as caught:
        open_dataset(str(file), ["zh", "en"])
    assert "--languages zh" in caught.value.hint
    write_parquet(file, [Pair("1", pairs[0].image, zh=("猫",)), Pair("2", pairs[0].image, en=("dog",))])
    with pytest.raises(DcclipError, match="class is unknown") as caught:
        open_dataset(str(file))
    assert caught.value.hint.startswith("make the class name the first caption of every pair, in en, in zh, or in both")


def test_elevater_has_twenty_data_sets_with_1151_classes_and_its_four_metrics() -> None:
    assert len(ELEVATER) == 20 and sum(entry.classes for entry in ELEVATER) == 1_151
    assert sum(entry.size or 0 for entry in ELEVATER) == 192_677
    per_class = dict.fromkeys(("caltech101", "fgvc_aircraft", "flowers102", "pets"), "mean_per_class")
    metrics = {entry.name: entry.metric for entry in ELEVATER if entry.metric != "top1"}
    assert metrics == {**per_class, "voc2007": "map11", "hateful_memes": "roc_auc"}
    assert [entry.name for entry in ELEVATER if entry.squash] == ["kitti_distance"]
    assert len(IMAGENETS) == 6 and len(RETRIEVAL) == 5


def test_groups_stand_for_their_data_sets_in_one_language(small: dict[str, KnownSet]) -> None:
    assert len(expand("elevater")) == len(expand("ELEVATER-cn")) == 20
    assert expand("elevater_cn")[0] == "caltech101-cn"
    assert expand("imagenet-family-cn")[-1] == "objectnet-cn"
    assert expand("retrieval") == ["flickr30k", "coco"]
    assert expand("retrieval-cn") == ["flickr30k-cn", "coco-cn", "muge-cn"]
    assert len(expand("all")) == 2 * 26 + 5
    assert len(EvalOptions(datasets=("elevater", "elevater-cn", "dtd")).names) == 40  # each once
    assert expand("cat.parquet") == ["cat.parquet"] and find("muge") is None and find("FGVC_Aircraft-CN")


def test_a_part_of_a_named_data_set_is_taken_where_that_is_asked_for(tmp_path: Path, small: Any) -> None:
    layouts.class_folders(tmp_path / "dtd/test", [f"alpha_{number}" for number in (1, 3, 40)])
    with pytest.raises(DcclipError, match="has 47 images, but 3 were found") as refused:
        open_dataset("dtd", data_root=tmp_path)
    assert "add --partial all or --partial present" in refused.value.hint
    all_classes = open_dataset("dtd-cn", data_root=tmp_path, partial="all")
    assert all_classes.partial == "3 of 47 images of 3 of 47 classes, all are asked for"
    assert classes(all_classes, "zh").labels.tolist() == [1, 3, 40] and len(classes(all_classes, "zh").names) == 47
    present = open_dataset("dtd-cn", data_root=tmp_path, partial="present")
    assert present.partial == "3 of 47 images of 3 of 47 classes, only these are asked for"
    assert classes(present, "zh").labels.tolist() == [0, 1, 2]
    assert classes(present, "zh").names == ("东西1", "东西3", "东西40")
    layouts.class_folders(tmp_path / "pets/test", [f"alpha_{number}" for number in range(37)])
    assert open_dataset("pets", data_root=tmp_path, partial="all").partial == ""


# ---- class folders of known data sets get the names of these


def names_of(folder: Path, *folders: str) -> dict[str, tuple[str, ...]]:
    layouts.class_folders(folder, folders)
    return {language: truth.names for language, truth in open_dataset(str(folder)).truth.items()}  # type: ignore[union-attr]


def test_wordnet_ids_are_the_classes_of_imagenet_and_other_names_stay(tmp_path: Path) -> None:
    folder_names = names_of(tmp_path / "part", "n01440764", "n02123159", "n13054560")
    assert folder_names == {"en": ("tench", "tiger cat", "bolete"), "zh": ("丁鱥", "虎纹猫", "牛肝菌")}
    assert names_of(tmp_path / "pets", "cat", "mouse") == {"en": ("cat", "mouse")}
    assert names_of(tmp_path / "numbers", "0", "1") == {"en": ("0", "1")}
    assert names_of(tmp_path / "动物", "猫", "狗") == {"zh": ("狗", "猫")}
    with pytest.raises(DcclipError, match="n00000001 is a WordNet id whose class name is unknown"):
        names_of(tmp_path / "unknown", "n01440764", "n00000001")


def test_the_classes_of_a_data_set_as_yaml_name_its_folders(tmp_path: Path) -> None:
    layouts.class_folders(tmp_path, ["00000", "00017"])
    (tmp_path / "classes.yaml").write_text(classes_yaml("gtsrb-cn"), "utf-8")
    assert names_of(tmp_path)["zh"] == ("限速20公里", "禁止驶入")
    assert len(yaml.safe_load(classes_yaml("imagenet"))) == 1000
    with pytest.raises(DcclipError, match="flickr30k has captions instead of classes"):
        classes_yaml("flickr30k")
