"""Build parallel.jsonl: texts in English and Chinese that mean the same, for a text tower in
another model's space.

    python recipes/text-tower/build.py

Each line has the English texts and the Chinese texts of one thing: class names of the data sets in
dcclip_cli/data/prompts with their synonyms, the everyday words of recipes/starter/words.tsv, the
names of emoji in recipes/quickstart/train.parquet; the names also in templates that are
translations of each other. Origins and licenses: SOURCES.md.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from dcclip_cli.data import prompts

HERE = Path(__file__).parent
RECIPES = HERE.parent
TEMPLATES = (
    ("a photo of a {}", "一张{}的照片"), ("a photo of {}", "{}的照片"), ("a picture of a {}", "一张{}的图片"),
    ("a drawing of a {}", "一幅{}的画"), ("this is a {}", "这是{}"), ("there is a {} in the photo", "照片里有{}"),
    ("a close-up of a {}", "{}的特写"), ("many {}", "很多{}"), ("a small {}", "小{}"), ("a big {}", "大{}"),
    ("my {}", "我的{}"), ("a black and white photo of a {}", "一张{}的黑白照片"),
    ("a bright photo of a {}", "一张{}的明亮照片"), ("a blurry photo of a {}", "一张{}的模糊照片"),
    ("the {} on a table", "桌子上的{}"), ("a red {}", "红色的{}"), ("a white {}", "白色的{}"),
    ("a black {}", "黑色的{}"), ("two {}", "两个{}"), ("a toy {}", "玩具{}"),
)  # fmt: skip
TEMPLATES_OF_A_NAME = 3
Meaning = tuple[list[str], list[str]]  # English, Chinese


def main() -> None:
    meanings = list(
        dict.fromkeys((tuple(en), tuple(zh)) for en, zh in (*class_names(), *everyday(), *emoji()))
    )
    chance = random.Random(0)
    lines = [{"en": list(en), "zh": list(zh)} for en, zh in meanings]
    for en, zh in meanings:
        for english, chinese in chance.sample(TEMPLATES, TEMPLATES_OF_A_NAME):
            lines.append({"en": [english.format(en[0])], "zh": [chinese.format(zh[0])]})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (HERE / "parallel.jsonl").write_text(text, encoding="utf-8")
    print(f"{len(meanings):,} things, {len(lines):,} lines")


def class_names() -> Iterator[Meaning]:
    for file in sorted(prompts.FOLDER.glob("*.json")):
        content = json.loads(file.read_text("utf-8"))
        if not all("names" in content.get(language, ()) for language in ("en", "zh")):
            continue
        for en, zh in zip(content["en"]["names"], content["zh"]["names"], strict=True):
            several = [
                [name, *content[language].get("alternates", {}).get(name, [])]
                for language, name in (("en", en), ("zh", zh))
            ]
            yield several[0], [re.sub(r"\s*[(（].*[)）]", "", name) or name for name in several[1]]


def everyday() -> Iterator[Meaning]:
    for line in (RECIPES / "starter/words.tsv").read_text("utf-8").splitlines():
        if not line.startswith("#"):
            en, zh, _ = line.split("\t")
            yield en.split(";"), zh.split(";")


def emoji() -> Iterator[Meaning]:
    """Names; keywords are in another order in each language, so that a line of them would not be
    parallel.
    """
    table = pq.read_table(RECIPES / "quickstart/train.parquet", columns=["en", "zh"])
    for en, zh in zip(table["en"].to_pylist(), table["zh"].to_pylist(), strict=True):
        if en and zh:
            yield en[:1], zh[:1]


if __name__ == "__main__":
    main()
