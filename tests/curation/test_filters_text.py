"""What is repaired in captions, captions that filters drop or keep, a caption's language; filtering of one pair."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from dcclip_cli.curation.filters import DEFAULT_FILTERS, AnyFilter, Filter
from dcclip_cli.curation.filters.language import LanguageFilter, ScriptFilter
from dcclip_cli.curation.filters.text import (
    BoilerplateFilter,
    FilenameFilter,
    LengthFilter,
    RepetitionFilter,
)
from dcclip_cli.curation.normalize_text import NormalizeOptions, check_characters, normalize
from dcclip_cli.curation.options import CollectOptions
from dcclip_cli.curation.slices import FilterResult, filter_pairs
from dcclip_cli.curation.sources.base import Candidate
from dcclip_cli.curation.sources.tables import TableSource
from dcclip_cli.data.pair import LANGUAGES, Language, Pair
from dcclip_cli.data.reading import Drop
from tests.curation.conftest import MakeImage


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("\u3000蝴蝶，张开了翅膀！\n", "蝴蝶，张开了翅膀！"),
        ("“你好”——他说：《Ｔ恤》……", "“你好”——他说：《Ｔ恤》……"),
        ("“Hello,” she said… it’s 5′", "“Hello,” she said… it’s 5′"),
        (" cafe\u0301 ", "caf\u00e9"),
        ("two\r\n lines\tand   spaces", "two lines and spaces"),
        ("一只\u200b猫\ufeff", "一只猫"),
        ("👨\u200d👩\u200d👧 family", "👨\u200d👩\u200d👧 family"),
        ("猫&amp;amp;狗 &#x732b;&nbsp;", "猫&狗 猫"),
        ("MÃ¼nchen at night", "München at night"),
        ("ä¸€å\x8fªçŒ«åœ¨ç\x9d¡è§‰", "一只猫在睡觉"),
        ("绾㈣壊璺戣溅", "红色跑车"),  # UTF-8 read as GBK
        ("ºìÉ«ÅÜ³µ", "红色跑车"),  # GBK read as Latin-1
        ("联通", "联通"),  # whose GBK bytes are UTF-8 by chance
        ("über café à la carte", "über café à la carte"),
    ],
)
def test_a_caption_is_repaired_and_its_punctuation_is_kept(caption: str, expected: str) -> None:
    assert normalize(caption, "zh", NormalizeOptions()) == expected


def test_chinese_captions_can_be_simplified() -> None:
    simplify = NormalizeOptions(simplify=True)
    assert normalize("一隻黃色的狗，臺北夜市", "zh", simplify) == "一只黄色的狗，台北夜市"
    assert normalize("a sign saying 臺北", "en", simplify) == "a sign saying 臺北"
    assert normalize("臺北夜市", "zh", NormalizeOptions()) == "臺北夜市"


@given(st.text(alphabet="一只黄色的狗在草地上奔跑，。！“”《》、的是人了国中大 ABCabc123", max_size=40))
def test_chinese_text_in_order_is_never_changed_but_for_its_spaces(caption: str) -> None:
    assert normalize(caption, "zh", NormalizeOptions()) == " ".join(caption.split())


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("一只猫\0", "caption-control"),
        ("a \x1b[31mred cat", "caption-control"),
        ("half a pair \ud83d", "caption-control"),
        ("猫" * 10_001, "caption-long"),
        ("猫" * 10_000, None),
        ("ä¸\x80å\x8fª", None),  # `normalize` may repair it
    ],
)
def test_control_characters_and_documents_are_no_captions(caption: str, expected: str | None) -> None:
    drop = check_characters(caption)
    assert (drop.reason if drop else None) == expected


ANY_LANGUAGE = {
    "caption-garbled": """a c\ufffdt|锟斤拷锟斤拷|?????? ??|\\u4e00\\u53ea\\u732b|%E7%8C%AB%E5%92%AA
\ue001 home""",
    "caption-html": """<b>a red car</b>|<p>一只猫</p>|a cat<br>on a mat|<a href=x>红色跑车|<!-- a cat -->
