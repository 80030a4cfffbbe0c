"""Data sets of the hub are read from its tars and Parquet files, the test split alone, and checked like all others."""

from collections.abc import Sequence
from pathlib import Path

import datasets
import pytest

from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.dataset import Captions, Classes
from dcclip_cli.eval.datasets import open_dataset
from dcclip_cli.eval.registry import KnownSet
from tests.eval import layouts

NAMES = [f"thing {number}" for number in range(47)]
TRUTHS = [f"{number}".encode() for number in range(47)]


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, small: dict[str, KnownSet], monkeypatch: pytest.MonkeyPatch) -> Path:
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
    found = open_dataset("dtd-cn")
    truth = found.truth["zh"]
    assert isinstance(truth, Classes) and truth.labels.tolist() == list(range(47))
    assert [layouts.label_of(found.images.load(index)) for index in (0, 30, 46)] == [0, 30, 46]


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
    assert truth.texts[2:4] == ("第1张图", "图片1") and truth.about[2:4] == ((1,), (1,))


def test_what_the_hub_lacks_or_has_in_another_order_is_refused(tmp_path: Path, hub: Path) -> None:
    with pytest.raises(DcclipError, match=r"data set dtd needs its images: .*wds_vtab-dtd"):
        open_dataset("dtd")
    layouts.wds(hub, "test", TRUTHS, ".cls", NAMES[1:] + NAMES[:1])
    with pytest.raises(DcclipError, match="class 0 is 'thing 1', 'alpha_0' is expected"):
        open_dataset("dtd")
    file = tmp_path / "data/dtd/data/test-00000-of-00001.parquet"
    parquet(file, "label", range(47), datasets.Value("int64"))
    with pytest.raises(DcclipError, match=r"classnames\.txt, the order of its labels, cannot be loaded"):
        open_dataset("dtd", data_root=tmp_path / "data")
    file.write_bytes(b"PAR1 half of one")
    with pytest.raises(DcclipError, match="dtd cannot be loaded"):
        open_dataset("dtd", data_root=tmp_path / "data")
