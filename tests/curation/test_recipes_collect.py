"""The recipes for public data read small files in each data set's own layout; nothing but this machine is asked."""

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from dcclip_cli.cli.app import app
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.pair import Pair
from tests.curation.conftest import MakeImage
from tests.curation.fetch_site import Site, sends

RECIPES = Path(__file__).parents[2] / "recipes"
ZH = ("一只黑猫坐在红色的椅子上", "两个孩子在雨中骑自行车", "雪山下的湖边有一座小木屋")
EN = ("a black cat on a red chair", "two children ride bicycles in the rain", "a wooden hut by a lake below a mountain")
FIRST_TWO = [((zh,), (en,)) for zh, en in zip(ZH[:2], EN[:2], strict=True)]


def lay_out(recipe: str, urls: list[str], folder: Path) -> Path:
    """Write three pairs as the data set has them (a fourth in laion-zh); returns the path for the recipe."""
    zh, en = (list(zip(urls, texts, strict=True)) for texts in (ZH, EN))
    page = {"Url": "http://a.cn/", "Content": "", "Keywords": "猫"}
    laion = {"LICENSE": "?", "HEIGHT": 160, "WIDTH": 160}
    japanese = (urls[0].replace("0.jpg", "9.jpg"), "庭の猫")
    tables = {
        "laion-zh": [
            {"URL": url, "TEXT": text, "LANGUAGE": "ja" if "の" in text else "zh", **laion}
            for url, text in [*zh, japanese]
        ],
        "laion-en": [{"URL": url, "TEXT": text, "similarity": 0.31} for url, text in en],
    }
    if recipe in tables:
        pq.write_table(pa.Table.from_pylist(tables[recipe]), folder / "part-00000.parquet")
        return folder
    zero = [page | {"Title": text, "ImageUrl": url, "ImageQuery": text[:6]} for url, text in zh]
    name, lines = {
        "wukong": ("wukong_100m_0.csv", ["url,caption", *map(",".join, zh)]),
        "zero": ("zero.jsonl", [json.dumps(row, ensure_ascii=False) for row in zero]),
        "cc3m": ("Train_GCC-training.tsv", [f"{text}\t{url}" for url, text in en]),
        "cc12m": ("cc12m.tsv", ["\t".join(pair) for pair in en]),
    }[recipe]
    (folder / name).write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return folder / name if "cc" in recipe else folder


def run(recipe: str, *options: str, source: dict[str, object], **sets: object) -> str:
    sets |= {f"sources.0.{key}": value for key, value in source.items()}
    overrides = [f"--set=collect.{key}={value}" for key, value in sets.items()]
    result = CliRunner().invoke(app, ["collect", str(RECIPES / f"collect-{recipe}.yaml"), *overrides, *options])
    assert result.exit_code == 0, result.output
    return result.output


def collected(recipe: str, out: Path, **sets: Any) -> list[Pair]:
    run(recipe, "--out", str(out), "--workers", "1", "-q", **sets)
    return list(open_pairs(out / "collect"))