[img]cat[/img]|[caption id="attachment_12"]a cat|alt="a cat"|![cat](cat)|[[File:Cat]] a cat|body { color: red; }
$(document).ready(function(){|{"title": "cat"}""",
    "caption-url": """http://example.com/a.jpg|www.taobao.com 女装|example.com|购买 https://t.cn/x
write to a@b.com|更多精彩 www.abc.cn""",
    "caption-filename": """white-cat.jpg|红色汽车.jpg|IMG_1234.JPG|photo (1).png|未标题-1.psd|red_car
the-red-car-on-a-hill|red-car-12345|5f2b9c0e8d7a4b1c|123e4567-e89b-12d3-a456-426614174000|TB1xYz_!!0-item_pic
a1b2c3d4e5|800x600|/images/red/car""",
    "caption-camera": """IMG_1234|DSC0001|DSC_0001 (2)|DSCF1234-edited|P1010023|100_1234|20190304_123456
IMG_20190304_123456_HDR|IMG-20190304-WA0001|PXL_20210304_123456|照片 0012|微信图片_20190304123456
mmexport1524000000000|Screenshot 2020-01-02 at 10.11.12|屏幕快照 2019-01-02 上午10.11.12""",
    "caption-emoji": "😀😀😀|❤️|👍🏽 👍|👨‍👩‍👧|🇨🇳|1️⃣|😀!!!|★★★★★",
    "caption-wordless": "12345678|!!!|-- --|2019-03-04|￥99.00 / 100",
    "caption-generated": """Image may contain: cat, sofa|May be an image of 2 people
No photo description available.|图像可能包含：猫、沙发|可能是包含下列内容的图片：1 人|未提供照片說明""",
    "caption-boilerplate": """Click to enlarge|click here to view larger image|No image available
Image not found|image coming soon|All rights reserved|点击查看大图|點擊查看大圖|红色跑车 点击查看大图
此图片来自网络|图片来源于网络，如有侵权请联系删除|图片来源：某某社|暂无图片|暫無圖片|图片加载失败|长按识别二维码
扫码关注我们|版权归原作者所有""",
    "caption-placeholder": """image|Image 3|Untitled-1|picture 12|default image|alt text|undefined|图片|圖片
图片1|图 2/9|未命名|无标题|产品图片|这是一张图片|如图所示""",
    "caption-repetition": """aaaaaaa|a very cuuuuuuute cat|cat cat cat cat cat cat
buy now buy now buy now buy now buy now|sale!!!!!!!!!!!!|哈哈哈哈哈哈|小猫小猫小猫小猫小猫
女装 女装 女装 女装 女装|红色连衣裙，红色连衣裙，红色连衣裙，红色连衣裙，红色连衣裙""",
    "caption-language": """猫がベッドで寝ている|東京の夜景|東京駅|関西国際空港|고양이|красная машина|Αθήνα|قطة|żaba
un chat sur le lit|ein roter Sportwagen|ein roter Sportwagen auf der Straße|puesta de sol en la playa|un café à Paris
una playa con palmeras|zwei Männer spielen Schach|vue aérienne de la ville|con mèo trên giường""",
    "caption-long": "data iVBORw0KGgoAAAANSUhEUgAAAAUAAAAFCAYAAACNbyblAAAAHElEQVQI12P4",
}

FIT_ENGLISH = """a cat|dog|Ｔｏｋｙｏ at night|tiramisu|kimono|a piñata|café|flag: São Tomé & Príncipe|woman’s hat
A fox in a snowy field|Climbers on a snowy ridge|A goat nears a roof 's edge|An igloo.|A brown potato.|A polo shirt.
A ripe, red tomato!|Chinese New Year 春 greeting card with lanterns|São Paulo skyline at night
IMG_2034 vacation in Paris|café in Paris|a piñata at a party|crème brûlée|Boeing 747 landing
F-117 Nighthawk|state-of-the-art kitchen|jack-in-the-box|forget-me-not|Los Angeles skyline|Rio de Janeiro at night
Vincent van Gogh self portrait|Mona Lisa by Leonardo da Vinci|AT&T store|R&B singer|amazon.com box on a porch
photo of a red car|stock photo of a cat|a picture of a dog|Screenshot of Windows 95|may contain nuts label
alpha (α) particle|10 × 10 grid|2015|10:30|What?!|Oh no!!!|Zzz|www|COVID-19 test|iPhone 15 Pro Max 256GB
Beyoncé on stage|Düsseldorf skyline at night|flag: Côte d’Ivoire|hand clicking a mouse|BMW M3 2015|top hat|game die
Chinese New Year 春 greeting card with red lanterns|untitled painting by Rothko|no parking sign|no photo sign
Notre Dame de Paris cathedral|Volkswagen Golf GTI|happy birthday to you|pizza margherita|a dachshund|Orcish Sovereign"""

FIT_CHINESE = """一只猫|猫|人山人海，好热闹！|BMW汽车|武井咲写真|东京 の 地铁站|ㄅㄆㄇ 注音|髮型屋招牌|東京大学|新年会
苹果 iPhone 15 手机壳|NBA球星科比|臺北夜市|一隻黃色的狗在草地上奔跑|哈哈哈哈|α波|维生素B12片
优の良品 芒果干|卡拉OK|3D打印机|β-胡萝卜素|〇|二〇〇八年北京奥运会|高清图片素材 红色跑车|拍照片的女孩|墙上的照片|地图
插图风格的小猫|图书馆|点击鼠标的手|扫码支付的顾客|二维码|照片来自网球场|无人机航拍|未知的星球|一张图表|“你好，世界！”
价格￥99|①号线地铁站|10×10厘米的纸盒|Canon EOS 5D Mark IV 相机|好好学习天天向上|人山人海，好热闹！|网络摄像头
图片编辑软件界面|来自网红店的蛋糕|穿红裙的女孩……|可能是最美的照片|下载按钮图标|DNA|𠮷野家|乾隆皇帝|香港茶餐廳|髮型屋|高鐵站"""


def split(captions: str) -> list[str]:
    return captions.replace("\n", "|").split("|")


def first_reason(caption: str, language: Language) -> str | None:
    text = normalize(caption, language, NormalizeOptions())
    drops = (rule.check_caption(text, language) for rule in DEFAULT_FILTERS)
    return next((drop.reason for drop in drops if drop), None)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("reason", ANY_LANGUAGE)
def test_a_fault_is_named_for_what_it_is_whichever_language_the_caption_is_said_to_be_in(
    reason: str, language: Language
) -> None:
    captions = split(ANY_LANGUAGE[reason])
    assert {caption: first_reason(caption, language) for caption in captions} == dict.fromkeys(captions, reason)


@pytest.mark.parametrize(("language", "captions"), [("en", FIT_ENGLISH), ("zh", FIT_CHINESE)])
def test_captions_that_look_a_little_like_a_fault_stay(language: Language, captions: str) -> None:
    assert {caption: first_reason(caption, language) for caption in split(captions)} == dict.fromkeys(split(captions))


class NoExclamation(Filter):
    """An example of a filter of one's own."""

    kind: Literal["no-exclamation"] = "no-exclamation"
    most: int = 0

    def check_caption(self, caption: str, language: Language) -> Drop | None:
        count = sum(map(caption.count, "!！"))
        return Drop("caption-exclamation", f"{count} exclamation marks") if count > self.most else None


def test_a_filter_is_added_by_a_class_and_its_name_in_the_union(picture: Callable[..., bytes]) -> None:
    rule = TypeAdapter(AnyFilter | NoExclamation).validate_python({"kind": "no-exclamation", "most": 1})
    options = CollectOptions.model_validate({"sources": [{"kind": "table", "path": "x"}]}).model_copy(
        update={"filters": (rule,)}
    )
    result = next(filter_pairs([Candidate(Pair("a", picture(), zh=("买！买！",), en=("a cat!",)))], options))
    assert (result.pair.zh, result.pair.en) == ((), ("a cat!",))
    assert result.captions == (("zh", "买！买！", Drop("caption-exclamation", "2 exclamation marks")),)


LENGTH = LengthFilter(zh=(2, 4), en=(2, 3))
WORDS = "cheap shoes, red shoes, blue shoes, shoes sale, buy shoes, new shoes, shoes"


@pytest.mark.parametrize(
    ("each", "caption", "language", "expected"),
    [
        (LENGTH, "猫", "zh", "caption-short: 1 characters, allowed 2 to 4"),
        (LENGTH, "黑 猫", "zh", ""),  # two characters: the space doesn't count
        (LENGTH, "一只大黑猫", "zh", "caption-long: 5 characters, allowed 2 to 4"),
        (LENGTH, "cat", "en", "caption-short: 1 words, allowed 2 to 3"),
        (LENGTH, "black-and-white cat", "en", ""),  # two words
        (LENGTH, "a very black cat", "en", "caption-long: 4 words, allowed 2 to 3"),
        (ScriptFilter(min_share=0.5), "苹果 iPhone 手机壳", "zh", ""),
        (ScriptFilter(min_share=0.5), "Canon EOS Mark 机", "zh", "caption-script: 1 Han characters, 3 Latin words"),
        (ScriptFilter(min_share=0.5), "NBA 球星", "en", "caption-script: 2 Han characters, 1 Latin words"),
        (ScriptFilter(min_share=1), "第 12 号，α 波", "zh", ""),
        (RepetitionFilter(max_share=0.1), WORDS, "en", "caption-repetition: 'shoes,' 5 times"),
        (BoilerplateFilter(phrases=("旗舰店",)), "某某旗舰店 红色跑车", "zh", "caption-boilerplate: holds '旗舰店'"),
        (BoilerplateFilter(phrases=("Buy Now",)), "a car, buy now", "zh", "caption-boilerplate: holds 'Buy Now'"),
        (FilenameFilter(), "File:Cat on a mat.jpg (crop)", "zh", "caption-filename: ends like an image file"),
        (LanguageFilter(), "一只猫", "en", "caption-language: said to be en, looks like zh"),
        (LanguageFilter(), "猫がいる", "zh", "caption-language: said to be zh, looks like neither"),
        (LanguageFilter(), "кошка", "zh", "caption-language: said to be zh, looks like neither"),
        *((LanguageFilter(), text, language, "") for language in LANGUAGES for text in ("2015", "DNA", "AT&T", "😀")),
    ],
)
def test_a_filter_follows_its_options(each: Filter, caption: str, language: Language, expected: str) -> None:
    drop = each.check_caption(caption, language)
    assert (f"{drop.reason}: {drop.detail}" if drop else "") == expected


def test_repetition_is_suspected_in_few_of_many_captions_and_wherever_it_is() -> None:
    repeated: tuple[str, ...] = (
        "哈哈哈哈哈",
        "go, Go  GO; go! gO",
        "新年快乐，新年快乐新年快乐！新年快乐。新年快乐",
        "a " * 8 + "b c d e f",
    )
    repeated += ("buy now!! " * 5, "很好😀" * 5, "so " + "." * 10, "ab-" * 5, "𠮷" * 5, "红色 blue " * 3 + "x " * 8)
    common = ("一只猫，一只狗，一只鸟，一只鱼", "a cat, a dog and a bird see a fish", "", "2019-03-04")
    captions = [text for both in zip(repeated, common * 3, strict=False) for text in both]
    suspects = RepetitionFilter().suspects(captions)
    dropped = {at for at, text in enumerate(captions) if RepetitionFilter().check_caption(text, "zh")}
    assert dropped <= suspects and {captions[at] for at in suspects} == set(repeated)


@pytest.mark.parametrize(
    "piece",
    ["a", "a-", "a_", "猫 ", "点击", "<a ", "a{", "{{", "www.", "x@", "-", "?", "&amp;", "ÃÂ", "click ", '["', "é"],
)
def test_no_caption_costs_a_filter_more_than_a_quarter_of_a_second(piece: str) -> None:
    caption = (piece * 10_000)[:9_999] + "="
    for rule in DEFAULT_FILTERS:
        start = time.process_time()
        rule.check_caption(caption, "en")
        assert time.process_time() - start < 0.25, rule.kind


def options(**more: Any) -> CollectOptions:
    return CollectOptions(sources=(TableSource(path=Path("x")),), **more)


def filter_pair(candidate: Candidate, options: CollectOptions) -> FilterResult:
    return next(filter_pairs([candidate], options))


def test_a_pair_is_kept_with_the_captions_that_pass(picture: MakeImage) -> None:
    pair = Pair("a", picture(), zh=(" 一只猫！ ", "a cat", "一只猫！"), en=("a cat", "日本の猫"))
    result = filter_pair(Candidate(pair), options())
    assert result.drop is None and result.decoded is not None
    assert (result.pair.zh, result.pair.en) == (("一只猫！",), ("a cat",))
    assert [(language, caption, drop.reason) for language, caption, drop in result.captions] == [
        ("zh", "a cat", "caption-language"),
        ("zh", "一只猫！", "caption-repeated"),
        ("en", "日本の猫", "caption-language"),
    ]


def test_without_filters_any_readable_pair_is_kept(picture: MakeImage) -> None:
    collect_options = options(filters=())
    result = filter_pair(Candidate(Pair("a", picture(size=(1, 90)), zh=("a cat",), en=("猫",))), collect_options)
    assert (result.drop, result.pair.zh, result.pair.en) == (None, ("a cat",), ("猫",))
    assert filter_pair(Candidate(Pair("a", b"GIF89a", zh=("猫",))), collect_options).drop is not None
