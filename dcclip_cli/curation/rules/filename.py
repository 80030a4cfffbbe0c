"""Is a caption only the name of a file, a camera's number or an address?"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from dcclip_cli.curation.candidate import Drop
from dcclip_cli.curation.rules.base import Rule
from dcclip_cli.curation.rules.scripts import LETTER

if TYPE_CHECKING:
    from dcclip_cli.data.pair import Language

_SUFFIX = r"jpe?g|jfif|png|gif|webp|avif|bmp|tiff?|svg|hei[cf]|psd|cr2|nef|arw|dng"
_FILE = re.compile(rf"[\w)\]}}]\.(?:{_SUFFIX})(?![A-Za-z0-9])", re.IGNORECASE)

# As cameras, phones and programs number their pictures; then what people and servers add to that.
_CAMERA = re.compile(
    r"(?<![A-Za-z])(?:IMG[-_]\d{8}[-_]WA\d{4}|"
    r"_?(?:IMG|IMGP|DSC|DSCN|DSCF|DSCI|_MG|MG|PICT|PIC|MVI|MVIMG|PXL|GOPR|DJI|CIMG|SAM|SDC|KIF|HPIM|VID|STA|DCP|SNV|PANO|"
    r"BURST|FOTO|WP|LRM|SCAN|图像|照片|相片)[\s_-]*[E_-]?\d{3,}"
    r"|P\d{7}|PA\d{6}|R\d{7}|L\d{7}|S\d{7}|\d{3}[_-]\d{4}|\d{8}[_-]\d{6}|"
    r"(?:mmexport|wx_camera_|微信图片_?|QQ图片|Camera_|Screenshot[\s_-]*|Screen Shot |屏幕快照 ?|截屏|截图_?|"
    r"螢幕快照 ?|WeChat ?Image_?|WhatsApp Image |Snipaste_)\d{4,}[\d\s_.:-]*(?:at [\d.:]+|(?:上|下)午[\d.:]+)?"
    r")(?!\d)",
    re.IGNORECASE,
)
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
    r"(?=\D*\d)(?:[0-9a-f]{12,}|[0-9A-F]{12,}|[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})"  # hashes
    r"|[\x21-\x7e]*[A-Za-z0-9]_[A-Za-z0-9][\x21-\x7e]*"  # red_car, TB1xYz_!!0-item_pic
    r"|[A-Za-z0-9]+(?:-[A-Za-z0-9]+)+-\d{3,}"  # red-car-12345
    r"|[a-z0-9]+(?:-[a-z0-9]+){4,}"  # the-red-car-on-a-hill; state-of-the-art has four parts
    r"|[A-Za-z]?:?(?:[\\/][\w.-]+){2,}"  # /images/red/car
    r"|[A-Za-z]*(?:\d+[A-Za-z]+){4,}\d*|\d{3,4}\s?[xX×*]\s?\d{3,4}(?:\s?px)?",  # a1b2c3; 800x600
    re.ASCII,
)


class FilenameRule(Rule):
    """Drops captions that are a file's name or stem, a camera number or an address, and any with an address in it.

    A camera number with words about the picture beside it stays: "IMG_2034 vacation in Paris".
    """

    kind: Literal["filename"] = "filename"

    def caption_reason(self, caption: str, language: Language) -> Drop | None:
        """`caption-url`, `caption-filename` or `caption-camera`."""
        if found := _ADDRESS.search(caption) or _DOMAIN.fullmatch(caption):
            return Drop("caption-url", f"holds {found[0]!r}")
        if _FILE.search(caption):
            return Drop("caption-filename", "ends like an image file")
        if len(caption) > _LONGEST_NAME:
            return None
        if _CAMERA.search(caption) and not LETTER.search(_ADDED.sub("", _CAMERA.sub("", caption))):
            return Drop("caption-camera", "a number given by a camera or a program")
        if _CODE.fullmatch(caption):
            return Drop("caption-filename", "reads like the stem of a file's name")
        return None
