"""Incomplete data sets and wrong class orders are refused with one sentence, whose hint works when it is followed."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair
from dcclip_cli.eval.datasets import open_dataset, training_split
from tests.eval import layouts
from tests.eval.conftest import clear
from tests.tars import tar_bytes

pytestmark = pytest.mark.usefixtures("small")

NAMES = [f"alpha_{number}" for number in range(47)]
TRUTHS = [f"{number}".encode() for number in range(47)]
SWAPPED = [f"Thing {({4: 9, 9: 4}).get(number, number)}" for number in range(47)]
IMAGES = [{"filename": f"{n}.jpg", "split": "test", "sentences": [{"raw": "a cat"}]} for n in range(3)]
KARPATHY = json.dumps({"images": IMAGES})
CHINESE = ["一只猫".encode(), "一只狗".encode()]
Write = Callable[[Path], None]


def dtd(names: list[str]) -> Write:
    return lambda root: layouts.class_folders(root / "dtd/test", names)


def tars(name: str, truths: list[bytes], suffix: str = ".cls", names: list[str] | None = None) -> Write:
    return lambda root: layouts.wds(root / name, "test", truths, suffix, names or ())


def files(**contents: str | bytes) -> Write:
    """Files with these contents, by their paths."""

    def write(root: Path) -> None:
        for name, content in contents.items():
            layouts.write(root / name, content)

    return write


def half_a_tar(root: Path) -> None:
    layouts.wds(root / "dtd", "test", TRUTHS, ".cls", shards=3)
    tar = root / "dtd/test/2.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[: len(content) // 2])


FLICKR: dict[str, str | bytes] = {
    "flickr30k/dataset_flickr30k.json": KARPATHY,
    "flickr30k/images/1.jpg": layouts.image(1),
}
MUGE = {"muge/valid_imgs.tsv": "7\tAAAA\n"}
CASES: list[tuple[str, Write, str, str]] = [  # data set, what is there, error, hint
    ("dtd", dtd(NAMES[:-1]), "the split test has 47 images, but 46 were found", "--partial all or --partial present"),
    ("dtd", dtd([*NAMES, "Thing 4"]), "alpha_4 is not a class folder of dtd, or repeats a class", "such as alpha_0"),
    ("dtd-cn", dtd([*NAMES, "布料"]), "布料 is not a class folder of dtd", "use folder names such as alpha_0"),
    ("dtd", tars("dtd", TRUTHS, names=SWAPPED), r"classnames\.txt: class 4 is 'Thing 9' instead of 'alpha_4'", ""),
    ("dtd", half_a_tar, r"2\.tar: .*the file ends after [\d,]+ bytes", "incomplete or damaged"),
    ("dtd", tars("dtd", [*TRUTHS[:-1], b"47"]), r"s0000046\.cls contains '47' instead of a class from 0 to 46", ""),
    ("dtd", files(**{"dtd/test/0.tar": tar_bytes([("s0.png", layouts.image(0))])}),
     r"s0 has no \.cls file \(1 such samples\)", ""),
    ("voc2007", tars("voc2007", [layouts.npy(np.asarray([{"a": 1}], object))] * 20, ".npy"),
     r"s0000000\.npy cannot be read: .*allow_pickle", ""),
    ("fer2013", tars("fer2013", TRUTHS[:7]), r"classnames\.txt is missing", "download this file too"),
    ("flickr30k", files(**FLICKR), r"2 images are missing, for example 0\.jpg", "finish the download"),
    ("flickr30k", files(**FLICKR | {"flickr30k/dataset_flickr30k.json": KARPATHY[:-40]}),
     "dataset_flickr30k.json: (Expecting|Unterminated)", ""),
    ("muge-cn", files(**MUGE, **{"muge/valid_texts.jsonl": '{"text": "红裙", "image_ids": [8]}\n'}),
     r"valid_texts\.jsonl:1: valid_imgs\.tsv has no image 8", "finish the download"),
    ("muge-cn", files(**MUGE, **{"muge/valid_texts.jsonl": '{"text": "红裙", "image_ids": []}\n'}),
     "contains no captioned images", "use the valid split"),
    ("coco-cn", tars("coco", CHINESE, ".txt"), "cannot load the images of data set coco-cn",
     ""),  # COCO's are not COCO-CN's
    ("flickr30k", tars("flickr30k", CHINESE, ".txt"),
     "flickr30k: 2 of 2 captions contain Chinese, but en captions are expected", ""),
    ("imagnet-cn", files(), "unknown data set imagnet-cn: neither a known name nor", "did you mean imagenet-cn?"),
    ("imagenet-cn", files(**{"imagenet/readme": ""}), "contains no val images of imagenet in a supported layout",
     "imagenet/val/alpha_0/*.jpg or imagenet/val/0.tar"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[2][:40])
def test_what_is_not_whole_is_refused(case: tuple[str, Write, str, str], tmp_path: Path) -> None:
    name, write, problem, hint = case
    write(tmp_path)
    with pytest.raises(DcclipError, match=problem) as caught:
        open_dataset(name, data_root=tmp_path)
    assert "\n" not in caught.value.what and hint in caught.value.hint


def test_more_images_than_the_split_has_are_no_part_of_it(tmp_path: Path) -> None:
    layouts.class_folders(tmp_path / "dtd/test", NAMES)
    layouts.write(tmp_path / "dtd/test/alpha_3/more.png", layouts.image(3))
    with pytest.raises(DcclipError, match="47 images, but 48 were found"):
        open_dataset("dtd", data_root=tmp_path, partial="all")


def test_another_wording_of_the_class_names_is_accepted(tmp_path: Path) -> None:
    names = [f"A thing that is number {number}" for number in range(47)]
    layouts.wds(tmp_path / "dtd", "test", TRUTHS, ".cls", names)
    assert len(open_dataset("dtd", data_root=tmp_path).images) == 47


def test_a_data_set_without_a_root_is_looked_for_on_the_hub(tmp_path: Path) -> None:
    for name, root, problem in (
        ("cifar10", None, "cannot load the images of data set cifar10: clip-benchmark/wds_vtab-cifar10 cannot be"),
        ("muge-cn", None, "cannot load the images of data set muge-cn: found neither in --data-root nor on the hub"),
        ("dtd", tmp_path / "nowhere", "nowhere is not a folder"),
    ):
        with pytest.raises(DcclipError, match=problem):
            open_dataset(name, data_root=root)


def hint_of(name: str, root: Path, wanted: str) -> str:
    """What `wanted` finds in the hint of the error that opening the data set ends in."""
    with pytest.raises(DcclipError) as caught:
        open_dataset(name, data_root=root)
    clear()  # files are changed between two commands, not within one
    match = re.search(wanted, caught.value.hint)
    assert match, caught.value.hint
    return match[1]


def test_images_are_where_the_hint_says_they_are_looked_for(tmp_path: Path) -> None:
    (tmp_path / "dtd").mkdir()
    folder = hint_of("dtd", tmp_path, r"DIR with (\S+)/\*\.jpg")
    layouts.class_folders((tmp_path / folder).parent, NAMES, ".jpg")
    dataset = open_dataset("dtd", data_root=tmp_path)
    with pytest.raises(DcclipError, match="contains no train images of dtd") as error:
        training_split(dataset)
    train = re.findall(r"DIR with (\S+)/\*\.jpg", error.value.hint)[0]
    layouts.class_folders((tmp_path / train).parent, NAMES, ".jpg")
    clear()
    assert len(training_split(dataset).images) == 47


def own_folder(path: Path, names: str | bytes | None = None) -> Path:
    """Class folders cat and 狗 with an image each, and a classes.yaml."""
    layouts.class_folders(path, ["cat", "狗"])
    if names is not None:
        layouts.write(path / "classes.yaml", names)
    return path


def test_pairs_without_captions_and_class_folders_are_not_for_retrieval(tmp_path: Path) -> None:
    write_parquet(tmp_path / "own.parquet", [Pair("0", layouts.image(0)), Pair("1", layouts.image(1))])
    for path, hint in (
        (tmp_path / "own.parquet", "use pairs with captions in en, in zh, or in both"),
        (own_folder(tmp_path / "own"), "use pairs for retrieval: Parquet or tar files, or a folder of them"),
    ):
        with pytest.raises(DcclipError) as raised:
            open_dataset(str(path), retrieval=True)
        assert raised.value.hint == hint


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ("[1]", "classes.yaml is not a mapping from folder names to class names"),
        ("cat: 3\n狗: 4", "classes.yaml has no class name for the folder cat"),
        ("cat: {en: cat}\n狗: {en: dog, zh: 狗}", "classes.yaml has no zh name for the folder cat"),
        ("cat: {en: 3}\n狗: {en: dog}", "classes.yaml has no en name for the folder cat"),
        ("!!python/object:os.system x", "classes.yaml is not valid YAML: could not determine a constructor"),
        ("cat: {zh: 猫}".encode("utf-16"), "classes.yaml is encoded in UTF-16 instead of UTF-8"),
    ],
    ids=range(6),
)
def test_a_classes_yaml_that_names_no_classes(tmp_path: Path, names: str | bytes, what: str) -> None:
    with pytest.raises(DcclipError, match=what) as raised:
        open_dataset(str(own_folder(tmp_path / "own", names)))
    assert raised.value.hint
