"""What a collection leaves, and how it accounts for the rest."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.files import lock
from dcclip_cli.core.progress import Lines, Silent
from dcclip_cli.curation import slices
from dcclip_cli.curation.collect import collect
from dcclip_cli.curation.executors import Engine
from dcclip_cli.curation.options import CollectOptions
from dcclip_cli.curation.sources.tables import TableSource
from dcclip_cli.curation.work import WorkFolder
from dcclip_cli.data.dataset import open_pairs, write_parquet
from dcclip_cli.data.pair import Pair
from dcclip_cli.model.preprocess import decode
from dcclip_cli.recipe.yaml import anchored
from tests.curation.conftest import MakeImage

RECIPE = Path(__file__).parents[2] / "recipes" / "collect-sample.yaml"
ONE = Engine(workers=1)


def options(folder: Path, pairs: list[Pair], **more: Any) -> CollectOptions:
    folder.mkdir(exist_ok=True)
    write_parquet(folder / "raw.parquet", pairs)
    return CollectOptions(sources=(TableSource(path=folder / "raw.parquet"),), **more)


def stop_before_writing(options: CollectOptions, out: Path) -> None:
    with pytest.MonkeyPatch.context() as broken, pytest.raises(TypeError):
        broken.setattr(slices, "write_shard", None)
        collect(options, out, engine=ONE)


def dropped(out: Path) -> list[tuple[str, str, str | None]]:
    rows = pq.read_table(out / "dropped.parquet").to_pylist()
    return [(row["key"], row["reason"], row["language"]) for row in rows]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_sample_recipe_keeps_and_drops_what_its_header_says(tmp_path: Path) -> None:
    section = yaml.safe_load(RECIPE.read_text("utf-8"))["collect"]
    result = collect(CollectOptions.model_validate(anchored(section, RECIPE.parent)), tmp_path / "out", engine=ONE)
    assert (result.pairs.read, result.pairs.kept, result.shards) == (15, 8, 1)
    once = ("small", "unreadable", "merged", "aspect", "missing", "outside")
    assert result.pairs.dropped == {"no-caption": 1, **{f"image-{reason}": 1 for reason in once}}
    for language in ("zh", "en"):
        assert result.captions[language].dropped["caption-language"] == 1
    pairs = open_pairs(tmp_path / "out")
    assert pairs.captions("zh") == [
        ("猫脸", "一只猫"), ("狗脸",), ("披萨",), ("汽车",), ("吉他",), ("蝴蝶，张开了翅膀",), ("自行车",), (),
    ]  # fmt: skip
    assert pairs.captions("en")[0] == ("cat face", "a cat")
    assert pairs.captions("en")[5:] == [("a butterfly, wings spread",), (), ("turtle",)]
    assert [Path(pairs[index].meta["image"]).suffix for index in range(3)] == [".webp", ".png", ".jpg"]


def test_the_manifest_gives_the_counts_and_each_shards_sha256(tmp_path: Path, picture: MakeImage) -> None:
    pairs = [
        Pair("a", picture("red"), zh=("一只猫",), en=("a cat", "猫")),
        Pair("b", picture("blue"), zh=("一只狗",)),
        Pair("c", picture("red"), en=("the cat sleeps",)),
        Pair("d", picture("green", (8, 8)), en=("a tiny fox",)),
        Pair("e", picture("test"), en=("a picture of the test",)),
    ]
    out = tmp_path / "out"
    evaluation = tmp_path / "set"
    lines = list[str]()
    evaluation.mkdir()
    (evaluation / "whole.png").write_bytes(picture("test"))
    (evaluation / "half.png").write_bytes(picture("test")[:50])
    work = options(tmp_path, pairs, shard_size=1, decontaminate={"paths": [evaluation]})
    collect(work, out, engine=ONE, progress=Lines(lines.append))
    assert f"{evaluation}: 1 images are compared, 1 are unreadable" in lines
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    [compared] = manifest["compared"]
    assert (compared["path"], compared["images"], compared["unreadable"]) == (str(evaluation), 1, 1)
    reasons = {"evaluation-image": 1, "image-merged": 1, "image-small": 1}
    assert manifest["pairs"] == {"read": 5, "kept": 2, "dropped": reasons}
    assert manifest["captions"] == {
        "zh": {"read": 2, "kept": 2, "dropped": {}},
        "en": {"read": 5, "kept": 2, "dropped": {"caption-language": 1, "evaluation-image": 1, "image-small": 1}},
    }
    assert manifest["sources"] == {"raw.parquet": manifest["pairs"]}
    digests = contents(out)
    shards = [f"00000{number}.tar{suffix}" for number in range(2) for suffix in ("", ".index.arrow")]
    assert list(digests) == [*shards, "dropped.parquet", "manifest.json", "report.html"]
    assert manifest["shards"] == [
        {"name": name, "pairs": 1, "sha256": digests[name]} for name in ("000000.tar", "000001.tar")
    ]
    assert dropped(out) == [
        ("000000000000", "caption-language", "en"),
        ("000002000000", "image-merged", None),
        ("000003000000", "image-small", None),
        ("000004000000", "evaluation-image", None),
    ]
    cat = open_pairs(out)[0]
    assert (cat.key, cat.zh, cat.en) == ("000000000000", ("一只猫",), ("a cat", "the cat sleeps"))


@pytest.fixture
def five(tmp_path: Path, picture: MakeImage) -> CollectOptions:
    """Five good pairs, one with a picture that is none and one that is there twice, in three slices."""
    captions = ("一只猫在椅子上", "两个孩子骑自行车", "雪山下的湖", "桌上有苹果", "夜里的城市")
    pairs = [Pair(str(n), picture(n), zh=(text,)) for n, text in enumerate(captions)]
    pairs += [Pair("x", b"gif", zh=("坏图片在这里",)), Pair("y", picture(3), en=("apples on a table",))]
    return options(tmp_path / "in", pairs, shard_size=3)


def test_an_unfinished_run_reads_no_slice_again_unless_it_is_of_other_options_or_other_data(
    tmp_path: Path, five: CollectOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first_slice = WorkFolder(tmp_path / ".out.partial").result("read", 0)
    collect(five, tmp_path / "whole", engine=ONE)
    stop_before_writing(five, out)
    assert first_slice.exists() and not out.exists()
    with monkeypatch.context() as unreadable:
        unreadable.setattr(TableSource, "read", None)
        collect(five, out, engine=ONE)
    assert contents(out) == contents(tmp_path / "whole") and not first_slice.exists()
    shutil.rmtree(out)
    stop_before_writing(five, out)
    assert collect(five.model_copy(update={"shard_size": 7}), out, engine=ONE).shards == 1
    shutil.rmtree(out)
    stop_before_writing(five, out)
    os.utime(tmp_path / "in" / "raw.parquet", ns=(1, 1))
    with monkeypatch.context() as unreadable, pytest.raises(TypeError):
        unreadable.setattr(TableSource, "read", None)
        collect(five, out, engine=ONE)
    assert not first_slice.exists()


def test_a_finished_output_is_kept_unless_fresh_is_given(tmp_path: Path, picture: MakeImage) -> None:
    out = tmp_path / "out"
    work = options(tmp_path, [Pair("a", picture(), zh=("一只猫",)), Pair("b", picture("blue"), en=("a dog",))])
    first = collect(work, out, engine=ONE)
    before = contents(out)
    write_parquet(tmp_path / "raw.parquet", [Pair("a", picture(), zh=("一只猫",))])
    progress = Mock(wraps=Silent())
    again = collect(work, out, progress, engine=ONE)
    assert (first.already_finished, again.already_finished) == (False, True)
    assert (again.pairs, again.captions, contents(out)) == (first.pairs, first.captions, before)
    progress.say.assert_not_called()
    collect(work.model_copy(update={"needs": ("zh",)}), out, progress, engine=ONE)
    progress.say.assert_called_once_with(
        f"{out} was created with other options than this recipe's; use --fresh to redo it"
    )
    assert collect(work, out, fresh=True, engine=ONE).pairs.kept == 1
    assert len(open_pairs(out)) == 1


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("foreign", ["photo.jpg", "manifest.json"])
def test_a_folder_that_is_no_output_is_never_touched(
    tmp_path: Path, five: CollectOptions, foreign: str, fresh: bool
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / foreign).write_text("[]")
    with pytest.raises(DcclipError, match="exists, but collect did not write it"):
        collect(five, tmp_path / "out", fresh=fresh, engine=ONE)
    assert (tmp_path / "out" / foreign).read_text() == "[]"


def test_keeping_nothing_is_an_error_that_says_why(tmp_path: Path, picture: MakeImage) -> None:
    pairs = [Pair("a", picture(size=(8, 8)), zh=("猫",)), Pair("b", b"x", en=("dog",)), Pair("c", b"x", en=("fox",))]
    with pytest.raises(DcclipError, match="none of the 3 pairs passed: 2 image-format, 1 image-small") as error:
        collect(options(tmp_path, pairs), tmp_path / "out", engine=ONE)
    assert not (tmp_path / "out").exists()
    assert error.value.hint.startswith("The file is not in an allowed format. Change collect.filters: {kind: image")
    table = next(Path(word) for word in error.value.hint.split() if word.endswith("dropped.parquet"))
    assert len(dropped(table.parent)) == 3
    (tmp_path / "table.csv").write_text("image,zh\n照片/a.jpg,猫\n")
    with pytest.raises(DcclipError, match="none of the 1 pairs passed: 1 image-missing") as error:
        collect(CollectOptions(sources=(TableSource(path=tmp_path / "table.csv"),)), tmp_path / "out", engine=ONE)
    assert error.value.hint.startswith("The image file does not exist. Change collect.sources: {images}")
    with pytest.raises(DcclipError, match=r"absent\.tsv does not exist"):
        collect(CollectOptions(sources=(TableSource(path=tmp_path / "absent.tsv"),)), tmp_path / "new", engine=ONE)
    assert not list(tmp_path.glob("*new*"))  # an error before anything is written


def test_a_pair_remembers_its_source_its_place_there_and_its_license(tmp_path: Path, picture: MakeImage) -> None:
    write_parquet(tmp_path / "raw.parquet", [Pair("a", picture(), zh=("一只猫",), meta={"license": "MIT"})])
    (tmp_path / "dog.png").write_bytes(picture("blue"))
    (tmp_path / "dogs.tsv").write_text("image\ten\ndog.png\ta dog\n")
    pairs = TableSource(path=tmp_path / "raw.parquet", name="old", license="CC0-1.0")
    table = TableSource(path=tmp_path / "dogs.tsv", license="CC0-1.0")
    collect(CollectOptions(sources=(pairs, table)), tmp_path / "out", engine=ONE)
    cat, dog = open_pairs(tmp_path / "out")
    assert cat.meta == {"source": "old", "origin": "a", "license": "MIT"}
    assert dog.meta == {"source": "dogs.tsv", "origin": "2", "license": "CC0-1.0", "image": "dog.png"}


def test_a_limit_reads_so_many_spread_over_the_sources(tmp_path: Path, picture: MakeImage) -> None:
    counts = {"a": 2, "b": 10, "c": 10}
    for name, number in counts.items():
        pairs = [Pair(str(n), picture(f"{name}{n}"), zh=(f"第{n}张图片{name}",)) for n in range(number)]
        write_parquet(tmp_path / f"{name}.parquet", pairs)
    sources = tuple(TableSource(path=tmp_path / f"{name}.parquet", name=name) for name in counts)
    result = collect(CollectOptions(sources=sources, shard_size=3), tmp_path / "out", engine=ONE, limit=12)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))
    read_counts = {name: count["read"] for name, count in manifest["sources"].items()}
    assert (result.pairs.read, read_counts) == (12, {"a": 2, "b": 5, "c": 5})


_KILLED = """
from pathlib import Path
from dcclip_cli.curation.collect import collect
from dcclip_cli.curation.executors import Engine
from dcclip_cli.curation.options import CollectOptions, OutputOptions

