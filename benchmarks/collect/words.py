"""Planted faults of captions: for each fault a function that makes different ones, and the right drop reasons."""

from collections.abc import Callable
from random import Random

Make = Callable[[Random, str], str]  # from a good caption of the same language

THINGS = {
    "fr": "chien chat maison fleur voiture arbre oiseau montagne église bateau",
    "de": "Hund Katze Haus Blume Auto Baum Vogel Berg Kirche Schiff",
    "es": "perro gato casa flor coche árbol pájaro montaña iglesia barco",
    "ja": "いぬ ねこ 家 花 くるま 木 小鳥 山 教会 ふね",
    "ko": "강아지 고양이 집 꽃 자동차 나무 새 산 교회 배",
    "ru": "собака кошка дом цветок машина дерево птица гора церковь корабль",
    "zh": "小狗 猫咪 房子 鲜花 汽车 大树 小鸟 高山 教堂 轮船",
    "en": "dog cat house flower car tree bird mountain church ship",
}
SENTENCES = {
    "fr": ("le {} est à côté de la fenêtre", "une photo de {} dans le jardin", "un {} avec des enfants sous la pluie"),
    "de": ("ein {} neben dem Fenster", "das ist ein Foto von {} im Garten", "der {} und die Kinder im Regen"),
    "es": ("el {} está al lado de la ventana", "una foto de {} en el jardín", "un {} con los niños bajo la lluvia"),
    "ja": ("窓のそばにいる{}の写真", "庭の{}です", "雨の中の{}と子供たち"),
    "ko": ("창문 옆에 있는 {}", "정원에 있는 {} 사진", "비 속의 {}와 아이들"),
    "ru": ("{} рядом с окном", "фотография: {} в саду", "{} и дети под дождём"),
    "zh": ("窗边的{}", "花园里{}的照片", "雨中的{}和孩子们"),
    "en": ("a {} beside the window", "a photo of a {} in the garden", "a {} with children in the rain"),
}
FILES = {
    "zh": ("微信图片_{}.jpg", "截图{}.png", "IMG_{}.JPG", "mmexport{}.jpg"),
    "en": ("{}.jpg", "Screenshot_{}.png", "photo-{}-large.jpeg", "img_{}_final.webp"),
}
CAMERA = ("IMG_{:04}", "DSC{:05}", "DSC_{:04}", "DSCN{:04}", "P10{:05}", "IMG_20190{:05}_1234")
ADDRESSES = (
    "https://www.example.com/pictures/{}",
    "http://img.example.cn/{}/a.html",
    "www.example.org/view?id={}",
)
PAGE = {
    "zh": ("点击查看大图{}", "此图片来自网络 {}", "暂无图片{}", "图片加载中{}", "如有侵权请联系删除{}"),
    "en": (
        "click to enlarge {}",
        "No image available {}",
        "Click here to view full size image {}",
        "image not found {}",
    ),
}
PROGRAM = {
    "zh": ("图片中可能有：{} 个人", "可能是包含 {} 个人的图片", "没有照片描述。{}"),
    "en": ("Image may contain: {} people", "May be an image of {} people", "No photo description available. {}"),
}
EMPTY = {
    "zh": ("图片{}", "未命名{}", "无标题-{}", "配图 {}", "缩略图{}"),
    "en": ("image {}", "Untitled-{}", "photo{}", "Picture #{}", "thumbnail ({})"),
}
MARKUP = ('<img src="/{}.png" alt="">', "<p>{}</p>", '<a href="/{}">', "<br/>{}<div class=x>")


def repeated(random: Random, caption: str) -> str:
    return random.choice("哈啊呵ahox") * random.randrange(8, 40)


def signs(random: Random, caption: str) -> str:
    return "".join(random.choice("-=_.*~·…！?") for _ in range(random.randrange(6, 30)))


def emoji_only(random: Random, caption: str) -> str:
    return "".join(chr(random.randrange(0x1F600, 0x1F640)) for _ in range(random.randrange(1, 6)))


