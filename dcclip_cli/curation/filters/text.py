"""Filters on the text of a caption: garbled encodings, markup, file names, boilerplate,
repetition, length.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator

from dcclip_cli.core.errors import Message
from dcclip_cli.curation.filters.image import Filter
from dcclip_cli.curation.filters.language import HAN, LETTER
from dcclip_cli.curation.normalize_text import as_gbk
from dcclip_cli.data.pair import Language
from dcclip_cli.data.reading import Drop


def _any_of(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


def _first_match(patterns: Iterable[re.Pattern[str]], caption: str) -> re.Match[str] | None:
    return next((match for pattern in patterns if (match := pattern.search(caption))), None)


_GARBLED = (
    re.compile("[\ufffd\u0080-\u009f]"),
    re.compile(r"[\ue000-\uf8ff\U000f0000-\U0010ffff]"),  # private use: icon fonts
    re.compile(
        "锟斤|斤拷|烫烫烫|屯屯屯"
    ),  # U+FFFD twice in UTF-8, read as GBK; a debugger's empty memory
    re.compile(
        r"[?？]{4,}|(?:[?？]{2,}[\s,，.。]+){2,}"
    ),  # ? for each character that could not be encoded
    re.compile(r"[\u00a1-\u00ff]{5,}"),  # GBK, read as Latin-1
    re.compile(
        r"(?:[Ãâåæçèéä][\u0080-\u00bf‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ€]{1,2}){2,}"
    ),  # UTF-8, read as Windows-1252
    re.compile(
        r"\\u[0-9a-fA-F]{4}|(?:%[0-9A-F]{2}){3,}|(?:\\x[0-9a-f]{2}){2,}|=\?utf-8\?"
    ),  # never decoded
)


class GarbledFilter(Filter):
    """Drops captions that a wrong encoding made unreadable and that normalization could not
    repair.
    """

    kind: Literal["garbled"] = "garbled"

    def check_caption(self, caption: str, language: Language) -> Drop | None:
        if caption.isascii() and not any(map(caption.__contains__, "?%\\=")):
            return None
        if match := _first_match(_GARBLED, caption):
            return Drop("caption-garbled", f"holds {match[0][:20]!r}")
        if HAN.search(caption):
            # UTF-8 read as GBK: 绾㈣壊璺戣溅 was 红色跑车. Almost nothing of real Chinese decodes as UTF-8.
            decoded = as_gbk(caption).decode("utf-8", "replace")
            if len(HAN.findall(decoded)) >= max(2, 2 * decoded.count("\ufffd")):
                return Drop("caption-garbled", "UTF-8 that was read as GBK")
        return None


_TAGS = (
    "a|abbr|b|blockquote|body|br|button|center|code|dd|div|dl|dt|em|embed|figcaption|figure|font|footer|form|h[1-6]|"
    "head|header|hr|html|i|iframe|img|input|ins|label|li|link|meta|nav|noscript|object|ol|option|p|param|picture|pre|s|"
    "script|section|select|small|source|span|strike|strong|style|sub|sup|svg|table|tbody|td|th|tr|tt|u|ul|video"
)
_MARKUP = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"<(?:/\s*)?(?:{_TAGS})(?:\s+[^<>]*|\s*/)?>",  # a whole tag; "<3" and "a < b" are none
        r"<(?:img|a|div|span|iframe|script|style|table|font)\s[^<>]*=",  # one that was cut off
        r"<!--|-->|<!\[CDATA\[|<\?(?:php|xml)",
        # what normalization could not resolve
        r"&(?:amp;)*(?:[a-z]{2,8}|#\d{2,6}|#x[0-9a-f]{2,6});",
        # BBCode, WordPress
        (
            r"\[/?(?:img|url|b|i|u|quote|color|size|caption|gallery|attachment|vc_\w+)(?:[= "
            r"][^\]]*)?\](?!\()"
        ),
        r"!\[[^\]]*\]\([^)]*\)|\]\(https?:",  # Markdown
        r"\[\[(?:file|image|文件|图像|檔案):",  # wikis
        r"\bfunction\s*\(|\bdocument\.\w|\bvar \w+\s*=|\$\(|=>\s*\{",  # scripts
        r"\{\{[^{}]{0,80}\}\}|<%|\{%",  # templates
        r"(?<![\w-])[\w-]{1,40}\s?\{\s?[\w-]{1,40}\s?:[^{}]*;",  # style sheets
        r"[\[{]\s*\"\w+\"\s*:",  # JSON
        r"\b(?:href|src|alt|style|class|onclick|width)\s*=\s*[\"'&]",
    )
)


class MarkupFilter(Filter):
    """Drops captions that contain HTML, BBCode, Markdown, wiki text, scripts or style sheets."""

    kind: Literal["markup"] = "markup"

    def check_caption(self, caption: str, language: Language) -> Drop | None:
        if not any(map(caption.__contains__, "<>&[{(=")):
            return None
        match = _first_match(_MARKUP, caption)
        return Drop("caption-html", f"holds {match[0][:40]!r}") if match else None


_SUFFIX = r"jpe?g|jfif|png|gif|webp|avif|bmp|tiff?|svg|hei[cf]|psd|cr2|nef|arw|dng"
_FILE = re.compile(rf"[\w)\]}}]\.(?:{_SUFFIX})(?![A-Za-z0-9])", re.IGNORECASE)

# Numbers that cameras, phones and programs give to images; then what people and servers append to
# them.
_CAMERA = re.compile(
    r"(?<![A-Za-z])(?:IMG[-_]\d{8}[-_]WA\d{4}|"
    r"_?(?:IMG|IMGP|DSC|DSCN|DSCF|DSCI|_MG|MG|PICT|PIC|MVI|MVIMG|PXL|GOPR|DJI|CIMG|SAM|SDC|KIF|HPIM|VID|STA|DCP|SNV|PANO|"
    r"BURST|FOTO|WP|LRM|SCAN|图像|照片|相片)[\s_-]*[E_-]?\d{3,}"
    r"|P\d{7}|PA\d{6}|R\d{7}|L\d{7}|S\d{7}|\d{3}[_-]\d{4}|\d{8}[_-]\d{6}|"
    r"(?:mmexport|wx_camera_|微信图片_?|QQ图片|Camera_|Screenshot[\s_-]*|Screen Shot |屏幕快照 ?|截屏|截图_?|"
    r"螢幕快照 ?|WeChat ?Image_?|WhatsApp Image |Snipaste_)\d{4,}[\d\s_.:-]*(?:at "
    r"[\d.:]+|(?:上|下)午[\d.:]+)?"
    r")(?!\d)",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"\d{3}")  # as all that _CAMERA finds
_ADDED = re.compile(
    r"(?<![A-Za-z])(?:HDR|edit(?:ed)?|copy|scaled|resized?|crop(?:ped)?|thumb(?:nail)?|small|medium|large|web|final|burst|"
    r"cover|portrait|night|pano|lr|jpe?g|x|am|pm)(?![A-Za-z])|副本|编辑|拷贝|上午|下午",
    re.IGNORECASE,
)

_ADDRESS = re.compile(
    r"(?:https?|ftp)\s?[:：]\s?//|(?<![A-Za-z0-9])www\s?\.\s?[\w-]{1,63}\.|//[\w-]{1,63}\.[\w.-]{1,200}/|"
    r"(?<![\w.+-])[\w.+-]{1,64}@[A-Za-z0-9-]+\.[A-Za-z]{2,}",
    re.IGNORECASE,
)
_DOMAIN = re.compile(
    r"(?:[a-z0-9-]+\.)+(?:com|net|org|cn|info|biz|io|co|cc|tv|me|hk|tw|top|xyz|vip|shop|site|edu|gov|uk|us|de|jp)"
    r"(?:[/:?#]\S*)?",
    re.IGNORECASE,
)

_LONGEST_NAME = 255  # bytes, on most file systems
_CODE = re.compile(
    # hashes
    r"(?=\D*\d)(?:[0-9a-f]{12,}|[0-9A-F]{12,}|[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})"
    r"|[\x21-\x7e]*[A-Za-z0-9]_[A-Za-z0-9][\x21-\x7e]*"  # red_car, TB1xYz_!!0-item_pic
    r"|[A-Za-z0-9]+(?:-[A-Za-z0-9]+)+-\d{3,}"  # red-car-12345
    r"|[a-z0-9]+(?:-[a-z0-9]+){4,}"  # the-red-car-on-a-hill; state-of-the-art has four parts
    r"|[A-Za-z]?:?(?:[\\/][\w.-]+){2,}"  # /images/red/car
    r"|[A-Za-z]*(?:\d+[A-Za-z]+){4,}\d*|\d{3,4}\s?[xX×*]\s?\d{3,4}(?:\s?px)?",  # a1b2c3; 800x600
    re.ASCII,
)


class FilenameFilter(Filter):
    """Drops captions that are only a file name (with or without suffix) or a camera number, and
    captions with a URL.

    A caption with a camera number and words about the image is kept: "IMG_2034 vacation in Paris".
    """

    kind: Literal["filename"] = "filename"

    def check_caption(self, caption: str, language: Language) -> Drop | None:
        """`caption-url`, `caption-filename` or `caption-camera`."""
        if "." in caption or any(map(caption.__contains__, ":：/@")):
            if match := _ADDRESS.search(caption) or _DOMAIN.fullmatch(caption):
                return Drop("caption-url", f"holds {match[0]!r}")
            if _FILE.search(caption):
                return Drop("caption-filename", "ends like an image file")
        if len(caption) > _LONGEST_NAME:
            return None
        if (
            _NUMBERED.search(caption)
            and _CAMERA.search(caption)
            and not LETTER.search(_ADDED.sub("", _CAMERA.sub("", caption)))
        ):
            return Drop("caption-camera", "a number given by a camera or a program")
        if _CODE.fullmatch(caption):
            return Drop("caption-filename", "reads like the stem of a file's name")
        return None


# Traditional forms of the characters in the phrases below, so that each phrase is listed once.
_SIMPLER = str.maketrans(
    "圖點擊暫無來網絡絕聯繫係請刪權歸載識別掃碼關標題內檢視儲與為這張頁錯誤資訊鏈連結顯維護電廣註冊會員購買價覽閱讀說",
    "图点击暂无来网络绝联系系请删权归载识别扫码关标题内检视储与为这张页错误资讯链连结显维护电广注册会员购买价览阅读说",
)

# One of these is in all that the English patterns of _GENERATED and _PAGE find: most captions need
# not be searched.
_HINTS = (
    *(
        "may contain",
        "may be a",
        "description",
        "result for",
        "click",
        "tap",
        "press",
        "hover",
        "view",
        "available",
    ),
    *(
        "found",
        "yet",
        "upload",
        "coming soon",
        "missing",
        "loaded",
        "source",
        "credit",
        "courtesy",
        "resized",
    ),
    *(
        "loading",
        "placeholder",
        "rights reserved",
        "browser",
        "facebook",
        "twitter",
        "pinterest",
        "instagram",
        "weibo",
    ),
    *("unsplash", "pexels", "pixabay", "flickr"),
)
# Dropped whatever else the caption says: only programs write this. English, then Chinese.
_GENERATED = (
    _any_of(
        r"\b(?:image|photo|picture) may contain\b",
        r"\bmay be an? (?:\w+ ){0,3}(?:image|photo|illustration|graphic) of\b",
        r"\bno (?:photo|image|picture|video) description\b|^(?:an? )?image result for\b",
    ),
    _any_of(
        "(?:图片|图像|照片|相片)[中里]?可能(?:包含|含有|有)",
        "可能是(?:包含|显示|含有).{0,12}(?:图片|图像|照片)",
        "未提供照片说明|没有照片描述",
    ),
)
# Dropped whatever else the caption says: pages say this to the reader.
_PAGE = (
    _any_of(
        r"\b(?:click|tap|press|hover)\b[\w ]{0,20}\b(?:to|for) "
        r"(?:enlarge|zoom|view|see|open|expand|download|play|load|larger|full|more|details|shop|buy|share|copy)\b",
        r"\bclick (?:here|(?:on )?(?:the |this "
        r")?(?:image|photo|picture|thumbnail))\b|\bright[- ]click (?:to|and)\b",
        r"\bview (?:full[- ]?size|larger (?:image|photo|picture)|in gallery)\b",
        r"\bno (?:image|photo|picture|thumbnail)s? (?:available|found|yet|uploaded)\b",
        r"\b(?:image|photo|picture|preview|thumbnail)s? (?:is |are |was )?(?:currently )?"
        r"(?:not (?:available|found|loaded)|unavailable|coming soon|missing)\b",
        r"\b(?:image|photo|picture) (?:source|credits?|courtesy)\s*[:：]",
        r"\bthis image has been resized\b|\bimage (?:is )?loading\b|\bplaceholder "
        r"image\b|\ball rights reserved\b",
        r"\byour browser does(?:n'?t| not)\b",
        r"\b(?:share|follow us|pin(?: it)?) on (?:facebook|twitter|pinterest|instagram|weibo)\b",
        r"^photo by [\w .@'-]{1,40} on (?:unsplash|pexels|pixabay|flickr|instagram|facebook)\b",
    ),
    _any_of(
        "点击[^，。]{0,6}(?:看|放大|进入|浏览|下载|打开|阅读|加载|展开|收起|关闭|购买|链接)|点击[大原全]?图",
        "(?:查看|浏览|下载)(?:大图|原图|全图|更多图片|高清图)",
        "(?:图片?|图文|照片)(?:[均皆都]|全部)?(?:来自|来源于?|源自|源于|取自|转自|摘自)于?[:：]?\\s?(?:互联)?网(?!球)",
        "图源[:：]?\\s?(?:互联)?网|(?:图片|照片|资料)来源\\s?[:：]",
        "如有侵权|侵权(?:必究|请|联系|立?即?删|告知)|联系(?:我们)?(?:删除|作者)|版权[归为属所]|未经(?:授权|许可|允许)",
        "转载请|请勿转载",
        "(?:暂无|尚无|暂没有)(?:相关)?(?:图片?|照片|描述|简介|数据|内容|标题|说明|介绍|信息|评论)|^没有(?:图片|照片)",
        "图片?(?:正在)?(?:加载|载入|显示|上传)(?:中|失败|不出|错误|异常)|^(?:正在)?加载中",
        "(?:图片?|页面)已?(?:不存在|丢失|失效|被删除)",
        "右键(?:另存|保存|复制)|长按(?:图片|识别|保存|二维码|扫)",
        "扫码关注|扫描[^，。]{0,4}二维码(?:关注|添加|加|下载|查看)|(?:关注|添加)[^，。]{0,6}(?:公众号|微信号)",
        "在此处?(?:输入|添加|插入)|请输入|添加(?:图片)?(?:注释|描述)|图片(?:描述|说明|注释)[:：]?$",
    ),
)
# Dropped only if the caption says nothing else, apart from digits and signs: "Image 3", 图片1, 图
# 2/9.
_EMPTY = _any_of(
    "(?:(?:an?|the|this|my|new|default|main|full|large|small|header|hero|featured|product|gallery|post|blog|article|"
    "cover|profile|banner|background|stock|uploaded|untitled|unnamed|sample|related) )*"
    "(?:image|img|picture|pic|photo|photograph|thumbnail|attachment|screenshot)s?(?: of| copy)?",
    "(?:image|photo|picture)(?: "
    "(?:description|title|caption|name|alt|text|file|here|of|no|number|gallery|from))+",
    "(?:untitled|unnamed|new) (?:file|design|document)",
    "(?:alt|alt ?text|caption|placeholder|untitled|unnamed|no "
    "?(?:title|name|caption|description))(?: copy)?",
    "undefined|null|nan|n a|lorem ipsum.*",
    "(?:[此该本这一张个的幅原主大小新]|这是|缩略|预览|默认|新建|上传|产品|商品|宝贝|文章|新闻|网络|资料|高清|相关|更多|详情|轮播|"
    "展示|封面|首页|正文|插入)*(?:图|图片|图像|照片|相片|配图|插图|题图|贴图|附图|组图|图集|网图|如图|见图)(?:所示|如下|集)?",
    "(?:图片|图像|照片)?(?:描述|说明|标题|名称|注释)|未命名(?:图片|文件|设计|作品)?|无标题|默认标题|无题|未知|暂无|输入文字|测试",
)
_SIGNS = re.compile(r"[\W\d_]+")


class BoilerplateFilter(Filter):
    """Drops captions that fit any image: 点击查看大图, "image may contain", "Untitled-1", 图片来自网络.

    Traditional and Simplified Chinese are treated alike. Words that can be part of a real caption
    (stock photo, 高清图片) count only if the caption contains nothing else.
    """

    kind: Literal["boilerplate"] = "boilerplate"
    phrases: tuple[str, ...] = Field(
        (), description="Additional phrases; captions that contain one are dropped"
    )

    def check_caption(self, caption: str, language: Language) -> Drop | None:
        """`caption-generated`, `caption-boilerplate` or `caption-placeholder`."""
        text = caption.translate(_SIMPLER)
        small = caption.lower()
        english = any(map(small.__contains__, _HINTS))
        chinese = not caption.isascii()
        for reason, patterns in (("caption-generated", _GENERATED), ("caption-boilerplate", _PAGE)):
            for pattern, can_match in zip(patterns, (english, chinese), strict=True):
                if can_match and (match := pattern.search(text)):
                    return Drop(reason, f"holds {match[0]!r}")
        if phrase := next(
            (phrase for phrase in self.phrases if phrase and phrase.lower() in caption.lower()),
            None,
        ):
            return Drop("caption-boilerplate", f"holds {phrase!r}")
        if len(text) <= 60 and _EMPTY.fullmatch(_SIGNS.sub(" ", text).strip()):
            return Drop("caption-placeholder", "says only that there is a picture")
        return None


_EMOJI = re.compile(
    r"[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u231a-\u23ff\u24c2\u25a0-\u27bf\u2934\u2935"
    r"\u2b00-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
)
_NUMBER = re.compile(
    r"[0-9]{1,4}(?:[:.,/、，：] ?[0-9]{1,2}){0,3} ?[%‰°]?"
)  # 24, 10:30, 1/2, 100 %
_KEYCAP = re.compile(r"[0-9#*]\ufe0f?\u20e3")


class WordlessFilter(Filter):
    """Drops captions that contain only emoji, digits or symbols; short numbers (24, 10:30) are
    kept.
    """

    kind: Literal["wordless"] = "wordless"

    def check_caption(self, caption: str, language: Language) -> Drop | None:
        if LETTER.search(caption) or "〇" in caption:
            return None
        if _EMOJI.search(caption) or _KEYCAP.search(caption):
            return Drop("caption-emoji", "emoji and no word")
        if _NUMBER.fullmatch(caption):
            return None
        return Drop("caption-wordless", "digits and signs, no word")


# characters: enough to find repetition, and hostile text costs at most a few ms
_LOOKED_AT = 2_000
_MANY = 12  # with fewer words or character pairs, the share of the most frequent one means little
_LONGEST_UNIT = 17  # characters of what is repeated
_CODES = range(1 << 16)  # those of all but rare characters
_TIMES = 5  # in a row: 哈哈哈哈 is kept
_FEW = 8  # captions, for which patterns are faster than arrays


@cache
def _runs() -> tuple[re.Pattern[str], ...]:
    """Patterns of a letter in a row, of a sign, and of up to 2 and up to 17 characters with signs
    between.
    """
    repeated = rf"(?:\W{{0,3}}\1){{{_TIMES - 1},}}"
    return (
        re.compile(rf"([^\W\d_])\1{{{_TIMES - 1},}}", re.IGNORECASE),
        re.compile(r"([^\w\s])\1{9,}"),  # a line of dots or dashes is common, ten are not
        re.compile(rf"([^\W\d_]\S?){repeated}"),
        re.compile(rf"([^\W\d_](?:[^\n]{{0,{_LONGEST_UNIT - 2}}}?\S)?){repeated}"),
    )


@cache
def _folded() -> np.ndarray:
    """By code: that of the lower-case letter, 0 for what is no letter, digit or `_`."""
    letters = (
        letter.lower()[0] if letter.isalnum() or letter == "_" else "\0"
        for letter in map(chr, _CODES)
    )
    return np.fromiter(map(ord, letters), np.uint16)


def _repeats(codes: np.ndarray, length: int, run: int) -> np.ndarray:
    """Where at least half of a `run` of codes begins that equal the ones `length` before them."""
    equal = codes[length:] == codes[:-length]
    compared = 1
    while 2 * compared <= run:
        equal = equal[compared:] & equal[:-compared]
        compared = 2 * compared
    return np.flatnonzero(equal)


def _parts(caption: str) -> list[Any]:
    """The pairs of adjacent characters of a Chinese caption, the words of another one."""
    han = () if caption.isascii() else HAN.findall(caption)
    return list(pairwise(han)) if len(han) > _MANY else caption.lower().split()


class RepetitionFilter(Filter):
    """Drops captions that repeat a letter, syllable or word many times in a row, or consist mostly
    of one word.
    """

    kind: Literal["repetition"] = "repetition"
    max_share: float = Field(
        0.4, gt=0, le=1, description="Maximum share of a long caption's most frequent word"
    )

    def suspects(self, captions: Sequence[str]) -> set[int]:
        """Those where letters and digits, without what is between them, are equal to earlier ones
        in long runs.
        """
        if len(captions) < _FEW:
            return set(range(len(captions)))
        captions = [caption[:_LOOKED_AT] for caption in captions]
        codes = np.frombuffer("\n".join(captions).encode("utf-32-le", "surrogatepass"), "<u4")
        positions = [np.flatnonzero(codes > _CODES[-1]), _repeats(codes, 1, 9)]
        letters = _folded()[np.minimum(codes, _CODES[-1])]
        places = np.flatnonzero(letters)
        letters = letters[places]
        for length in range(1, _LONGEST_UNIT + 1):
            positions.append(places[_repeats(letters, length, (_TIMES - 1) * length)])
        ends = np.cumsum([len(caption) + 1 for caption in captions])
        numbers = set(np.searchsorted(ends, np.concatenate(positions), "right").tolist())
        for number, parts in enumerate(map(_parts, captions)):
            # that the most frequent part can have
            highest_count = len(parts) - len(set(parts)) + 1
            if len(parts) >= _MANY and highest_count > self.max_share * len(parts):
                numbers.add(number)
        return numbers

    def check_caption(self, caption: str, language: Language) -> Drop | None:
        caption = caption[:_LOOKED_AT]
        beginnings = Counter(zip(caption, caption[1:], caption[2:], strict=False))
        # A longer unit begins with the same three characters each time. Its pattern takes longer
        # than all filters.
        patterns = _runs()[: 4 if max(beginnings.values(), default=0) >= _TIMES else 3]
        if run := _first_match(patterns, caption):
            return Drop("caption-repetition", f"{run[1]!r} again and again")
        parts = _parts(caption)
        if len(parts) >= _MANY:
            part, count = Counter(parts).most_common(1)[0]
            if count > self.max_share * len(parts):
                return Drop("caption-repetition", f"{''.join(part)!r} {count} times")
        return None


_WORD = re.compile(r"[^\W_]+(?:['’.&/+-][^\W_]+)*")
_ENCODED = re.compile(r"[A-Za-z0-9+/=_-]{41,}")  # encoded data, not words
Length = Annotated[int, Field(ge=0, le=1_000_000)]


class LengthFilter(Filter):
    """Drops captions that are too short or too long; Chinese is counted in characters, English in
    words.
    """

    kind: Literal["length"] = "length"
    zh: tuple[Length, Length] = Field(
        (1, 128), description="Minimum and maximum characters of a Chinese caption"
    )
    en: tuple[Length, Length] = Field(
        (1, 64), description="Minimum and maximum number of words in an English caption"
    )

    @field_validator("zh", "en")
    @classmethod
    def _in_order(cls, limits: tuple[int, int]) -> tuple[int, int]:
        if limits[0] > limits[1]:
            raise ValueError(Message("give the minimum first, then the maximum"))
        return limits

    def check_caption(self, caption: str, language: Language) -> Drop | None:
        length = len("".join(caption.split())) if language == "zh" else len(_WORD.findall(caption))
        minimum, maximum = self.zh if language == "zh" else self.en
        counted = (
            f"{length} {'characters' if language == 'zh' else 'words'}, allowed "
            f"{minimum} to {maximum}"
        )
        if length < minimum:
            return Drop("caption-short", counted)
        if length > maximum:
            return Drop("caption-long", counted)
        longest = max(map(len, _ENCODED.findall(caption)), default=0)
        return Drop("caption-long", f"a word of {longest} letters") if longest else None
