"""Each hint of opening a test set is followed to the letter, and then the test set opens.

A case is a generator: it yields what to open, is sent the hint of the error, and yields what the hint says to open.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.datasets import training_split
from dcclip_cli.eval.evaluate import EvalOptions, open_datasets
from tests.cli.conftest import dcclip
from tests.eval import layouts
from tests.eval.conftest import clear

pytestmark = pytest.mark.usefixtures("small")

Options = dict[str, Any]  # of eval
Case = Generator[Options, str]
NAMES = [f"alpha_{number}" for number in range(47)]
TRUTHS = [f"{number}".encode() for number in range(47)]
CASES: list[Callable[[Path], Case]] = []


def flags(hint: str) -> Options:
    """The options of the flags in a hint: `--partial all` is {partial: all}."""
    found = dict(re.findall(r"--([a-z-]+) ([^\s,;]+)", hint))
    options: Options = {name: value for name, value in found.items() if name in ("partial", "task", "languages")}
    if "languages" in options:
        options["languages"] = [options["languages"]]
    return options


def write_names(hint: str, *others: str) -> None:
    """Write the file and the line that a hint shows, and a line like it for other folders."""
    match = re.search(r"write (.*) with a line for each folder, for example: (.*)", hint)
    assert match, hint
    [(folder, names)] = yaml.safe_load(match[2]).items()
    Path(match[1]).write_text(yaml.safe_dump(dict.fromkeys((folder, *others), names), allow_unicode=True), "utf-8")


@CASES.append
def a_part_of_a_split(root: Path) -> Case:
    layouts.wds(root / "dtd", "test", TRUTHS[:40], ".cls")
    hint = yield {"datasets": ["dtd-cn"]}
    yield {"datasets": ["dtd-cn"], **flags(hint)}


@CASES.append
def classes_without_images(root: Path) -> Case:
    layouts.class_folders(root / "dtd/test", NAMES[:20])
    hint = yield {"datasets": ["dtd"]}
    yield {"datasets": ["dtd"], **flags(hint)}


@CASES.append
def a_mistyped_name(root: Path) -> Case:
    layouts.class_folders(root / "dtd/test", NAMES)
    hint = yield {"datasets": ["dtd_nc"]}
    yield {"datasets": [hint.removeprefix("did you mean ").removesuffix("?")]}


@CASES.append
def a_name_like_no_other(root: Path) -> Case:
    layouts.class_folders(root / "dtd/test", NAMES)
    hint = yield {"datasets": ["猫狗大战"]}
    listed = dcclip(*hint.removeprefix("see: dcclip ").split()).stdout
    yield {"datasets": re.findall(r"\bdtd(?=,)", listed)}


@CASES.append
def no_images_anywhere(root: Path) -> Case:
    (root / "dtd").mkdir()
    hint = yield {"datasets": ["dtd"]}
    folder = re.search(r"DIR has (\S+)/\*\.jpg", hint)
    assert folder, hint
    layouts.class_folders((root / folder[1]).parent, NAMES, ".jpg")
    yield {"datasets": ["dtd"]}


@CASES.append
def no_images_and_tars_in_their_place(root: Path) -> Case:
    (root / "dtd").mkdir()
    hint = yield {"datasets": ["dtd"]}
    tar = re.search(r"or (\S+\.tar)", hint)
    assert tar, hint
    members = {f"{number}{end}": content for number in range(47) for end, content in sample(number).items()}
    layouts.tar(root / tar[1], members)
    yield {"datasets": ["dtd"]}


def sample(number: int) -> dict[str, bytes]:
    return {".png": layouts.image(number), ".cls": TRUTHS[number]}


@CASES.append
def no_captions_anywhere(root: Path) -> Case:
    hint = yield {"datasets": ["flickr30k"]}
    folder = re.search(r"DIR/(\w+)/ has its captions and images", hint)
    assert folder, hint
    images = [{"filename": "1.jpg", "split": "test", "sentences": [{"raw": "a cat"}]}]
    layouts.write(root / folder[1] / "dataset_flickr30k.json", json.dumps({"images": images}))
    layouts.write(root / folder[1] / "flickr30k-images/1.jpg", layouts.image(1))
    yield {"datasets": ["flickr30k"]}


@CASES.append
def a_folder_that_is_no_class(root: Path) -> Case:
    layouts.class_folders(root / "dtd/test", [*NAMES[1:], "布料"])
    hint = yield {"datasets": ["dtd"]}
    (root / "dtd/test/布料").rename(root / "dtd/test" / hint.removeprefix("class folders have names like "))
    yield {"datasets": ["dtd"]}


@CASES.append
def captions_in_the_other_language(root: Path) -> Case:
    layouts.wds(root / "xm3600", "test", [b"a cat", b"a dog"], ".txt")
    hint = yield {"datasets": ["xm3600-cn"]}
    folder = re.search(r"put the captions in zh into a folder (\S+),", hint)
    assert folder, hint
    layouts.wds(root / folder[1], "test", ["一只猫".encode(), "一只狗".encode()], ".txt")
    yield {"datasets": ["xm3600-cn", "xm3600"]}


# ---- data sets of the user's own


def pairs(root: Path, name: str, **captions: list[tuple[str, ...]]) -> str:
    """A Parquet file of pairs with these captions by language."""
    rows = [Pair(f"{number}", layouts.image(number)) for number in range(2)]
    for language, texts in captions.items():
        rows = [replace(row, **{language: own}) for row, own in zip(rows, texts, strict=True)]  # type: ignore[arg-type]
    write_parquet(root / name, rows)
    return str(root / name)


@CASES.append
def pairs_of_which_each_language_misses_some(root: Path) -> Case:
    own = pairs(root, "own.parquet", zh=[("猫",), ()], en=[(), ("dog",)])
    hint = yield {"datasets": [own]}
    yield {"datasets": [own], **flags(hint)}


@CASES.append
def pairs_without_the_language_that_is_asked_for(root: Path) -> Case:
    own = pairs(root, "own.parquet", zh=[("猫",), ("狗",)])
    hint = yield {"datasets": [own], "languages": ["en"]}
    yield {"datasets": [own], **flags(hint)}


@CASES.append
def class_folders_without_the_language_that_is_asked_for(root: Path) -> Case:
    layouts.class_folders(root / "own", ["猫", "狗"])
    hint = yield {"datasets": [str(root / "own")], "languages": ["en", "zh"]}
    yield {"datasets": [str(root / "own")], **flags(hint)}


@CASES.append
def wordnet_ids_that_no_list_has(root: Path) -> Case:
    layouts.class_folders(root / "own", ["n01440764", "n99999999"])
    hint = yield {"datasets": [str(root / "own")]}
    write_names(hint, "n01440764", "n99999999")
    yield {"datasets": [str(root / "own")], "languages": ["en", "zh"]}


@CASES.append
def a_class_folder_without_a_name(root: Path) -> Case:
    long = "7: " + "a long name, " * 15
    layouts.class_folders(root / "own", [long, "狗"])
    layouts.write(root / "own/classes.yaml", "狗: {en: dog, zh: 狗}")
    hint = yield {"datasets": [str(root / "own")]}
    write_names(hint, "狗")
    yield {"datasets": [str(root / "own")], "languages": ["en", "zh"]}


@CASES.append
def a_classes_yaml_that_is_none(root: Path) -> Case:
    layouts.class_folders(root / "own", ["cat", "狗"])
    layouts.write(root / "own/classes.yaml", "[cat")
    hint = yield {"datasets": [str(root / "own")]}
    write_names(hint, "狗")
    yield {"datasets": [str(root / "own")], "languages": ["en", "zh"]}


@CASES.append
def a_classes_yaml_of_which_each_language_misses_some(root: Path) -> Case:
    layouts.class_folders(root / "own", ["cat", "狗"])
    layouts.write(root / "own/classes.yaml", "cat: {en: cat}\n狗: {zh: 狗}")
    hint = yield {"datasets": [str(root / "own")]}
    write_names(hint, "狗")
    yield {"datasets": [str(root / "own")], "languages": ["en", "zh"]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_hint_works_when_it_is_followed(case: Callable[[Path], Case], tmp_path: Path) -> None:
    steps = case(tmp_path)
    with pytest.raises(DcclipError) as error:
        opened(next(steps), tmp_path)
    clear()  # files are changed between two commands, not within one
    after = steps.send(error.value.hint)
    found = opened(after, tmp_path)
    assert found and all(len(one.images) for one in found)
    assert all(list(one.truth) == after.get("languages", list(one.truth)) for one in found)


def opened(options: Options, root: Path) -> list[Any]:
    return open_datasets(EvalOptions.model_validate({"data_root": str(root)} | options))


def test_a_probe_without_training_images_is_told_where_they_are_looked_for(tmp_path: Path) -> None:
    layouts.class_folders(tmp_path / "dtd/test", NAMES)
    [dataset] = opened({"datasets": ["dtd"]}, tmp_path)
    with pytest.raises(DcclipError, match="has no train images of dtd") as error:
        training_split(dataset)
    folder = re.search(r"DIR has (\S+)/\*\.jpg", error.value.hint)
    assert folder, error.value.hint
    layouts.class_folders((tmp_path / folder[1]).parent, NAMES, ".jpg")
    clear()
    assert len(training_split(dataset).images) == 47
