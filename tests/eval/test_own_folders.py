"""Class folders of known data sets get the names of these, and `dcclip datasets NAME --classes-yaml` writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.datasets import classes_yaml, open_dataset
from tests.eval import layouts


def names_of(folder: Path, *folders: str) -> dict[str, tuple[str, ...]]:
    layouts.class_folders(folder, folders)
    return {language: truth.names for language, truth in open_dataset(str(folder)).truth.items()}  # type: ignore[union-attr]


def test_wordnet_ids_are_the_classes_of_imagenet_in_both_languages(tmp_path: Path) -> None:
    found = names_of(tmp_path / "part", "n01440764", "n02123159", "n13054560")
    assert found == {"en": ("tench", "tiger cat", "bolete"), "zh": ("丁鱥", "虎纹猫", "牛肝菌")}


def test_keys_of_another_data_set_are_its_classes(tmp_path: Path) -> None:
    found = names_of(tmp_path / "land", "AnnualCrop", "SeaLake")
    assert found == {"en": ("annual crop land", "lake or sea"), "zh": ("一年生作物农田", "湖泊或海洋")}


def test_names_and_numbers_stay_what_they_say(tmp_path: Path) -> None:
    assert names_of(tmp_path / "pets", "cat", "mouse") == {"en": ("cat", "mouse")}
    assert names_of(tmp_path / "numbers", "0", "1") == {"en": ("0", "1")}
    assert names_of(tmp_path / "动物", "猫", "狗") == {"zh": ("狗", "猫")}
    with pytest.raises(DcclipError, match="n00000001 is a WordNet id, and the names of its class are not known"):
        names_of(tmp_path / "unknown", "n01440764", "n00000001")


def test_the_classes_of_a_data_set_as_yaml_name_its_folders(tmp_path: Path) -> None:
    layouts.class_folders(tmp_path, ["00000", "00017"])
    (tmp_path / "classes.yaml").write_text(classes_yaml("gtsrb-cn"), "utf-8")
    assert names_of(tmp_path)["zh"] == ("限速20公里", "禁止驶入")
    assert len(yaml.safe_load(classes_yaml("imagenet"))) == 1000
    with pytest.raises(DcclipError, match="flickr30k has captions, no classes"):
        classes_yaml("flickr30k")