def texts(pairs: list[Pair]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    return [(pair.zh, pair.en) for pair in pairs]


@pytest.mark.parametrize("recipe", ["laion-zh", "laion-en", "wukong", "zero", "cc3m", "cc12m"])
def test_pairs_known_by_url_are_counted_without_a_download_and_then_fetched(
    recipe: str, site: Site, picture: MakeImage, tmp_path: Path
) -> None:
    site.pages |= {f"/{number}.jpg": sends(picture(number, (160, 160), "JPEG")) for number in range(3)}
    urls = [site.url(f"/{number}.jpg") for number in range(3)]
    (tmp_path / "data").mkdir()
    sets: Any = {"source": {"path": lay_out(recipe, urls, tmp_path / "data")}, "scores": []}  # no model here to score
    rows = 4 if recipe == "laion-zh" else 3
    assert f"collect would read about {rows} pairs in 1 slice\n" in run(recipe, "--check", **sets)
    assert not site.asked
    pairs = collected(recipe, tmp_path / "run", **{"fetch.allow_networks": '["127.0.0.0/8"]'}, **sets)
    assert [pair.meta["url"] for pair in pairs] == urls
    captions = [pair.captions("en" if pair.en else "zh") for pair in pairs]
    expected = EN if pairs[0].en else ZH
    # Of zero the query, then the title; the page's text is empty.
    assert captions == [(text[:6], text) if recipe == "zero" else (text,) for text in expected]


def test_coco_cn_joins_chinese_lines_with_coco_s_english_json_and_keeps_to_the_training_split(
    picture: MakeImage, tmp_path: Path
) -> None:
    coco = tmp_path / "coco"
    cn = tmp_path / "coco/coco-cn-version1805v1.1"
    for folder in ("annotations", "train2014", "val2014", cn.name):
        (coco / folder).mkdir(parents=True)
    names = ["COCO_train2014_000000000009", "COCO_val2014_000000000042", "COCO_val2014_000000000073"]
    for name in names:
        split = name.split("_")[1]
        (coco / split / f"{name}.jpg").write_bytes(picture(name, (160, 120), "JPEG"))
    (cn / "imageid.human-written-caption.txt").write_text(
        "".join(f"{name}#0\t{text}\n" for name, text in zip(names, ZH, strict=True)), "utf-8"
    )
    (cn / "coco-cn_train.txt").write_text("\n".join(names[:2]) + "\n")  # the third is left for the test
    for split in ("train2014", "val2014"):
        split_rows = [(int(name[-12:]), name, text) for name, text in zip(names, EN, strict=True) if split in name]
        images = [{"id": number, "file_name": f"{name}.jpg"} for number, name, _ in split_rows]
        annotations = [{"id": 1, "image_id": number, "caption": text} for number, _, text in split_rows]
        text = json.dumps({"info": {}, "images": images, "annotations": annotations})
        (coco / f"annotations/captions_{split}.json").write_text(text)
    en = json.dumps([f"{coco}/annotations/captions_{split}2014.json" for split in ("train", "val")])
    zh = cn / "imageid.human-written-caption.txt"
    only = cn / "coco-cn_train.txt"
    source = {"images": coco, "zh": zh, "en": en, "only": only}
    assert texts(collected("coco-cn", tmp_path / "run", source=source)) == FIRST_TWO


def test_flickr30k_cn_joins_chinese_and_english_lines_of_one_photograph(picture: MakeImage, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    names = ["1000092795", "10002456", "1000268201"]
    for name in names:
        (tmp_path / f"images/{name}.jpg").write_bytes(picture(name, (160, 120), "JPEG"))
    zh = tmp_path / "flickr30k_cna_train.txt"
    en = tmp_path / "results_20130124.token"
    zh.write_text("".join(f"{name}\t{text}\n" for name, text in zip(names[:2], ZH, strict=False)), "utf-8")  # its split
    en.write_text("".join(f"{name}.jpg#0\t{text}\n" for name, text in zip(names, EN, strict=True)), "utf-8")
    source = {"images": tmp_path / "images", "zh": zh, "en": en}
    assert texts(collected("flickr30k-cn", tmp_path / "run", source=source)) == FIRST_TWO


def test_muge_is_read_from_base64_with_all_queries_of_a_picture(picture: MakeImage, tmp_path: Path) -> None:
    images = tmp_path / "train_imgs.tsv"
    content = [base64.urlsafe_b64encode(picture(number, (160, 160), "JPEG")).decode() for number in range(3)]
    images.write_text("".join(f"{number}\t{text}\n" for number, text in enumerate(content)))
    queries = [("紅色連衣裙", [0]), ("黑猫 抱枕", [1]), ("山水画", [2, 0])]
    rows = [{"text_id": number, "text": text, "image_ids": of} for number, (text, of) in enumerate(queries)]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (tmp_path / "train_texts.jsonl").write_text("".join(lines), "utf-8")
    pairs = collected("muge", tmp_path / "run", source={"path": images})
    assert [pair.zh for pair in pairs] == [("红色连衣裙", "山水画"), ("黑猫 抱枕",), ("山水画",)]  # Simplified
    assert pairs[0].meta["license"] == "research only"
