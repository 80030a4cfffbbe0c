"""Does a caption speak of the page around the picture, rather than of the picture?"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dcclip_cli.curation.candidate import Drop
from dcclip_cli.curation.rules.base import Rule

if TYPE_CHECKING:
    from dcclip_cli.data.pair import Language


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


# Traditional forms of the characters in the phrases below, so that each phrase stands there once.
_SIMPLER = str.maketrans(
    "圖點擊暫無來網絡絕聯繫係請刪權歸載識別掃碼關標題內檢視儲與為這張頁錯誤資訊鏈連結顯維護電廣註冊會員購買價覽閱讀說",
    "图点击暂无来网络绝联系系请删权归载识别扫码关标题内检视储与为这张页错误资讯链连结显维护电广注册会员购买价览阅读说",
)

# Whatever else the caption says: programs say this, never people.
_GENERATED = _any(
    r"\b(?:image|photo|picture) may contain\b",
    r"\bmay be an? (?:\w+ ){0,3}(?:image|photo|illustration|graphic) of\b",
    r"\bno (?:photo|image|picture|video) description\b|^(?:an? )?image result for\b",
    "(?:图片|图像|照片|相片)[中里]?可能(?:包含|含有|有)",
    "可能是(?:包含|显示|含有).{0,12}(?:图片|图像|照片)",
    "未提供照片说明|没有照片描述",
)
# Whatever else the caption says: pages say this to the reader.
_PAGE = _any(
    r"\b(?:click|tap|press|hover)\b[\w ]{0,20}\b(?:to|for) "
    r"(?:enlarge|zoom|view|see|open|expand|download|play|load|larger|full|more|details|shop|buy|share|copy)\b",
    r"\bclick (?:here|(?:on )?(?:the |this )?(?:image|photo|picture|thumbnail))\b|\bright[- ]click (?:to|and)\b",
    r"\bview (?:full[- ]?size|larger (?:image|photo|picture)|in gallery)\b",
    r"\bno (?:image|photo|picture|thumbnail)s? (?:available|found|yet|uploaded)\b",
    r"\b(?:image|photo|picture|preview|thumbnail)s? (?:is |are |was )?(?:currently )?"
    r"(?:not (?:available|found|loaded)|unavailable|coming soon|missing)\b",
    r"\b(?:image|photo|picture) (?:source|credits?|courtesy)\s*[:：]",
    r"\bthis image has been resized\b|\bimage (?:is )?loading\b|\bplaceholder image\b|\ball rights reserved\b",
    r"\byour browser does(?:n'?t| not)\b",
    r"\b(?:share|follow us|pin(?: it)?) on (?:facebook|twitter|pinterest|instagram|weibo)\b",
    r"^photo by [\w .@'-]{1,40} on (?:unsplash|pexels|pixabay|flickr|instagram|facebook)\b",
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
)
# Only if the caption says nothing else, digits and signs apart: "Image 3", 图片1, 图 2/9.
_EMPTY = _any(
    "(?:(?:an?|the|this|my|new|default|main|full|large|small|header|hero|featured|product|gallery|post|blog|article|"
    "cover|profile|banner|background|stock|uploaded|untitled|unnamed|sample|related) )*"
    "(?:image|img|picture|pic|photo|photograph|thumbnail|attachment|screenshot)s?(?: of| copy)?",
    "(?:image|photo|picture)(?: (?:description|title|caption|name|alt|text|file|here|of|no|number|gallery|from))+",
    "(?:untitled|unnamed|new) (?:file|design|document)",
    "(?:alt|alt ?text|caption|placeholder|untitled|unnamed|no ?(?:title|name|caption|description))(?: copy)?",
    "undefined|null|nan|n a|lorem ipsum.*",
    "(?:[此该本这一张个的幅原主大小新]|这是|缩略|预览|默认|新建|上传|产品|商品|宝贝|文章|新闻|网络|资料|高清|相关|更多|详情|轮播|"
    "展示|封面|首页|正文|插入)*(?:图|图片|图像|照片|相片|配图|插图|题图|贴图|附图|组图|图集|网图|如图|见图)(?:所示|如下|集)?",
    "(?:图片|图像|照片)?(?:描述|说明|标题|名称|注释)|未命名(?:图片|文件|设计|作品)?|无标题|默认标题|无题|未知|暂无|输入文字|测试",
)
_SIGNS = re.compile(r"[\W\d_]+")


class BoilerplateRule(Rule):
    """Drops captions that a page says of any picture: 点击查看大图, "image may contain", "Untitled-1", 图片来自网络.

    Traditional and Simplified are treated alike. Words that a picture's own caption may hold as well (stock photo,
    高清图片) count only where nothing else is said.
    """

    kind: Literal["boilerplate"] = "boilerplate"
    phrases: tuple[str, ...] = Field((), description="More words that make a caption boilerplate wherever they stand")

    def caption_reason(self, caption: str, language: Language) -> Drop | None:
        """`caption-generated`, `caption-boilerplate` or `caption-placeholder`."""
        text = caption.translate(_SIMPLER)
        if found := _GENERATED.search(text):
            return Drop("caption-generated", f"holds {found[0]!r}")
        if found := _PAGE.search(text):
            return Drop("caption-boilerplate", f"holds {found[0]!r}")
        if mine := next((phrase for phrase in self.phrases if phrase and phrase.lower() in caption.lower()), None):
            return Drop("caption-boilerplate", f"holds {mine!r}")
        if len(text) <= 60 and _EMPTY.fullmatch(_SIGNS.sub(" ", text).strip()):
            return Drop("caption-placeholder", "says only that there is a picture")
        return None
