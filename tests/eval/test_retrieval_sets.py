"""Images with captions are read from the files that their authors publish, and from tars."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from dcclip_cli.eval.dataset import Captions, DataSet
from dcclip_cli.eval.datasets import open_dataset
from tests.eval import layouts

pytestmark = pytest.mark.usefixtures("small")

EN = [["a cat on a mat", "one cat"], ["two dogs run", "dogs"], ["a red bus", "bus"]]
ZH = [["垫子上有一只猫", "一只猫"], ["两只狗在跑", "狗"], ["一辆红色公交车", "公交车"]]


def matches(dataset: DataSet, captions: list[list[str]]) -> None:
    """Check by its colour that every caption's image is the one that it was written for."""
    (truth,) = dataset.truth.values()
    assert isinstance(truth, Captions) and dataset.is_retrieval and dataset.metric == "mean_recall"
    found: dict[int, list[str]] = {}
    for text, about in zip(truth.texts, truth.about, strict=True):
        for image in about:
            found.setdefault(layouts.label_of(dataset.images.load(image)), []).append(text)
    assert found == dict(enumerate(captions))


def write_images(folder: Path, names: list[str]) -> None:
    for label, name in enumerate(names):
        layouts.write(folder / name, layouts.image(label))


def karpathy(names: list[str], captions: list[list[str]], **more: str) -> str:
    images = [
        {"filename": name, "split": "test", "sentences": [{"raw": text} for text in several], **more}
        for name, several in zip(names, captions, strict=True)
    ]
    other = {"filename": "t.jpg", "split": "train", "sentences": [{"raw": "x"}], **more}
    return json.dumps({"images": [other, *images]})


def caption_lines(names: list[str], between: str) -> str:
    """ZH as lines IMAGE#KIND#NUMBER CAPTION."""
    several = zip(names, ZH, strict=True)
    return "".join(f"{name}{between.format(n)}{text}\n" for name, texts in several for n, text in enumerate(texts))


def json_lines(rows: Sequence[object]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_flickr30k_in_karpathys_json_and_in_chinese_lines_on_the_same_images(tmp_path: Path) -> None:
    names = ["1007129816.jpg", "1009434119.jpg", "101362133.jpg"]
    write_images(tmp_path / "flickr30k/flickr30k-images", names)
    layouts.write(tmp_path / "flickr30k/dataset_flickr30k.json", karpathy(names, EN))
    layouts.write(tmp_path / "flickr30k-cn/flickr30kcn_test.txt", caption_lines(names, "#zhb#{} "))
    matches(open_dataset("flickr30k", data_root=tmp_path), EN)
    matches(open_dataset("flickr30k_cn", data_root=tmp_path), ZH)


def test_coco_in_karpathys_json_and_coco_cn_by_its_list_of_names(tmp_path: Path) -> None:
    names = [f"COCO_val2014_{number:012}" for number in range(3)]
    files = [f"{name}.jpg" for name in names]
    write_images(tmp_path / "coco/val2014", files)
    layouts.write(tmp_path / "coco/dataset_coco.json", karpathy(files, EN, filepath="val2014"))
    other = "COCO_train2014_000000000999#zhm#0\t训练集里的图\n"
    lines = other + caption_lines(names, "#zhm#{}\t")
    layouts.write(tmp_path / "coco-cn/imageid.human-written-caption.txt", lines)
    layouts.write(tmp_path / "coco-cn/coco-cn_test.txt", "\n".join(names) + "\n")
    matches(open_dataset("coco", data_root=tmp_path), EN)
    matches(open_dataset("coco-cn", data_root=tmp_path), ZH)


@pytest.mark.parametrize(("name", "split"), [("muge-cn", "valid"), ("flickr30k-cn", "test"), ("coco-cn", "test")])
def test_chinese_clips_base64_lines(name: str, split: str, tmp_path: Path) -> None:
    rows = [f"{100 + label}\t{base64.urlsafe_b64encode(layouts.image(label)).decode()}\n" for label in range(4)]
    layouts.write(tmp_path / name / f"{split}_imgs.tsv", "".join(rows))
    about = {"垫子上有一只猫": [100], "动物": [101, 100], "没有图": []}
    texts = [{"text_id": n, "text": text, "image_ids": about[text]} for n, text in enumerate(about)]
    layouts.write(tmp_path / name / f"{split}_texts.jsonl", json_lines(texts))
    dataset = open_dataset(name, data_root=tmp_path)
    truth = dataset.truth["zh"]
    assert isinstance(truth, Captions)
    assert truth.texts == ("垫子上有一只猫", "动物") and truth.about == ((0,), (1, 0))
    assert [layouts.label_of(dataset.images.load(index)) for index in range(4)] == [0, 1, 2, 3]
    assert dataset.both_ways == (name != "muge-cn")


@pytest.mark.parametrize(("name", "captions"), [("xm3600", EN), ("xm3600-cn", ZH)])
def test_xm3600_has_every_language_on_one_line(name: str, captions: list[list[str]], tmp_path: Path) -> None:
    write_images(tmp_path / "xm3600/images", [f"{label:016x}.jpg" for label in range(3)])
    both = [{"en": {"caption": english}, "zh": {"caption": chinese}} for english, chinese in zip(EN, ZH, strict=True)]
    lines = [{"image/key": f"{label:016x}", **captions} for label, captions in enumerate(both)]
    layouts.write(tmp_path / "xm3600/captions.jsonl", json_lines(lines))
    matches(open_dataset(name, data_root=tmp_path), captions)


def test_xtd_has_captions_line_by_line_and_both_languages_share_their_images(tmp_path: Path) -> None:
    names = [f"COCO_val2014_{number:012}.jpg" for number in range(3)]
    write_images(tmp_path / "xtd/images", names)
    layouts.write(tmp_path / "xtd/test_image_names.txt", "\n".join([*names, names[0]]) + "\n")
    for language, captions in (("en", EN), ("zh", ZH)):
        texts = [*(several[0] for several in captions), captions[0][1]]
        layouts.write(tmp_path / f"xtd/test_1kcaptions_{language}.txt", "\n".join(texts) + "\n")
    english, chinese = open_dataset("xtd", data_root=tmp_path), open_dataset("xtd-cn", data_root=tmp_path)
    matches(english, [EN[0], EN[1][:1], EN[2][:1]])
    matches(chinese, [ZH[0], ZH[1][:1], ZH[2][:1]])
    assert english.images.fingerprint == chinese.images.fingerprint


def test_tars_have_a_caption_a_line(tmp_path: Path) -> None:
    layouts.wds(tmp_path / "wds_mscoco_captions", "test", ["\n".join(several).encode() for several in EN], ".txt")
    matches(open_dataset("coco", data_root=tmp_path), EN)


def test_the_hubs_own_format_has_captions_as_text(tmp_path: Path) -> None:
    layouts.rows("jpg", txt=["\n".join(several) for several in EN]).save_to_disk(tmp_path / "flickr30k")
    matches(open_dataset("flickr30k", data_root=tmp_path), EN)
