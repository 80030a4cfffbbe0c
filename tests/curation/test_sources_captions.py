"""Published layouts: COCO, Flickr30k-CN, Karpathy, BLIP, Chinese-CLIP's base64 files, and folders of classes."""

import base64
import json
from pathlib import Path

import pytest

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.curation.collect import collect
from dcclip_cli.curation.executors import Engine
from dcclip_cli.curation.options import CollectOptions
from dcclip_cli.curation.sources.captions import Base64Source, CaptionsSource, ClassFoldersSource
from dcclip_cli.data.caption_files import identity
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.eval.datasets import open_dataset
from tests.curation.conftest import make_picture
from tests.curation.reading import PIXEL, faults, read


def images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / "images" / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / "images" / name).write_bytes(name.encode())
    return folder / "images"


def text(file: Path, content: str | bytes) -> Path:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


COCO_CN = """COCO_val2014_000000000042#0\t一只猫，在鞋柜上睡觉
COCO_train2014_000000000009#0\t一盘有西兰花的便当
COCO_train2014_000000000009#1\t彩色的饭盒
"""
COCO = """{"info": {"description": "COCO 2014 Dataset", "year": 2014}, "images": [
{"license": 5, "file_name": "COCO_train2014_000000000009.jpg", "coco_url": "http://c/9.jpg", "id": 9},
{"license": 3, "file_name": "COCO_train2014_000000000025.jpg", "coco_url": "http://c/25.jpg", "id": 25}],
"licenses": [{"id": 3, "name": "Attribution-NonCommercial-NoDerivs License"}], "annotations": [
{"image_id": 25, "id": 1, "caption": "A giraffe eating food."},
{"image_id": 9, "id": 2, "caption": "A lunch with broccoli"},
{"image_id": 25, "id": 3, "caption": "A giraffe."},
{"image_id": 404, "id": 4, "caption": "No such image."}]}"""


def test_coco_cn_and_coco_become_pairs_with_both_languages(tmp_path: Path) -> None:
    train = [f"train2014/COCO_train2014_0000000000{number}.jpg" for number in ("09", "25")]
    source = CaptionsSource(
        images=images(tmp_path, "val2014/COCO_val2014_000000000042.jpg", *train),
        zh=text(tmp_path / "imageid.human-written-caption.txt", COCO_CN),
        en=text(tmp_path / "captions_train2014.json", COCO),
    )
    assert [part.estimate for part in source.slices(2)] == [2, 1]
    for size in (1, 2, 10):
        cat, lunch, giraffe = read(source, size)
        assert (cat.pair.key, cat.pair.image) == ("COCO_val2014_000000000042", b"val2014/COCO_val2014_000000000042.jpg")
        assert (cat.pair.zh, cat.pair.en) == (("一只猫，在鞋柜上睡觉",), ())
        assert lunch.pair.zh == ("一盘有西兰花的便当", "彩色的饭盒")
        assert lunch.pair.en == ("A lunch with broccoli",)
        assert giraffe.pair.en == ("A giraffe eating food.", "A giraffe.")
        assert giraffe.pair.meta["license"] == 3


def test_cocos_names_of_2014_and_2017_mean_the_same_image(tmp_path: Path) -> None:
    assert identity("COCO_val2014_000000000042.jpg") == identity("000000000042") == "000000000042"
    assert identity("val2014/COCO_val2014_000000000042.jpg") == "val2014/000000000042"
    assert identity("10.5_cat.JPG") == "10.5_cat"
    named = [{"id": 42, "file_name": "000000000042.jpg"}]
    content = {"annotations": [{"image_id": 42, "caption": "a cat"}], "images": named}
    source = CaptionsSource(
        images=images(tmp_path, "train2017/000000000042.jpg"),
        zh=text(tmp_path / "zh.txt", "COCO_val2014_000000000042#zhm#0 一只 猫，在 看\r\n"),
        en=text(tmp_path / "captions_train2017.json", json.dumps(content)),  # with its images behind the captions
    )
    (cat,) = read(source)
    expected = b"train2017/000000000042.jpg", ("一只 猫，在 看",), ("a cat",)
    assert (cat.pair.image, cat.pair.zh, cat.pair.en) == expected


