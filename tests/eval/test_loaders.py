"""Every named data set is read from each layout that it is published in, with the right labels and captions."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import datasets
import pytest
from datasets import DatasetDict

from dcclip_cli.data import prompts
from dcclip_cli.eval import registry
from dcclip_cli.eval.dataset import Captions, Classes, DataSet
from dcclip_cli.eval.datasets import open_dataset
from dcclip_cli.eval.registry import SETS, KnownSet
from tests.eval import layouts

pytestmark = pytest.mark.usefixtures("small")

SINGLE = [name for name, entry in SETS.items() if entry.task == "classification"]


def truth(dataset: DataSet) -> Classes:
    (only,) = dataset.truth.values()
    assert isinstance(only, Classes)
    return only


def labels_match(dataset: DataSet, classes: int) -> None:
    labels = truth(dataset).labels
    assert sorted(labels.tolist()) == list(range(classes))
    for index in (0, 1, classes // 2, classes - 1):
        assert layouts.label_of(dataset.images.load(index)) == labels[index]


def folders_of(known: KnownSet) -> list[str]:
    return prompts.read(registry.prompts_of(known)).folders


@pytest.mark.parametrize("name", SINGLE)
def test_class_folders_are_read_in_both_languages(name: str, small: dict[str, KnownSet], tmp_path: Path) -> None:
    entry = small[name]
    layouts.class_folders(tmp_path / entry.label / entry.split, folders_of(entry), ".JPEG")
    for suffix, second in (("", "Thing 1"), ("-cn", "东西1")):
        dataset = open_dataset(entry.label + suffix, data_root=tmp_path)
        labels_match(dataset, entry.classes)
        assert truth(dataset).names[1] == second
        assert dataset.metric == entry.metric and dataset.transform.squash == entry.squash


@pytest.mark.parametrize("known", [SETS["dtd"], SETS["rendered_sst2"]], ids=lambda known: known.name)
def test_webdataset_tars_are_read_as_clip_benchmark_writes_them(known: KnownSet, tmp_path: Path) -> None:
    names = [f"thing {number}" for number in range(known.classes)]
    folder = tmp_path / (f"wds_{known.hub}" if known.hub else known.name)
    layouts.wds(folder, "test", [f"{number}".encode() for number in range(known.classes)], ".cls", names)
    labels_match(open_dataset(known.name, data_root=tmp_path), known.classes)


def test_a_folder_of_save_to_disk_is_read(tmp_path: Path) -> None:
    DatasetDict({"test": layouts.rows("webp", cls=range(47))}).save_to_disk(tmp_path / "dtd")
    labels_match(open_dataset("dtd-cn", data_root=tmp_path), 47)


def test_imagenet_v2_has_folders_by_number(tmp_path: Path) -> None:
    numbers = [str(number) for number in range(120)]  # whose order as texts is another
    layouts.class_folders(tmp_path / "imagenet_v2/imagenetv2-matched-frequency-format-val", numbers)
    labels_match(open_dataset("imagenet-v2", data_root=tmp_path), 120)


def test_objectnet_has_the_classes_of_imagenet_and_its_border_cut(tmp_path: Path, small: dict[str, KnownSet]) -> None:
    layouts.class_folders(tmp_path / "objectnet/images", folders_of(small["objectnet"]))
    layouts.class_folders(tmp_path / "objectnet/images/", ["weight_exercise"])
    dataset = open_dataset("objectnet", data_root=tmp_path)
    assert dataset.transform.border == 2 and len(dataset.images) == 113


def test_another_class_order_in_the_tars_is_mapped_by_its_names(tmp_path: Path) -> None:
    names = [f"Thing {6 - number}" for number in range(7)]
    layouts.wds(tmp_path / "fer2013", "test", [f"{6 - number}".encode() for number in range(7)], ".cls", names)
    labels_match(open_dataset("fer2013", data_root=tmp_path), 7)


NAMES = [f"thing {number}" for number in range(47)]
TRUTHS = [f"{number}".encode() for number in range(47)]


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose name is a repository's: relative to the working directory it is used in place of the hub."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub-cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "clip-benchmark/wds_vtab-dtd"


def parquet(file: Path, column: str, values: Sequence[object], feature: object) -> None:
    """A Parquet file as the hub converts data sets to: images as {bytes, path}, and one more column."""
    file.parent.mkdir(parents=True, exist_ok=True)
    layouts.rows("image", **{column: values}).cast_column(column, feature).to_parquet(file)


def test_only_the_test_split_is_downloaded(hub: Path) -> None:
    layouts.wds(hub, "test", TRUTHS, ".cls", NAMES)
    layouts.write(hub / "train/0.tar", "no tar at all")
    dataset = open_dataset("dtd-cn")
    truth = dataset.truth["zh"]
    assert isinstance(truth, Classes) and truth.labels.tolist() == list(range(47))
    assert [layouts.label_of(dataset.images.load(index)) for index in (0, 30, 46)] == [0, 30, 46]


def test_parquet_files_with_class_names_of_another_order_are_mapped(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=[f"alpha_{46 - number}" for number in range(47)])
    parquet(tmp_path / "data/dtd/data/test-00000-of-00001.parquet", "label", range(47), names)
    truth = open_dataset("dtd", data_root=tmp_path / "data").truth["en"]
    assert isinstance(truth, Classes) and truth.labels.tolist() == list(range(47))[::-1]


def test_parquet_files_may_list_several_captions(tmp_path: Path) -> None:
    captions = [[f"第{number}张图", f"图片{number}"] for number in range(6)]
    feature = [datasets.Value("string")]
    parquet(tmp_path / "data/flickr30k_cn/data/test-00000-of-00001.parquet", "caption", captions, feature)
    truth = open_dataset("flickr30k-cn", data_root=tmp_path / "data").truth["zh"]
    assert isinstance(truth, Captions)
    assert truth.texts[2:4] == ("第1张图", "图片1") and truth.images[2:4] == ((1,), (1,))


EN = [["a cat on a mat", "one cat"], ["two dogs run", "dogs"], ["a red bus", "bus"]]
ZH = [["垫子上有一只猫", "一只猫"], ["两只狗在跑", "狗"], ["一辆红色公交车", "公交车"]]


def matches(dataset: DataSet, captions: list[list[str]]) -> None:
    """Check by its colour that every caption's image is the one that it was written for."""
    (truth,) = dataset.truth.values()
    assert isinstance(truth, Captions) and dataset.is_retrieval and dataset.metric == "mean_recall"
    by_image: dict[int, list[str]] = {}
    for text, numbers_of in zip(truth.texts, truth.images, strict=True):
        for image in numbers_of:
            by_image.setdefault(layouts.label_of(dataset.images.load(image)), []).append(text)
    assert by_image == dict(enumerate(captions))


