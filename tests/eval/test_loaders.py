"""Every named data set is read from each layout that it is published in, with the right label for each image."""

from pathlib import Path

import numpy as np
import pytest
from datasets import DatasetDict

from dcclip_cli.data import prompts
from dcclip_cli.eval import registry
from dcclip_cli.eval.dataset import Classes, DataSet
from dcclip_cli.eval.datasets import open_dataset
from dcclip_cli.eval.registry import SETS, KnownSet
from tests.eval import layouts

pytestmark = pytest.mark.usefixtures("small")

SINGLE = [name for name, known in SETS.items() if known.task == "classification"]


def truth(dataset: DataSet) -> Classes:
    (found,) = dataset.truth.values()
    assert isinstance(found, Classes)
    return found


def labels_match(dataset: DataSet, classes: int) -> None:
    labels = truth(dataset).labels
    assert sorted(labels.tolist()) == list(range(classes))
    for index in (0, 1, classes // 2, classes - 1):
        assert layouts.label_of(dataset.images.load(index)) == labels[index]


def folders_of(known: KnownSet) -> list[str]:
    return prompts.read(registry.prompts_of(known)).folders


@pytest.mark.parametrize("name", SINGLE)
def test_class_folders_are_read_in_both_languages(name: str, small: dict[str, KnownSet], tmp_path: Path) -> None:
    known = small[name]
    layouts.class_folders(tmp_path / known.label / known.split, folders_of(known), ".JPEG")
    for suffix, second in (("", "Thing 1"), ("-cn", "东西1")):
        dataset = open_dataset(known.label + suffix, data_root=tmp_path)
        labels_match(dataset, known.classes)
        assert truth(dataset).names[1] == second
        assert dataset.metric == known.metric and dataset.transform.squash == known.squash


@pytest.mark.parametrize("known", [SETS["dtd"], SETS["rendered_sst2"]], ids=lambda known: known.name)
def test_webdataset_tars_are_read_as_clip_benchmark_writes_them(known: KnownSet, tmp_path: Path) -> None:
    names = [f"thing {number}" for number in range(known.classes)]
    folder = tmp_path / (f"wds_{known.hub}" if known.hub else known.name)
    layouts.wds(folder, "test", [f"{number}".encode() for number in range(known.classes)], ".cls", names)
    labels_match(open_dataset(known.name, data_root=tmp_path), known.classes)


def test_voc_in_tars_has_its_classes_in_npy(tmp_path: Path) -> None:
    rows = np.eye(20, dtype=np.float32)
    rows[3, 7] = 1
    layouts.wds(tmp_path / "voc2007", "test", [layouts.npy(row) for row in rows], ".npy")
    assert (truth(open_dataset("voc2007", data_root=tmp_path)).labels == (rows > 0)).all()


def test_a_folder_of_save_to_disk_is_read(tmp_path: Path) -> None:
    DatasetDict({"test": layouts.rows("webp", cls=range(47))}).save_to_disk(tmp_path / "dtd")
    labels_match(open_dataset("dtd-cn", data_root=tmp_path), 47)


def test_imagenet_v2_has_folders_by_number(tmp_path: Path) -> None:
    numbers = [str(number) for number in range(120)]  # whose order as texts is another
    layouts.class_folders(tmp_path / "imagenet_v2/imagenetv2-matched-frequency-format-val", numbers)
    labels_match(open_dataset("imagenet-v2", data_root=tmp_path), 120)


def test_objectnet_leaves_out_the_classes_that_imagenet_lacks_and_cuts_the_border(
    tmp_path: Path, small: dict[str, KnownSet]
) -> None:
    layouts.class_folders(tmp_path / "objectnet/images", folders_of(small["objectnet"]))
    layouts.class_folders(tmp_path / "objectnet/images/", ["weight_exercise"])
    dataset = open_dataset("objectnet", data_root=tmp_path)
    assert dataset.transform.border == 2 and len(dataset.images) == 113


def test_another_class_order_in_the_tars_is_mapped_by_its_names(tmp_path: Path) -> None:
    names = [f"Thing {6 - number}" for number in range(7)]
    layouts.wds(tmp_path / "fer2013", "test", [f"{6 - number}".encode() for number in range(7)], ".cls", names)
    labels_match(open_dataset("fer2013", data_root=tmp_path), 7)


def test_templates_are_the_sets_own_a_compact_set_or_none(tmp_path: Path, small: dict[str, KnownSet]) -> None:
    layouts.class_folders(tmp_path / "dtd/test", folders_of(small["dtd"]))
    assert truth(open_dataset("dtd", None, tmp_path)).templates == ("a photo of a {}.", "{}")
    assert truth(open_dataset("dtd-cn", None, tmp_path, "compact")).templates == ("一个{}",)
    assert truth(open_dataset("dtd-cn", None, tmp_path, "name")).templates == ("{}",)