def test_karpathys_and_blips_files_are_read(tmp_path: Path) -> None:
    karpathy = """{"images": [{"filepath": "val2014", "filename": "a.jpg", "split": "test", "sentids": [1],
        "sentences": [{"tokens": ["a", "cat"], "raw": "A cat."}, {"raw": "Cat"}]}], "dataset": "coco"}"""
    blip = [{"image": "val2014/a.jpg", "caption": ["a cat, asleep"]}, {"image": "b.jpg", "caption": "一只狗"}]
    files = (text(tmp_path / "karpathy.json", karpathy), text(tmp_path / "blip.json", json.dumps(blip)))
    source = CaptionsSource(images=images(tmp_path, "val2014/a.jpg", "b.jpg"), caption=files)
    a, b = read(source)
    assert (a.pair.en, a.pair.image) == (("A cat.", "Cat", "a cat, asleep"), b"val2014/a.jpg")
    assert a.pair.meta["split"] == "test"
    assert (b.pair.zh, b.pair.image) == (("一只狗",), b"b.jpg")


def test_without_a_folder_images_are_fetched_from_cocos_urls(tmp_path: Path) -> None:
    source = CaptionsSource(en=text(tmp_path / "a.json", COCO), zh=text(tmp_path / "zh.txt", "x#0 猫"))
    expected = [(None, "image-missing"), ("http://c/9.jpg", None), ("http://c/25.jpg", None)]
    assert [(sample.url, sample.fault and sample.fault.reason) for sample in read(source)] == expected


def test_images_that_are_missing_or_outside_are_faults(tmp_path: Path) -> None:
    text(tmp_path / "secret.jpg", "secret")
    folder = images(tmp_path, "cat.jpg", "deep/dog.png")
    lines = "cat#0 猫\ndog#0 狗\nfish#0 鱼\n../secret#0 密\n/etc/hostname#0 名\na\0b#0 空\n" + "x" * 5000 + "#0 长\n"
    expected = [None, None, "image-missing", "image-outside", "image-outside", "image-missing", "image-missing"]
    assert list(faults(CaptionsSource(images=folder, zh=text(tmp_path / "zh.txt", lines))).values()) == expected


def test_lines_that_say_nothing_are_faults(tmp_path: Path) -> None:
    lines = b"cat#0 \xe7\x8c\xab\n\ncat\n#0 a\n\xff#0 a\n" + b"x" * 50_000_000 + b"\ncat#1 a cat\n"
    source = CaptionsSource(images=images(tmp_path, "cat.jpg"), caption=text(tmp_path / "c.txt", lines))
    assert faults(source) == {"cat": None} | {f"c.txt:{line}": "row-malformed" for line in (3, 4, 5, 6)}
    assert read(source)[0].pair.en == ("a cat",)


@pytest.mark.parametrize("content", [COCO[:-3], "[" * 100_000])
def test_a_json_file_that_breaks_off_is_one_fault(tmp_path: Path, content: str) -> None:
    folder = images(tmp_path, "COCO_train2014_000000000009.jpg", "COCO_train2014_000000000025.jpg")
    source = CaptionsSource(images=folder, en=text(tmp_path / "a.json", content))
    assert faults(source) == {"a.json": "captions-unreadable"}


