"""What the hub has, in the files that it has, read as it comes: the same figures, and nothing of it on the disk."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.datasets import Captions, DataSet, open_dataset
from dcclip_cli.eval.evaluate import evaluate
from dcclip_cli.eval.feature_cache import FeatureCache
from dcclip_cli.eval.registry import KnownSet
from dcclip_cli.eval.result import EvalResult
from dcclip_cli.model.reference import ModelReference
from tests.eval import layouts
from tests.eval.test_evaluate import Oracle

NAMES = [f"thing {number}" for number in range(47)]
TRUTHS = [f"{number}".encode() for number in range(47)]


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `datasets` keeps what it downloads."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub-cache")
    monkeypatch.chdir(tmp_path)  # a folder called as a repository stands for the hub's
    return tmp_path / "hub-cache"


def parquet(file: Path, labels: Sequence[int], names: Sequence[str] | None = None) -> None:
    """A Parquet file as the hub converts data sets to: {bytes, path} and a class."""
    label = datasets.ClassLabel(names=list(names)) if names else datasets.Value("int64")
    features = datasets.Features({"image": datasets.Image(), "label": label})
    rows = {
        "image": [{"bytes": layouts.picture(number), "path": f"{number}.png"} for number in labels],
        "label": list(labels),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(file)


def run(dataset: DataSet, oracle: Oracle, cache: FeatureCache, limit: int | None = None) -> list[EvalResult]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dcclip_cli.eval.evaluate.load_model", lambda *_: oracle)
        reference = ModelReference("folder", "", "")
        return evaluate(models=[reference], datasets=[dataset], batch_size=8, limit=limit, cache=cache)


def test_parquet_files_as_the_hub_has_them_give_the_same_streamed_and_downloaded(
    tmp_path: Path, small: dict[str, KnownSet], hub_cache: Path
) -> None:
    names = [f"alpha_{number}" for number in range(47)]
    parquet(tmp_path / "data/dtd/data/test-00000-of-00002.parquet", range(30), names)
    parquet(tmp_path / "data/dtd/data/test-00001-of-00002.parquet", range(30, 47), names)
    streamed = open_dataset("dtd", data_root=tmp_path / "data", streams=tmp_path / "notes")
    [found] = run(streamed, Oracle(), FeatureCache(None))
    assert not list(hub_cache.rglob("*.arrow"))
    [downloaded] = run(open_dataset("dtd", data_root=tmp_path / "data"), Oracle(), FeatureCache(None))
    assert list(hub_cache.rglob("*.arrow"))
    assert found.n == 47 and found.value == 1.0
    assert (found.metrics, found.truth_sha256) == (downloaded.metrics, downloaded.truth_sha256)


def test_tars_of_the_hub_are_read_once_and_a_second_language_reads_none(
    tmp_path: Path, small: dict[str, KnownSet], hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts.wds(tmp_path / "clip-benchmark/wds_vtab-dtd", "test", TRUTHS, ".cls", NAMES)
    layouts.wds(tmp_path / "clip-benchmark/wds_vtab-dtd", "train", [b"not read"], ".cls", shards=1)
    oracle, cache, notes = Oracle(), FeatureCache(tmp_path / "cache"), tmp_path / "notes"
    passes = 0
    iterate = datasets.IterableDataset.__iter__

    def counted(rows: datasets.IterableDataset) -> Iterator[dict[str, Any]]:
        nonlocal passes
        passes += 1
        return iterate(rows)

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", counted)
    [english] = run(open_dataset("dtd", streams=notes), oracle, cache)
    assert passes == 1
    from tests.eval.conftest import clear

    clear()  # as another process would begin
    [chinese] = run(open_dataset("dtd-cn", streams=notes), oracle, cache)
    assert english.value == chinese.value == 1.0
    assert sum(oracle.seen) == 47 and passes == 1
    assert not list(hub_cache.rglob("*.arrow"))


def test_a_sample_of_a_stream_is_the_sample_of_its_files(tmp_path: Path, small: dict[str, KnownSet]) -> None:
    layouts.wds(tmp_path / "clip-benchmark/wds_vtab-dtd", "test", TRUTHS, ".cls", NAMES)
    oracle, cache = Oracle(), FeatureCache(tmp_path / "cache")
    [sample] = run(open_dataset("dtd", streams=tmp_path / "notes"), oracle, cache, limit=9)
    [local] = run(open_dataset("dtd", data_root=tmp_path / "clip-benchmark"), Oracle(), FeatureCache(None), limit=9)
    assert sample.n == 9 and sample.truth_sha256 == local.truth_sha256
    [whole] = run(open_dataset("dtd", streams=tmp_path / "notes"), oracle, cache)
    assert (sum(oracle.seen), whole.n, whole.value) == (47, 47, 1.0)


def test_a_download_asks_for_the_test_split_alone(tmp_path: Path, small: dict[str, KnownSet]) -> None:
    layouts.wds(tmp_path / "clip-benchmark/wds_vtab-dtd", "test", TRUTHS, ".cls", NAMES)
    layouts.write(tmp_path / "clip-benchmark/wds_vtab-dtd/train/0.tar", "no tar at all")
    [found] = run(open_dataset("dtd"), Oracle(), FeatureCache(None))
    assert (found.n, found.value) == (47, 1.0)


def test_captions_are_streamed_too(tmp_path: Path, small: dict[str, KnownSet]) -> None:
    texts = [f"第{number}张图\n图片{number}".encode() for number in range(6)]
    layouts.wds(tmp_path / "flickr30k_cn", "test", texts, ".txt")
    features = datasets.Features({"image": datasets.Image(), "caption": [datasets.Value("string")]})
    rows = {
        "image": [{"bytes": layouts.picture(number), "path": None} for number in range(6)],
        "caption": [text.decode().splitlines() for text in texts],
    }
    file = tmp_path / "root/flickr30k_cn/data/test-00000-of-00001.parquet"
    file.parent.mkdir(parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    dataset = open_dataset("flickr30k-cn", data_root=tmp_path / "root", streams=tmp_path / "notes")
    truth = dataset.truth["zh"]
    assert isinstance(truth, Captions)
    assert truth.texts[2:4] == ("第1张图", "图片1") and truth.about[2:4] == ((1,), (1,))
    [found] = run(dataset, Oracle(), FeatureCache(None))
    assert (found.value, found.n) == (1.0, 6)


def test_a_training_split_of_unknown_size_is_streamed_for_probes(tmp_path: Path, small: dict[str, KnownSet]) -> None:
    from dcclip_cli.eval.datasets import training_split

    names = [f"Thing {number}" for number in range(10)]
    for split, count in (("test", 10), ("train", 30)):
        truths = [f"{number % 10}".encode() for number in range(count)]
        layouts.wds(tmp_path / "clip-benchmark/wds_mnist", split, truths, ".cls", names)
    train = training_split(open_dataset("mnist", streams=tmp_path / "notes"))
    assert len(train.images) == 30
    assert train.labels[np.arange(30)].tolist() == [*range(10)] * 3


@pytest.mark.parametrize(
    ("kept", "said"),
    [(0.5, r"the split test has \d\d images, 47 are expected"), (0, "the split test broke off after 24 images: ")],
)
def test_a_stream_that_breaks_off_keeps_what_was_embedded(
    kept: float, said: str, tmp_path: Path, small: dict[str, KnownSet]
) -> None:
    root = tmp_path / "clip-benchmark/wds_vtab-dtd"
    layouts.wds(root, "test", TRUTHS, ".cls", NAMES)
    whole = (root / "test/1.tar").read_bytes()
    (root / "test/1.tar").write_bytes(whole[: int(kept * len(whole))] or b"no tar at all")
    oracle = Oracle()
    with pytest.raises(DcclipError, match=said) as caught:
        run(open_dataset("dtd", streams=tmp_path / "notes"), oracle, FeatureCache(tmp_path / "cache"))
    assert "wds_vtab-dtd" in caught.value.what and "\n" not in caught.value.what
    assert 24 <= sum(oracle.seen) < 47
    again = Oracle()
    with pytest.raises(DcclipError, match=said):
        run(open_dataset("dtd", streams=tmp_path / "notes"), again, FeatureCache(tmp_path / "cache"))
    assert not again.seen


@pytest.mark.parametrize(("count", "said"), [(46, "has 46 images, 47 are expected"), (48, "has more images")])
def test_a_stream_of_another_size_is_refused(count: int, said: str, tmp_path: Path, small: dict[str, KnownSet]) -> None:
    truths = [f"{number % 47}".encode() for number in range(count)]
    layouts.wds(tmp_path / "clip-benchmark/wds_vtab-dtd", "test", truths, ".cls", NAMES)
    with pytest.raises(DcclipError, match=said):
        run(open_dataset("dtd", streams=tmp_path / "notes"), Oracle(), FeatureCache(None))


def test_what_is_no_such_data_set_is_told_before_an_image_is_read(tmp_path: Path, small: dict[str, KnownSet]) -> None:
    with pytest.raises(DcclipError, match=r"data set dtd needs its images: .*wds_vtab-dtd"):
        open_dataset("dtd", streams=tmp_path / "notes")  # no hub, no folder
    root = tmp_path / "clip-benchmark/wds_vtab-dtd"
    layouts.wds(root, "test", TRUTHS, ".cls", NAMES[1:] + NAMES[:1])
    with pytest.raises(DcclipError, match="class 0 is 'thing 1' there"):
        open_dataset("dtd", streams=tmp_path / "notes")
    parquet(tmp_path / "data/dtd/data/test-00000-of-00001.parquet", range(47))
    with pytest.raises(DcclipError, match=r"classnames\.txt, the order of its labels, can't be had"):
        open_dataset("dtd", data_root=tmp_path / "data", streams=tmp_path / "notes")
    (tmp_path / "data/dtd/data/test-00000-of-00001.parquet").write_bytes(b"PAR1 half of one")
    with pytest.raises(DcclipError, match="dtd can't be loaded"):
        open_dataset("dtd", data_root=tmp_path / "data", streams=tmp_path / "notes2")


def test_an_unreadable_image_of_a_stream_is_counted_and_named(tmp_path: Path, small: dict[str, KnownSet]) -> None:
    root = tmp_path / "clip-benchmark/wds_vtab-dtd"
    layouts.wds(root, "test", TRUTHS, ".cls", NAMES, shards=1)
    members = {}
    for number, truth in enumerate(TRUTHS):
        members[f"s{number:07}.webp"] = b"no picture" if number == 5 else layouts.picture(number)
        members[f"s{number:07}.cls"] = truth
    layouts.tar(root / "test/0.tar", members)
    [found] = run(open_dataset("dtd", streams=tmp_path / "notes"), Oracle(), FeatureCache(None))
    assert found.n == 46 and list(found.corrupt) == ["5"] and found.value == 1.0