def control(random: Random, caption: str) -> str:
    at = random.randrange(len(caption) + 1)
    return caption[:at] + chr(random.choice((0, 1, 7, 0x1B))) + caption[at:]


def spoken(language: str) -> Make:
    return lambda random, caption: random.choice(SENTENCES[language]).format(random.choice(THINGS[language].split()))


def filled(*forms: str) -> Make:
    return lambda random, caption: random.choice(forms).format(random.randrange(10_000))


def garbled(language: str) -> Make:
    """Chinese whose characters were replaced by question marks or U+FFFD, and escapes that were never decoded."""
    lost = (
        ("????????{}", "\ufffd\ufffd\ufffd{}", "锟斤拷锟斤拷{}")
        if language == "zh"
        else ("\\u00e9\\u4e2d {}", "ÿþÀÁÂÃ{}")
    )
    return filled(*lost)


def marked_up(random: Random, caption: str) -> str:
    return random.choice(MARKUP).format(caption)


def endless(language: str, sentences: int) -> Make:
    """Many sentences in a row, as if a whole page were the caption."""
    one, comma = spoken(language), "，" if language == "zh" else ", "
    return lambda random, caption: comma.join(one(random, caption) for _ in range(sentences))


# For each fault: in Chinese, in English (None: not in this language), and the right reasons.
CAPTIONS: dict[str, tuple[Make | None, Make | None, set[str]]] = {
    "far too long": (endless("zh", 40), endless("en", 40), {"caption-long"}),
    "a document": (endless("zh", 2_000), endless("en", 2_000), {"caption-long"}),
    "a file's name": (filled(*FILES["zh"]), filled(*FILES["en"]), {"caption-filename"}),
    "a camera's number": (filled(*CAMERA), filled(*CAMERA), {"caption-camera"}),
    "an address": (filled(*ADDRESSES), filled(*ADDRESSES), {"caption-url"}),
    "words of the page": (filled(*PAGE["zh"]), filled(*PAGE["en"]), {"caption-boilerplate"}),
    "words of a program": (filled(*PROGRAM["zh"]), filled(*PROGRAM["en"]), {"caption-generated"}),
    "only that there is a picture": (filled(*EMPTY["zh"]), filled(*EMPTY["en"]), {"caption-placeholder"}),
    "one letter again and again": (repeated, repeated, {"caption-repetition"}),
    "signs only": (signs, signs, {"caption-wordless"}),
    "emoji only": (emoji_only, emoji_only, {"caption-emoji"}),
    "garbled": (garbled("zh"), garbled("en"), {"caption-garbled"}),
    "HTML": (marked_up, marked_up, {"caption-html"}),
    "a control character": (control, control, {"caption-control"}),
    "blank": (lambda random, caption: "　 ", lambda random, caption: "   ", {"no-caption"}),
    "the other language": (spoken("en"), spoken("zh"), {"caption-language", "caption-script"}),
    "Japanese": (spoken("ja"), spoken("ja"), {"caption-language", "caption-script"}),
    "Korean": (spoken("ko"), spoken("ko"), {"caption-language", "caption-script"}),
    "Russian": (None, spoken("ru"), {"caption-language", "caption-script"}),
    "French": (None, spoken("fr"), {"caption-language", "caption-script"}),
    "German": (None, spoken("de"), {"caption-language", "caption-script"}),
    "Spanish": (None, spoken("es"), {"caption-language", "caption-script"}),
}


def dressed(random: Random, caption: str) -> str:
    """The same words with other punctuation and case."""
    before, after = ("".join(random.choices("!~·*…-。！", k=random.randrange(1, 6))) for _ in range(2))
    return f"{before} {caption.replace('、', random.choice('，/·;')).upper()}{after}"


# Captions of at least this length are similar to their dressed versions and to nothing else.
LONG = {"zh": 20, "en": 30}