if __name__ == "__main__":
    options = CollectOptions.model_validate_json(Path("options.json").read_text("utf-8"))
    collect(options, Path("out").absolute(), engine=Engine(workers=2))
"""


def test_a_killed_run_of_two_workers_done_again_leaves_what_an_unbroken_one_of_one_does(
    tmp_path: Path, picture: MakeImage
) -> None:
    pairs = [Pair(str(n), picture(n % 50, (96, 96)), zh=(f"第{n}张图片",), en=(f"picture {n}",)) for n in range(60)]
    work = options(tmp_path, pairs, shard_size=5)
    collect(work, tmp_path / "whole", engine=ONE)
    (tmp_path / "options.json").write_text(work.model_dump_json(), encoding="utf-8")
    (tmp_path / "run.py").write_text(_KILLED, encoding="utf-8")
    partial = WorkFolder(tmp_path / ".out.partial")
    run = subprocess.Popen([sys.executable, "run.py"], cwd=tmp_path)
    while run.poll() is None and not partial.result("read", 3).exists():
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert partial.root.exists()
    subprocess.run([sys.executable, "run.py"], cwd=tmp_path, check=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not list(tmp_path.glob(".out*"))


def test_shards_of_one_format_are_read_by_datasets(tmp_path: Path, picture: MakeImage) -> None:
    import datasets

    pairs = [Pair(str(seed), picture(seed, kind=kind), ("猫",), ("cat",)) for seed, kind in enumerate(("PNG", "JPEG"))]
    jpeg = options(tmp_path / "in", pairs, duplicates=(), output={"format": "jpeg"})
    collect(jpeg, tmp_path / "tars", engine=ONE)
    tars = {"train": str(tmp_path / "tars/*.tar")}
    dataset = datasets.load_dataset("webdataset", data_files=tars, split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["json"]["zh"] for row in dataset] == [["猫"], ["猫"]] and dataset[0]["jpg"].mode == "RGB"
    kept_pairs = list(open_pairs(tmp_path / "tars"))
    assert kept_pairs[1].image == pairs[1].image and kept_pairs[0].image != pairs[0].image


def test_images_are_shrunk_when_they_are_written_and_compared_as_they_were(tmp_path: Path, picture: MakeImage) -> None:
    large = picture(1, size=(400, 200), kind="JPEG")
    small = picture(2, size=(64, 64))
    pairs = [Pair("large", large, ("猫",), ("cat",)), Pair("small", small, ("狗",), ("dog",))]
    pairs.append(Pair("copy", large, ("小猫",), ("kitten",)))
    result = collect(options(tmp_path / "in", pairs, output={"max_side": 100}), tmp_path / "out", engine=ONE)
    assert result.pairs.kept == 2  # the copy is merged, whose bytes are those of the original
    shrunk, kept = sorted(open_pairs(tmp_path / "out"), key=lambda pair: pair.image == small)
    assert kept.image == small
    assert decode(shrunk.image).size == (100, 50)
    expected = decode(large).resize((100, 50), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(decode(shrunk.image), float) - np.asarray(expected, float)).mean() < 4  # of JPEG, drafts
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))
    assert manifest["options"]["output"]["max_side"] == 100


def test_a_second_collection_into_the_same_run_is_refused(tmp_path: Path, five: CollectOptions) -> None:
    with lock(tmp_path / ".out.lock"), pytest.raises(DcclipError, match="another process is collecting into") as error:
        collect(five, tmp_path / "out", engine=ONE)
    assert "--out" in error.value.hint
    assert collect(five, tmp_path / "out", engine=ONE).pairs.kept == 5
