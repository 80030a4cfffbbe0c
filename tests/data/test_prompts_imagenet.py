"""ImageNet's class names say in Chinese what the class is, and no two classes can be confused by name."""

import csv
import re
from pathlib import Path
from typing import Any

import pytest

from dcclip_cli.data import prompts
from tests.data.test_prompts import content

HAN = re.compile(r"[\u3400-\u9fff]+")
WITH_LATIN = {"CD播放器", "CD机", "CRT显示器", "iPod", "T恤", "T恤衫", "福特T型车"}  # written so in Chinese

# Each caught a wrong sense in a public list, or in all three.
RIGHT_SENSE = {
    "n01558993": "旅鸫",  # robin: not 蓝鹀, the bunting
    "n01608432": "鸢",  # kite: the bird, not 风筝
    "n01734418": "王蛇",  # kingsnake: not 国王
    "n01774750": "捕鸟蛛",  # tarantula: the tropical spider, not 狼蛛
    "n01828970": "蜂虎",  # bee eater: not 蜜蜂, the bee
    "n02012849": "鹤",  # crane: the bird
    "n02108089": "拳师犬",  # boxer: the dog
    "n02113186": "卡迪根威尔士柯基犬",  # cardigan: the dog
    "n02114712": "红狼或鬃狼",  # red wolf or maned wolf: not 红太狼, the cartoon
    "n02123159": "虎纹猫",  # tiger cat: not 山猫, the lynx
    "n02128385": "花豹",  # leopard: not 美洲豹, the jaguar
    "n02346627": "豪猪",  # porcupine: not 刺猬, the hedgehog
    "n02437616": "大羊驼",  # llama: not 骆驼, the camel
    "n02951585": "开罐器",  # can opener: not 开瓶器
    "n02963159": "开衫",  # cardigan: the garment
    "n03018349": "瓷器柜",  # china cabinet: not 中国, the country
    "n03126707": "起重机",  # crane: the machine
    "n03710721": "连体泳衣",  # maillot: the bathing suit, not 浴衣
    "n03733131": "五月柱",  # maypole: not 花柱, the style of a flower
    "n03786901": "研钵",  # mortar: the vessel, not 砂浆
    "n03804744": "钉子",  # nail: not 指甲
    "n03954731": "木工刨",  # plane: the tool, not 飞机
    "n03967562": "犁",  # plow: the farm tool, not 铲雪机
    "n04067472": "渔线轮",  # reel: not 卷轴, the scroll
    "n04311174": "钢鼓",  # steel drum: the instrument, not 滚筒
    "n07717556": "奶油南瓜",  # butternut squash: not just 南瓜
    "n07747607": "橙子",  # orange: not 橘子, the mandarin
    "n12998815": "伞菌",  # agaric: not 木耳
}


@pytest.fixture(scope="module")
def imagenet() -> dict[str, Any]:
    return content("imagenet")


def test_there_are_a_thousand_names_in_both_languages_in_the_order_of_the_wnids(imagenet: dict[str, Any]) -> None:
    assert len(imagenet["folders"]) == len(imagenet["en"]["names"]) == len(imagenet["zh"]["names"]) == 1000
    assert imagenet["folders"] == sorted(imagenet["folders"])
    assert [imagenet["en"]["names"][place] for place in (0, 281, 609)] == ["tench", "tabby cat", "jeep"]


def test_chinese_is_written_in_han_with_no_remarks_but_for_a_few_latin_letters(imagenet: dict[str, Any]) -> None:
    synonyms = [other for several in imagenet["zh"]["alternates"].values() for other in several]
    assert {text for text in (*imagenet["zh"]["names"], *synonyms) if not HAN.fullmatch(text)} == WITH_LATIN


@pytest.mark.parametrize(("wnid", "name"), RIGHT_SENSE.items())
def test_a_word_of_several_senses_has_the_right_one(imagenet: dict[str, Any], wnid: str, name: str) -> None:
    assert imagenet["zh"]["names"][imagenet["folders"].index(wnid)] == name


def test_chinese_templates_have_full_width_punctuation_and_no_spaces(imagenet: dict[str, Any]) -> None:
    sentence = re.compile(r"[\u3400-\u9fff，]*{}[\u3400-\u9fff，]*。")
    assert [template for template in imagenet["zh"]["templates"] if not sentence.fullmatch(template)] == []


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
    subset, other = content(name), content({"imagenet_a": "imagenet_r", "imagenet_r": "imagenet_a"}[name])
    assert subset["subset_of"] == "imagenet"
    wnids = subset["folders"]
    assert len(wnids) == 200 and wnids == sorted(set(wnids)) and set(wnids) <= set(imagenet["folders"])
    assert (wnids[0], wnids[-1]) == (first, last)
    assert only_here in wnids and only_here not in other["folders"]


def test_a_subset_takes_its_names_and_templates_from_the_whole() -> None:
    adversarial, renditions, whole = (prompts.read(name) for name in ("imagenet_a", "imagenet_r", "imagenet"))
    assert (adversarial.names["en"][0], adversarial.names["zh"][0]) == ("stingray", "黄貂鱼")
    assert (renditions.names["en"][-1], renditions.names["zh"][-1]) == ("acorn", "橡子")
    assert adversarial.templates == renditions.templates == whole.templates


def test_the_documented_decisions_are_those_in_the_file(imagenet: dict[str, Any]) -> None:
    with (Path(__file__).parents[2] / "docs/reference/class-names-imagenet.csv").open(encoding="utf-8") as file:
        decided = list(csv.DictReader(file))
    assert len(decided) == 313
    places = [imagenet["folders"].index(row["wnid"]) for row in decided]
    assert places == sorted(set(places))
    assert [(imagenet["en"]["names"][place], imagenet["zh"]["names"][place]) for place in places] == [
        (row["english"], row["ours"]) for row in decided
    ]