def muge(folder: Path, split: str = "train") -> Path:
    """Three images and three texts, as MUGE has them: one text has two images, one image two texts, one none."""
    rows = [f"{number}\t{base64.b64encode(str(number).encode() * 300).decode()}\n" for number in (1000002, 517602, 3)]
    (folder / f"{split}_imgs.tsv").write_text("".join(rows))
    texts = [
        {"text_id": 8428, "text": "高级感托特包斜挎", "image_ids": [1000002, 517602]},
        {"text_id": 8429, "text": "iphone case", "image_ids": [517602]},
        {"text_id": 8430, "text": "没有图", "image_ids": []},
    ]
    (folder / f"{split}_texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    return folder / f"{split}_imgs.tsv"


def test_a_broken_line_of_texts_is_one_fault_however_many_slices_there_are(tmp_path: Path) -> None:
    path = muge(tmp_path)
    broken = [b"{", b"[1]", b'{"text": 3}', b'{"text": "a", "image_ids": 3}', b"\xff", b"[" * 100_000, b"x" * 2_000_000]
    with (tmp_path / "train_texts.jsonl").open("ab") as stream:
        stream.write(b"\n".join(broken) + '\n\n{"text": "包", "image_ids": ["3"]}'.encode())
    for size in (1, 2, 10):
        candidates = read(Base64Source(path=path), size)
        assert [(candidate.pair.key, candidate.fault.reason) for candidate in candidates if candidate.fault] == [
            *((f"train_texts.jsonl:{line}", "captions-unreadable") for line in range(4, 10)),
            ("train_texts.jsonl:10", "captions-bytes"),
        ]
        pairs = [candidate.pair for candidate in candidates if not candidate.fault]
        assert [(pair.key, pair.image[:7], pair.zh, pair.en) for pair in pairs] == [
            ("1000002", b"1000002", ("高级感托特包斜挎",), ()),
            ("517602", b"5176025", ("高级感托特包斜挎",), ("iphone case",)),
            ("3", b"3333333", ("包",), ()),
        ]


NAMES = "cat: {en: cat, zh: 猫}\nil: {en: Il-76, zh: 伊尔-76}\n"


def folders(path: Path, **images: int) -> Path:
    """Class folders with so many images each."""
    for name, count in images.items():
        (path / name).mkdir(parents=True)
        for number in range(count):
            (path / name / f"{number}.png").write_bytes(make_picture(f"{name}{number}"))
    return path


def test_captions_are_the_name_and_the_name_in_templates_in_both_languages(tmp_path: Path) -> None:
    folders(tmp_path, cat=2, il=1)
    (tmp_path / "classes.yaml").write_text(NAMES, "utf-8")
    first, second, third = (sample.pair for sample in read(ClassFoldersSource(path=tmp_path)))
    assert [first.key, second.key, third.key] == ["cat/0.png", "cat/1.png", "il/0.png"]
    assert first.meta == {"class": "cat"} and first.image == (tmp_path / "cat/0.png").read_bytes()
    assert (first.zh[0], first.en[0], third.zh[0], third.en[0]) == ("猫", "cat", "伊尔-76", "Il-76")
    assert len(first.zh) == len(first.en) == 3 and all("cat" in text for text in first.en)
    assert first.en != second.en  # the path chooses the templates, each time the same
    assert [sample.pair for sample in read(ClassFoldersSource(path=tmp_path))] == [first, second, third]


def test_what_cannot_be_read_in_a_class_folder_is_a_candidate_with_a_fault(tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(PIXEL)
    root = folders(tmp_path / "photos", cat=1)
    (root / "cat/2.gif").write_bytes(PIXEL)
    (root / "cat/3.png").symlink_to(tmp_path / "outside.png")
    (root / "cat/notes.txt").write_text("no image")
    fault_names = faults(ClassFoldersSource(path=root))
    assert fault_names == {"cat/0.png": None, "cat/2.gif": None, "cat/3.png": "image-outside"}
    with pytest.raises(DcclipError, match="has no folders with images"):
        ClassFoldersSource(path=tmp_path / "photos/cat").slices(10)


def test_collected_class_folders_keep_their_captions_and_are_an_evaluation_set(tmp_path: Path) -> None:
    root = folders(tmp_path / "photos", cat=4, il=2)
    (root / "classes.yaml").write_text(NAMES, "utf-8")
    (root / "cat/9.png").write_bytes(b"broken")
    settings = {
        "sources": [{"kind": "class_folders", "path": str(root)}],
        "duplicates": [{"kind": "same-caption", "at_most": 1}],
    }
    done = collect(CollectOptions.model_validate(settings), tmp_path / "out", engine=Engine(workers=1))
    manifest = json.loads((tmp_path / "out/manifest.json").read_text("utf-8"))
    assert manifest["pairs"]["dropped"] == {"image-format": 1}
    # The language filter takes "Il-76" for no English, and 猫 is the caption of four images.
    assert done.captions["en"].kept == done.captions["zh"].kept == 18
    assert {len(texts) for pair in open_pairs(tmp_path / "out") for texts in (pair.zh, pair.en)} == {3}
    dataset = open_dataset(str(tmp_path / "out"))
    assert {language: truth.names for language, truth in dataset.truth.items()} == {  # type: ignore[union-attr]
        "en": ("cat", "Il-76"),
        "zh": ("猫", "伊尔-76"),
    }