def write_images(folder: Path, names: list[str]) -> None:
    for label, name in enumerate(names):
        layouts.write(folder / name, layouts.image(label))


def karpathy(names: list[str], captions: list[list[str]], **more: str) -> str:
    images = [
        {"filename": name, "split": "test", "sentences": [{"raw": text} for text in lines_of], **more}
        for name, lines_of in zip(names, captions, strict=True)
    ]
    unused = {"filename": "t.jpg", "split": "train", "sentences": [{"raw": "x"}], **more}
    return json.dumps({"images": [unused, *images]})


def caption_lines(names: list[str], between: str) -> str:
    """ZH as lines IMAGE#KIND#NUMBER CAPTION."""
    lines_of = zip(names, ZH, strict=True)
    return "".join(f"{name}{between.format(n)}{text}\n" for name, texts in lines_of for n, text in enumerate(texts))


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
    unused = "COCO_train2014_000000000999#zhm#0\t训练集里的图\n"
    lines = unused + caption_lines(names, "#zhm#{}\t")
    layouts.write(tmp_path / "coco-cn/imageid.human-written-caption.txt", lines)
    layouts.write(tmp_path / "coco-cn/coco-cn_test.txt", "\n".join(names) + "\n")
    matches(open_dataset("coco", data_root=tmp_path), EN)
    matches(open_dataset("coco-cn", data_root=tmp_path), ZH)


@pytest.mark.parametrize(("name", "split"), [("muge-cn", "valid"), ("flickr30k-cn", "test"), ("coco-cn", "test")])
def test_chinese_clips_base64_lines(name: str, split: str, tmp_path: Path) -> None:
    rows = [f"{100 + label}\t{base64.urlsafe_b64encode(layouts.image(label)).decode()}\n" for label in range(4)]
    layouts.write(tmp_path / name / f"{split}_imgs.tsv", "".join(rows))
    numbers_of = {"垫子上有一只猫": [100], "动物": [101, 100], "没有图": []}
    texts = [{"text_id": n, "text": text, "image_ids": numbers_of[text]} for n, text in enumerate(numbers_of)]
    layouts.write(tmp_path / name / f"{split}_texts.jsonl", json_lines(texts))
    dataset = open_dataset(name, data_root=tmp_path)
    truth = dataset.truth["zh"]
    assert isinstance(truth, Captions)
    assert truth.texts == ("垫子上有一只猫", "动物") and truth.images == ((0,), (1, 0))
    assert [layouts.label_of(dataset.images.load(index)) for index in range(4)] == [0, 1, 2, 3]
    assert dataset.both_ways == (name != "muge-cn")


def test_tars_and_the_hubs_own_format_have_a_caption_a_line(tmp_path: Path) -> None:
    layouts.wds(tmp_path / "wds_mscoco_captions", "test", ["\n".join(lines_of).encode() for lines_of in EN], ".txt")
    matches(open_dataset("coco", data_root=tmp_path), EN)
    layouts.rows("jpg", txt=["\n".join(lines_of) for lines_of in EN]).save_to_disk(tmp_path / "flickr30k")
    matches(open_dataset("flickr30k", data_root=tmp_path), EN)
