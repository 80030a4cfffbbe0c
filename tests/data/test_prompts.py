"""Class names are complete, in their sources' label order, and Chinese as readers write it; each finds its class."""

import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from opencc import OpenCC

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.data import prompts
from dcclip_cli.data.prompts import ClassIndex, Prompts, normalized
from dcclip_cli.eval import registry
from dcclip_cli.eval.registry import ELEVATER, SETS, KnownSet

FOLDER = Path(prompts.__file__).parent
SIZES = {entry.name: entry.classes for entry in ELEVATER} | {"objectnet": 313, "imagenet": 1000}
OTHERS = [name for name in SIZES if name != "imagenet"]
BOTH = [(name, language) for name in SIZES for language in ("en", "zh")]
TWICE = {("imagenet", "en"): ["missile", "sunglasses"]}  # two classes each, of one English name
HAN = re.compile(r"[\u3400-\u9fff]+")
LATIN = re.compile(r"[A-Za-z]")
DIGITS = {str(digit) for digit in range(10)}  # MNIST's names: a Chinese text has the digit too
MODELS = {"stanford_cars", "fgvc_aircraft"}  # whose makers' model names stay as they are
# Lists of birds and fish print 鳽 and 魟: the simplified 𫛚 and 𫚉 are in hardly any font or vocabulary.
AS_PRINTED = {"麻鳽", "美洲麻鳽", "魟鱼", "刺魟"}
WITH_LATIN = {"DVD播放机", "DVD影碟机", "T恤", "T恤衫", "USB数据线", "U盘"}  # no other word is in use


@pytest.fixture(scope="module")
def to_simplified() -> OpenCC:
    return OpenCC("t2s")


