"""Incomplete data sets and wrong class orders are refused with one sentence that names the problem."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.datasets import open_dataset
from tests.eval import layouts

pytestmark = pytest.mark.usefixtures("small")

NAMES = [f"alpha_{number}" for number in range(47)]
TRUTHS = [f"{number}".encode() for number in range(47)]


def refused(name: str, root: Path, match: str) -> str:
    """The hint of the error that opening the data set ends in."""
    with pytest.raises(DcclipError, match=match) as caught:
        open_dataset(name, data_root=root)
    assert "\n" not in caught.value.what
    return caught.value.hint


def test_a_class_without_images_and_a_folder_that_is_no_class(tmp_path: Path) -> None:
    layouts.class_folders(tmp_path / "dtd/test", NAMES[:-1])
    refused("dtd", tmp_path, "1 of 47 classes have no images, alpha_46 for one")
    layouts.class_folders(tmp_path / "twice/dtd/test", [*NAMES, "Thing 4"])
    assert refused("dtd", tmp_path / "twice", "is a second folder of one class") == "keep one of the two"
    layouts.class_folders(tmp_path / "dtd/test", [*NAMES, "布料"])
    hint = refused("dtd-cn", tmp_path, r"布料 is not a class of dtd \(1 such folders\)")
    assert "alpha_0" in hint


def test_a_split_of_the_wrong_size(tmp_path: Path) -> None:
    layouts.class_folders(tmp_path / "dtd/test", NAMES)
    layouts.write(tmp_path / "dtd/test/alpha_3/more.png", layouts.image(3))
    hint = refused("dtd", tmp_path, "data set dtd: the split test has 47 images, 48 were found")
    assert hint.startswith(
        "finish the download, or download the right split; to evaluate all as a data set of your own"
    )
    with pytest.raises(DcclipError, match="48 were found"):
        open_dataset("dtd", data_root=tmp_path, partial="all")


def test_a_shuffled_list_of_class_names_but_not_another_wording(tmp_path: Path) -> None:
    names = [f"Thing {number}" for number in range(47)]
    names[4], names[9] = names[9], names[4]
    layouts.wds(tmp_path / "dtd", "test", TRUTHS, ".cls", names)
    refused("dtd", tmp_path, "classnames.txt: class 4 is 'Thing 9', 'alpha_4' is expected")
    layouts.wds(tmp_path / "dtd", "test", TRUTHS, ".cls", [f"Thing {number}" for number in range(46)])
    refused("dtd", tmp_path, "classnames.txt has 46 classes, not 47")
    names = [f"A thing that is number {number}" for number in range(47)]
    layouts.wds(tmp_path / "dtd", "test", TRUTHS, ".cls", names)
    assert len(open_dataset("dtd", data_root=tmp_path).images) == 47


def test_half_a_download_of_tars(tmp_path: Path) -> None:
    layouts.wds(tmp_path / "dtd", "test", TRUTHS, ".cls", shards=3)
    tar = tmp_path / "dtd/test/2.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[: len(content) // 2])
    refused("dtd", tmp_path, r"2.tar: .*the file ends after [\d,]+ bytes, before the tar's end mark")
    tar.unlink()
    assert refused("dtd", tmp_path, "has 2 tars, nshards.txt says 3") == "finish the download"


def test_a_label_that_is_missing_or_no_class(tmp_path: Path) -> None:
    layouts.wds(tmp_path / "dtd", "test", [*TRUTHS[:-1], b"47"], ".cls")
    refused("dtd", tmp_path, r"s0000046.cls has '47', not a class from 0 to 46")
    layouts.tar(tmp_path / "dtd/test/0.tar", {"s0.png": layouts.image(0)})
    refused("dtd", tmp_path, "s0 has no .cls file")


def test_labels_in_npy_are_never_unpickled(tmp_path: Path) -> None:
    layouts.wds(tmp_path / "voc2007", "test", [layouts.npy(np.asarray([{"a": 1}], object))] * 20, ".npy")
    refused("voc2007", tmp_path, "s0000000.npy cannot be read: .*allow_pickle")


def test_captions_whose_images_are_missing(tmp_path: Path) -> None:
    images = [{"filename": f"{n}.jpg", "split": "test", "sentences": [{"raw": "a cat"}]} for n in range(3)]
    layouts.write(tmp_path / "flickr30k/dataset_flickr30k.json", json.dumps({"images": images}))
    layouts.write(tmp_path / "flickr30k/flickr30k-images/1.jpg", layouts.image(1))
    refused("flickr30k", tmp_path, "2 images are missing, 0.jpg for one")
    layouts.write(tmp_path / "flickr30k/dataset_flickr30k.json", json.dumps({"images": images})[:-40])
    refused("flickr30k", tmp_path, "dataset_flickr30k.json breaks off")


def test_texts_about_images_that_are_missing(tmp_path: Path) -> None:
    layouts.write(tmp_path / "muge/valid_imgs.tsv", "7\tAAAA\n")
    refused("muge-cn", tmp_path, "valid_imgs.tsv has no valid_texts.jsonl next to it")
    layouts.write(tmp_path / "muge/valid_texts.jsonl", '{"text_id": 1, "text": "红色连衣裙", "image_ids": [8]}\n')
    refused("muge-cn", tmp_path, "valid_texts.jsonl:1: valid_imgs.tsv has no image 8")
    layouts.write(tmp_path / "muge/valid_texts.jsonl", '{"text_id": 1, "text": "红色连衣裙", "image_ids": []}\n')
    refused("muge-cn", tmp_path, "names no image of any text")


def test_xtds_files_of_unlike_lengths(tmp_path: Path) -> None:
    layouts.write(tmp_path / "xtd/test_1kcaptions_zh.txt", "一只猫\n一只狗\n")
    assert refused("xtd-cn", tmp_path, "test_image_names.txt is missing") == "download that file too"
    layouts.wds(tmp_path / "fer2013", "test", TRUTHS[:7], ".cls")
    assert refused("fer2013", tmp_path, "classnames.txt") == "download that file too"
    layouts.write(tmp_path / "xtd/test_image_names.txt", "1.jpg\n")
    refused("xtd-cn", tmp_path, "has 2 captions, test_image_names.txt 1 images")


def test_captions_in_the_other_language_are_not_measured_under_this_ones_name(tmp_path: Path) -> None:
    layouts.wds(tmp_path / "coco", "test", ["一只猫".encode(), b"a dog"], ".txt")
    assert len(open_dataset("coco", data_root=tmp_path).images) == 2
    refused("coco-cn", tmp_path, "data set coco-cn needs its images")  # COCO's tars are not COCO-CN's
    layouts.wds(tmp_path / "xm3600", "test", [b"a cat", b"a dog"], ".txt")
    refused("xm3600-cn", tmp_path, "xm3600-cn: 0 of 2 captions contain Chinese, so they are not in zh")
    layouts.wds(tmp_path / "xtd", "test", ["一只猫".encode(), "一只狗".encode()], ".txt")
    refused("xtd", tmp_path, "xtd: 2 of 2 captions contain Chinese, so they are not in en")


def test_a_name_that_is_not_known_gets_the_nearest(tmp_path: Path) -> None:
    assert refused("imagnet-cn", tmp_path, "data set imagnet-cn is neither a known name nor a path") == (
        "did you mean imagenet-cn?"
    )
    assert "retrieval-cn" in refused("retreival_cn", tmp_path, "neither a known name")


def test_a_data_set_that_is_not_there_says_where_it_is_looked_for(tmp_path: Path) -> None:
    hint = refused("imagenet-cn", tmp_path / "nowhere", "nowhere is not a folder")
    assert hint == "name the folder that contains the data sets"
    (tmp_path / "imagenet").mkdir()
    hint = refused("imagenet-cn", tmp_path, "imagenet has no val images of imagenet in any supported layout")
    assert "imagenet/val/alpha_0/*.jpg or imagenet/val/0.tar" in hint
    with pytest.raises(
        DcclipError, match="data set cifar10 needs its images: clip-benchmark/wds_vtab-cifar10 cannot be"
    ):
        open_dataset("cifar10")
    with pytest.raises(DcclipError, match="data set muge-cn needs its images: neither --data-root nor the hub has"):
        open_dataset("muge-cn")


# ---- folders of the user's own


def own_folder(path: Path, names: str | bytes | None = None) -> Path:
    """Class folders cat and 狗 with an image each, and a classes.yaml."""
    for number, folder in enumerate(("cat", "狗")):
        layouts.write(path / folder / "1.png", layouts.image(number))
    if names is not None:
        (path / "classes.yaml").write_bytes(names if isinstance(names, bytes) else names.encode())
    return path


def test_pairs_without_captions_and_class_folders_are_not_for_retrieval(tmp_path: Path) -> None:
    write_parquet(tmp_path / "own.parquet", [Pair("0", layouts.image(0)), Pair("1", layouts.image(1))])
    for path, hint in (
        (tmp_path / "own.parquet", "name pairs with captions in en, in zh, or in both"),
        (own_folder(tmp_path / "own"), "retrieval needs pairs: Parquet or tar files, or a folder of them"),
    ):
        with pytest.raises(DcclipError) as raised:
            open_dataset(str(path), retrieval=True)
        assert raised.value.hint == hint


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ("cat: " + "[" * 3000, "classes.yaml is not YAML"),
        ("[1]", "classes.yaml is not a mapping from folders to names"),
        ("", "classes.yaml is not a mapping from folders to names"),
        ("cat: 3\n狗: 4", "classes.yaml has no names for the folder cat"),
        ("cat: {en: 3}\n狗: {en: dog}", "classes.yaml names all folders neither in en nor in zh"),
        ('cat: {en: " "}\n狗: {en: dog}', "classes.yaml names all folders neither in en nor in zh"),
        ('cat: {en: "\\ud800"}\n狗: {en: dog}', "classes.yaml names all folders neither in en nor in zh"),
        ("cat: 2020-99-99", "classes.yaml is not YAML: month must be in 1..12"),
        ("? {a: b}\n: c", "classes.yaml is not YAML"),
        ("!!python/object:os.system x", "classes.yaml is not YAML: could not determine a constructor"),
        ("cat: {zh: 猫}".encode("utf-16"), "classes.yaml is in UTF-16, not in UTF-8"),
        ("a" * 1_000_001, "classes.yaml is larger than 1 MB"),
    ],
    ids=range(12),
)
def test_a_classes_yaml_that_names_no_classes(tmp_path: Path, names: str | bytes, what: str) -> None:
    with pytest.raises(DcclipError, match=what) as raised:
        open_dataset(str(own_folder(tmp_path / "own", names)))
    assert raised.value.hint


def test_what_is_no_image_file_in_a_class_folder_is_named(tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "own")
    (folder / "cat/2.jpg").symlink_to("/nowhere/猫.jpg")
    assert refused(str(folder), tmp_path, r"cat/2\.jpg is a link to nothing").startswith("remove it")
    layouts.write(tmp_path / "flat/1.png", layouts.image(1))
    assert refused(str(tmp_path / "flat"), tmp_path, "flat") == "make a folder for each class, with its images in it"
    (folder / "cat/2.jpg").unlink()
    os.mkfifo(folder / "cat/2.jpg")
    images = open_dataset(str(folder)).images
    with pytest.raises(DcclipError, match=r"cat/2\.jpg is a pipe, not a file"):
        images.load(1)
    os.mkfifo(folder / "classes.yaml")
    with pytest.raises(DcclipError, match=r"classes\.yaml is a pipe, not a file"):
        open_dataset(str(folder))


def test_names_that_are_not_utf8_are_refused_for_classes_and_escaped_for_images(tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "own")
    layouts.write(Path(os.fsdecode(os.fsencode(folder) + b"/cat/\xff.png")), layouts.image(2))
    assert list(open_dataset(str(folder)).images.keys) == ["cat/1.png", "cat/\\xff.png", "狗/1.png"]
    layouts.write(Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe/1.png")), layouts.image(2))
    with pytest.raises(DcclipError, match=r"the name of the folder b'\\xff\\xfe' is not in UTF-8"):
        open_dataset(str(folder))
