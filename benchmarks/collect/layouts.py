"""Writers for each kind of source.

A writer creates the source in a folder and returns its recipe entry and the key that `collect` gives to each pair.
"""

import base64
import csv
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair


@dataclass(frozen=True)
class Item:
    """A pair to be written: clean if `fault` is None; `row` is a fault of the source's row rather than the pair."""

    name: str
    image: bytes
    zh: str | None = None
    en: str | None = None
    fault: str | None = None
    row: str | None = None

    @property
    def captions(self) -> dict[str, str]:
        both = {"zh": self.zh, "en": self.en}
        return {language: text for language, text in both.items() if text is not None}

    @property
    def file(self) -> str:
        """A file name with the right suffix for good images; bad ones have a JPEG suffix, as on the web."""
        suffix = {b"\x89P": "png", b"RI": "webp"}.get(self.image[:2], "jpg")
        return f"{self.name}.{suffix}"


@dataclass(frozen=True)
class Written:
    """A source: its `entry` in the recipe's `sources`, and the `keys` of its items in order."""

    entry: dict[str, Any]
    keys: list[str]


def folder(at: Path, items: Sequence[Item]) -> Written:
    keys = []
    for number, item in enumerate(items):
        path = at / f"{number % 7}" / item.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(item.image)
        keys.append(str(path.relative_to(at)))
        if item.row:  # "unreadable JSON"
            path.with_suffix(".json").write_text('{"zh": ["没有写完', "utf-8")
        elif number % 2:
            path.with_suffix(".json").write_text(json.dumps(item.captions, ensure_ascii=False), "utf-8")
        else:
            for language, text in item.captions.items():
                path.with_suffix(f".{language}.txt").write_text(text, "utf-8")
    return Written({"kind": "folder", "path": str(at)}, keys)


def _files(at: Path, items: Sequence[Item]) -> list[dict[str, str]]:
    """Write the images; returns the rows of a table with their paths, faults included."""
    rows = []
    for item in items:
        path = {"missing": f"gone/{item.file}", "outside": f"../{item.file}"}.get(item.row or "", f"images/{item.file}")
        if item.row != "missing":
            (at / path).parent.mkdir(parents=True, exist_ok=True)
            (at / path).write_bytes(item.image)
        rows.append({"image": path, "zh": item.zh or "", "en": item.en or ""})
    return rows


def tsv(at: Path, items: Sequence[Item]) -> Written:
    lines = ["image\tzh\ten"]
    for item, row in zip(items, _files(at, items), strict=True):
        lines.append("\t".join(row.values()) + ("\tone cell more" if item.row == "malformed" else ""))
    (at / "pairs.tsv").write_text("\n".join(lines) + "\n", "utf-8", newline="\n")
    return Written({"kind": "table", "path": f"{at}/pairs.tsv"}, [str(number) for number in range(2, len(items) + 2)])


def comma(at: Path, items: Sequence[Item]) -> Written:
    with (at / "pairs.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, ["image", "zh", "en"])
        table.writeheader()
        table.writerows(_files(at, items))
    return Written({"kind": "table", "path": f"{at}/pairs.csv"}, [str(number) for number in range(2, len(items) + 2)])


def lines(at: Path, items: Sequence[Item]) -> Written:
    rows = [json.dumps(row, ensure_ascii=False) for row in _files(at, items)]
    (at / "pairs.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    return Written({"kind": "table", "path": f"{at}/pairs.jsonl"}, [str(number) for number in range(1, len(items) + 1)])


def pairs(at: Path, items: Sequence[Item]) -> Written:
    write_parquet(
        at / "pairs.parquet",
        [
            Pair(item.name, item.image, **{language: (text,) for language, text in item.captions.items()})
            for item in items
        ],
    )
    return Written({"kind": "table", "path": f"{at}/pairs.parquet"}, [item.name for item in items])


def tars(at: Path, items: Sequence[Item]) -> Written:
    """The output of img2dataset: KEY.jpg, KEY.txt with one caption of unknown language, KEY.json."""
    for number in range(0, len(items), 500):
        with tarfile.open(at / f"{number // 500:05d}.tar", "w") as archive:
            for item in items[number : number + 500]:
                (caption,) = item.captions.values()
                record = {"caption": caption, "key": item.name, "status": "success", "url": None}
                for suffix, content in (
                    (item.file.rpartition(".")[2], item.image),
                    ("txt", caption.encode()),
                    ("json", json.dumps(record, ensure_ascii=False).encode()),
                ):
                    member = tarfile.TarInfo(f"{item.name}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    keys = [f"{number // 500:05d}.tar:{item.name}" for number, item in enumerate(items)]
    return Written({"kind": "tars", "path": str(at)}, keys)


def chinese_clip(at: Path, items: Sequence[Item]) -> Written:
    """The format of Chinese-CLIP's data sets: images in base64, texts with the numbers of their images."""
    with (at / "train_imgs.tsv").open("w") as images, (at / "train_texts.jsonl").open("w", encoding="utf-8") as texts:
        for number, item in enumerate(items):
            images.write(f"{number}\t{base64.b64encode(item.image).decode() if not item.row else '%%%'}\n")
            for text in item.captions.values():
                row = {"text_id": number, "text": text, "image_ids": [number]}
                texts.write(json.dumps(row, ensure_ascii=False) + "\n")
    return Written({"kind": "base64", "path": f"{at}/train_imgs.tsv"}, [str(number) for number in range(len(items))])


def coco_cn(at: Path, items: Sequence[Item]) -> Written:
    _files(at, items)
    text = "".join(f"{item.file}#zhm#0 {item.zh}\n" for item in items)
    (at / "captions.txt").write_text(text, "utf-8", newline="\n")
    entry = {"kind": "captions", "zh": f"{at}/captions.txt", "images": f"{at}/images"}
    return Written(entry, [item.file for item in items])


def hub(at: Path, items: Sequence[Item]) -> Written:
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), **dict.fromkeys(("zh", "en"), datasets.Value("string"))})
    rows = [{"image": {"bytes": item.image, "path": None}, "zh": item.zh, "en": item.en} for item in items]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(at / "saved")
    return Written({"kind": "hub", "path": f"{at}/saved"}, [str(number) for number in range(len(items))])


Layout = Callable[[Path, Sequence[Item]], Written]
LAYOUTS: tuple[Layout, ...] = (folder, tsv, comma, lines, pairs, tars, chinese_clip, coco_cn, hub)
ONE_CAPTION: tuple[Layout, ...] = (tars, chinese_clip)  # with one caption, whose language is detected by its script