def content(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def alternates(name: str, language: str) -> dict[str, list[str]]:
    return content(name)[language].get("alternates", {})


def chinese(name: str) -> list[str]:
    """Everything that is written in Chinese in a file."""
    synonyms = [label for group in alternates(name, "zh").values() for label in group]
    return [*content(name)["zh"]["names"], *synonyms, *content(name)["zh"]["templates"]]


@pytest.mark.parametrize(("name", "language"), BOTH)
def test_no_two_classes_share_a_name_or_a_synonym(name: str, language: str) -> None:
    names = content(name)[language]["names"]
    synonyms = alternates(name, language)
    assert set(synonyms) <= set(names)
    counted = Counter([*names, *(label for group in synonyms.values() for label in group)])
    twice = TWICE.get((name, language), [])
    assert sorted(label for label, times in counted.items() if times > 1) == twice
    assert not set(synonyms) & set(twice)
    assert [label for label in counted if label != " ".join(label.split())] == []


@pytest.mark.parametrize(("name", "language"), BOTH)
def test_each_template_has_one_place_for_the_name(name: str, language: str) -> None:
    templates = content(name)[language]["templates"]
    assert len(templates) == len(set(templates)) > 0
    assert [template for template in templates if template.count("{}") != 1] == []


@pytest.mark.parametrize("name", OTHERS)
def test_no_english_name_is_left_in_a_chinese_list(name: str) -> None:
    names = content(name)["zh"]["names"]
    assert [label for label in names if not HAN.search(label) and label not in DIGITS] == []
    assert set(names) & set(content(name)["en"]["names"]) <= DIGITS
    if name not in MODELS:
        assert [label for label in chinese(name) if LATIN.search(label) and label not in WITH_LATIN] == []


@pytest.mark.parametrize("name", SIZES)
def test_chinese_is_simplified_with_full_width_punctuation(name: str, to_simplified: OpenCC) -> None:
    assert {label for label in chinese(name) if to_simplified.convert(label) != label} <= AS_PRINTED
    assert [label for label in chinese(name) if re.search(r"[,;:!?()\"']|\.(?!\d)", label)] == []
    assert [
        label for label in chinese(name) if re.search(r"[\u3400-\u9fff] [A-Za-z0-9]|[A-Za-z0-9] [\u3400-\u9fff]", label)
    ] == []
    templates = content(name)["zh"]["templates"]
    assert [template for template in templates if template[-1] not in "。！"] == []


def test_one_thing_has_one_chinese_name_or_synonyms_in_all_sets() -> None:
    words: dict[str, dict[str, set[str]]] = {}
    for name in SIZES:
        texts = content(name)
        for english, label in zip(texts["en"]["names"], texts["zh"]["names"], strict=True):
            earlier = words.setdefault(english.casefold(), {}).setdefault(name, set())
            earlier |= {label, *alternates(name, "zh").get(label, [])}
    shared = {english: by_set for english, by_set in words.items() if len(by_set) > 1}
    assert len(shared) > 100
    assert [english for english, by_set in shared.items() if not set.intersection(*by_set.values())] == []


FACTS = [
    ("caltech101", 6, "bass", "bass", "鲈鱼"),  # the fish, not the guitar
    ("cifar100", 67, "ray", "ray", "鳐鱼"),  # the fish, not the light
    ("cifar100", 72, "seal", "seal", "海豹"),  # the animal, not the stamp
    ("fer2013", 4, "sad", "sad", "悲伤"),  # Kaggle's folders, sorted, have neutral here
    ("flowers102", 0, "pink primrose", "pink primrose", "美丽月见草"),  # Oxford's label 1
    ("food101", 16, "cheese_plate", "cheese plate", "奶酪拼盘"),  # after cheesecake in TFDS
    ("gtsrb", 14, "00014", "stop", "停车让行"),
    ("kitti_distance", 3, "3", "a photo i took with no car.", "没有车"),
    ("pets", 5, "Bengal", "Bengal", "孟加拉猫"),  # cats and dogs mixed, not cats first as CLIP lists them
    ("resisc45", 42, "terrace", "terrace", "梯田"),  # fields, not the one at a house
    ("stanford_cars", 5, "Acura Integra Type R 2001", "Acura Integra Type R 2001", "2001款讴歌Integra Type R"),
    ("voc2007", 10, "diningtable", "diningtable", "餐桌"),  # by the alphabet, not grouped as CLIP lists them
]


@pytest.mark.parametrize(("name", "label", "folder", "english", "said"), FACTS)
def test_a_label_means_the_same_class_as_in_its_source(
    name: str, label: int, folder: str, english: str, said: str
) -> None:
    texts = content(name)
    assert texts["folders"][label] == folder
    assert texts["en"]["names"][label] == english
    assert texts["zh"]["names"][label] == said


CRANES = Prompts(["n1", "n2", "n3"], {"en": ["crane", "crane", "dog"]}, {"en": {"dog": ["hound"]}}, {"en": ["{}"]})


@pytest.mark.parametrize("known", [entry for entry in SETS.values() if entry.classes], ids=lambda entry: entry.name)
def test_every_class_is_found_by_its_key_and_named_in_both_languages(known: KnownSet) -> None:
    texts = prompts.read(registry.prompts_of(known))
    keys = ClassIndex(texts)
    assert [keys.of_folder(folder) for folder in texts.folders] == list(range(known.classes))
    assert registry.languages_of(known) == ["en", "zh"]
    for language in registry.languages_of(known):
        assert len(texts.names[language]) == known.classes and texts.templates[language]
    keys.check_order(texts.names["en"], known.name)


def test_a_name_that_two_classes_share_leads_to_neither() -> None:
    keys = ClassIndex(CRANES)
    assert [keys.find(name) for name in ("crane", "Hound", "N1", "cat")] == [None, 2, 0, None]
    assert [keys.of_folder(name) for name in ("2", "3", "n2")] == [2, None, 1]
    assert normalized("Golden_Retriever  (dog)") == normalized("golden retriever dog") and normalized("猫。") == "猫"


def test_a_mapping_needs_every_class_once_and_an_order_that_of_the_classes() -> None:
    keys = ClassIndex(CRANES)
    assert keys.mapping(["dog", "n1", "n2"], "x").tolist() == [2, 0, 1]
    with pytest.raises(DcclipError, match="x: unknown class cat"):
        keys.mapping(["dog", "n1", "cat"], "x")
    with pytest.raises(DcclipError, match="x: class n2 is missing"):
        keys.mapping(["dog", "n1", "n1"], "x")
    with pytest.raises(DcclipError, match="x: class 0 is 'n2' instead of 'n1'"):
        keys.check_order(["n2", "n1", "dog"], "x")


def test_plain_names_are_alternates_of_names_in_the_list() -> None:
    plain = prompts.read("country211").plain_names
    assert plain == {"zh": {"中国香港": "香港", "中国澳门": "澳门", "中国台湾": "台湾"}}
    for name in prompts.all_names():
        class_texts = prompts.read(name)
        for language, names in class_texts.plain_names.items():
            assert all(alias in class_texts.alternates[language][label] for label, alias in names.items()), name


# Each caught a wrong sense in a public list; docs/reference/class-names-imagenet.csv has 313 others.
@pytest.fixture(scope="module")
def imagenet() -> dict[str, Any]:
    return content("imagenet")


@pytest.mark.parametrize(
    ("name", "first", "last", "only_here"),
    [
        ("imagenet_a", "n01498041", "n12267677", "n01580077"),  # stingray, acorn; jay
        ("imagenet_r", "n01443537", "n12267677", "n01484850"),  # goldfish, acorn; great white shark
    ],
)
def test_a_subset_has_two_hundred_of_the_thousand_in_their_order(
    imagenet: dict[str, Any], name: str, first: str, last: str, only_here: str
) -> None:
    subset = content(name)
    alias = content({"imagenet_a": "imagenet_r", "imagenet_r": "imagenet_a"}[name])
    assert subset["subset_of"] == "imagenet"
    wnids = subset["folders"]
    assert len(wnids) == 200 and wnids == sorted(set(wnids)) and set(wnids) <= set(imagenet["folders"])
    assert (wnids[0], wnids[-1]) == (first, last)
    assert only_here in wnids and only_here not in alias["folders"]


def test_the_documented_decisions_are_those_in_the_file(imagenet: dict[str, Any]) -> None:
    with (Path(__file__).parents[2] / "docs/reference/class-names-imagenet.csv").open(encoding="utf-8") as file:
        decided = list(csv.DictReader(file))
    assert len(decided) == 313
    places = [imagenet["folders"].index(row["wnid"]) for row in decided]
    assert places == sorted(set(places))
    assert [(imagenet["en"]["names"][place], imagenet["zh"]["names"][place]) for place in places] == [
        (row["english"], row["ours"]) for row in decided
    ]
