"""mteb itself reads the results that dcclip writes, and measures the same on dcclip's tasks with dcclip's models."""

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta
from mteb.results import TaskResult
from PIL import Image
from torch.utils.data import DataLoader

import dcclip_mteb
from dcclip_cli.api import evaluate
from dcclip_cli.data import prompts
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval import registry
from dcclip_cli.eval.dataset import ImageTransform
from dcclip_cli.eval.datasets import open_dataset
from dcclip_cli.eval.leaderboards.mteb import tasks_of
from dcclip_cli.eval.registry import SETS
from dcclip_mteb.retrieval import split_data
from dcclip_mteb.zero_shot import TemplateEnsemble
from tests.eval import layouts
from tests.tars import tar_bytes

QUICKSTART = Path(__file__).parents[2] / "recipes/quickstart"
TEACHER = str(QUICKSTART / "teacher")
CLASSES = ("cifar10", "pets", "kitti_distance", "hateful_memes", "voc2007")
TEXTS = ("flickr30k_cn", "muge_cn")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Some of the tasks' data sets, two images for a class or a little more, in layouts that are published."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    table = open_pairs(QUICKSTART / "emojione2.parquet")
    names = {name: registry.prompts_of(SETS[name]) for name in CLASSES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "SETS", SETS | {name: replace(SETS[name], size=None, texts=None) for name in SETS})
        for name in CLASSES[:-1]:
            keys = prompts.read(names[name]).folders
            for row in range(2 * len(keys) + 8):  # of some classes more than of others
                key = keys[row] if row < len(keys) else keys[int(len(keys) * random.random() ** 2)]
                place = folder / name / SETS[name].split / key / f"{row}.png"
                layouts.write(place, image(table, row))
        voc(folder / "voc2007", table, random)
        for name in TEXTS:
            captions(folder / name, SETS[name].split, table)
        yield folder


def image(table: Any, row: int) -> bytes:
    first_image = table.image(row)
    return first_image if isinstance(first_image, bytes) else Path(first_image).read_bytes()


def voc(folder: Path, table: Any, random: np.random.Generator) -> None:
    truth = np.concatenate([np.eye(20), random.random((60, 20)) < 0.1]).astype(np.uint8)
    members = {f"s{row:03}.npy": layouts.npy(values) for row, values in enumerate(truth)}
    members |= {f"s{row:03}.png": image(table, row) for row in range(len(truth))}
    layouts.write(folder / "classnames.txt", "\n".join(prompts.read("voc2007").names["en"]) + "\n")
    layouts.write(folder / "test/nshards.txt", "1\n")
    layouts.write(folder / "test/0.tar", tar_bytes(sorted(members.items())))


def captions(folder: Path, split: str, table: Any) -> None:
    """As Chinese-CLIP publishes them; every fifth image has a second text, one text describes two images."""
    lines = [f"{row}\t{base64.urlsafe_b64encode(image(table, row)).decode()}\n" for row in range(60)]
    texts = [(table.captions("zh")[row][0], [row]) for row in range(60)]
    texts += [(f"一张{text}的图片", image_ids) for text, image_ids in texts[::5]] + [("动物", [3, 4])]
    rows = [{"text_id": n, "text": text, "image_ids": image_ids} for n, (text, image_ids) in enumerate(texts)]
    layouts.write(folder / f"{split}_imgs.tsv", "".join(lines))
    layouts.write(folder / f"{split}_texts.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def named(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(registry.name_in(SETS[name], "zh") for name in names)


@pytest.fixture(scope="module")
def written(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo teacher's results on all of the data sets in mteb's form."""
    shared: dict[str, Any] = {"data_root": str(root), "precision": "fp32", "device": "cpu", "cache": False}
    out = tmp_path_factory.mktemp("written")
    evaluate(model=TEACHER, datasets=named((*CLASSES, *TEXTS)), out=out, formats=["mteb"], **shared)
    assert [path.name for path in out.iterdir()] == ["mteb"]
    return out / "mteb"


def scores_of(result: TaskResult) -> dict[str, float]:
    """The numbers of a result that has one split."""
    [[scores]] = result.scores.values()
    assert scores["languages"] == ["zho-Hans"] and scores["hf_subset"] == "default"
    return {name: value for name, value in scores.items() if isinstance(value, float)}


def test_mteb_measures_what_dcclip_does_to_a_millionth(root: Path, written: Path) -> None:
    names = [task for name in named((*CLASSES, *TEXTS)) for task in tasks_of(name, "zh")]
    tasks = dcclip_mteb.get_tasks(names, data_root=root)
    meta = dcclip_mteb.model_meta(TEACHER)
    theirs = mteb.evaluate(meta, tasks, cache=None, co2_tracker=False, show_progress_bar=False).task_results
    [ours] = mteb.ResultCache(written).load_results(tasks=tasks)
    assert (ours.model_name, ours.model_revision) == (meta.name, meta.revision)
    own_results = {result.task_name: result for result in ours.task_results}
    assert own_results.keys() == set(names) and len(names) == 8
    for result in theirs:
        expected, first_image = scores_of(result), scores_of(own_results[result.task_name])
        assert 0.0 < first_image["main_score"] < 1.0
        assert first_image == {name: pytest.approx(expected[name], abs=1e-6) for name in first_image}
        assert result.dataset_revision == own_results[result.task_name].dataset_revision == "no_revision_available"
        assert result.scores.keys() == own_results[result.task_name].scores.keys()
    accuracy, recall = (scores_of(own_results["OxfordPetsZeroShot-zh"])[name] for name in ("accuracy", "recall"))
    assert accuracy != recall == scores_of(own_results["OxfordPetsZeroShot-zh"])["main_score"]


def test_the_facts_in_model_meta_are_those_of_the_directory_and_make_a_valid_model_meta(written: Path) -> None:
    [file] = written.glob("results/local__demo-teacher/*/model_meta.json")
    [meta] = [ModelMeta(**json.loads(file.read_text("utf-8")) | {"loader": None})]
    assert meta.revision == file.parent.name
    assert (meta.embed_dim, meta.max_tokens, meta.n_embedding_parameters) == (256, 32, 4000 * 192)
    assert meta.n_parameters == json.loads((Path(TEACHER) / "dcclip.json").read_text("utf-8"))["parameters"]
    assert meta.memory_usage_mb == pytest.approx(4 * meta.n_parameters / 2**20, abs=0.1)
    assert set(meta.languages or ()) == {"zho-Hans", "eng-Latn"} and meta.open_weights is None
    published = dcclip_mteb.model_meta(TEACHER, name="some-org/teacher", open_weights=True)
    assert (published.name, published.open_weights, published.revision) == ("some-org/teacher", True, meta.revision)


def test_all_26_tasks_have_complete_metadata_and_a_name_that_is_a_data_set_of_dcclip() -> None:
    assert len(dcclip_mteb.TASKS) == 26
    assert all(task.metadata.is_filled() for task in dcclip_mteb.TASKS.values())
    assert {task.dataset_name for task in dcclip_mteb.TASKS.values()} <= set(registry.by_name())
    elevater = {next(iter(tasks_of(name, "zh"))) for name in registry.expand("elevater-cn")}
    assert len(elevater) == 20 and elevater <= dcclip_mteb.TASKS.keys()
    with pytest.raises(DcclipError, match="there is no task CIFAR10ZeroShot-xx"):
        dcclip_mteb.get_tasks(["CIFAR10ZeroShot-xx"])


def test_of_equal_scores_mteb_takes_the_last_name_which_is_the_first_image_or_text(root: Path) -> None:
    data = split_data(open_dataset("flickr30k-cn", data_root=root), by_text=True)
    for rows in (data["corpus"], data["queries"]):
        assert list(rows["id"]) == sorted(rows["id"], reverse=True) and len(rows) > 10


class Other(AbsEncoder):
    """Another library's model: it notes the sizes of images; a text is its length."""

    def __init__(self) -> None:
        self.sizes: set[tuple[int, int]] = set()

    def encode(self, inputs: Any, **more: Any) -> np.ndarray:
        assert "transform" not in more
        if "image" in inputs.dataset.column_names:
            self.sizes |= {image.size for batch in inputs for image in batch["image"]}
            return np.ones((len(inputs.dataset), 2), np.float32)
        return np.asarray([[len(text), 0.0] for batch in inputs for text in batch["text"]], np.float32)


def test_a_model_that_dcclip_does_not_load_gets_whole_images_as_squares_and_one_embedding_a_class() -> None:
    rows = Dataset.from_dict({"image": [Image.new("RGB", (6, 4))]})
    images = DataLoader(
        rows.cast_column("image", ImageFeature()), collate_fn=lambda rows: {"image": [row["image"] for row in rows]}
    )
    model = Other()
    ensemble = TemplateEnsemble(model, 2, ImageTransform(squash=True))
    assert ensemble.encode(images).shape == (1, 2) and model.sizes == {(4, 4)}
    texts = DataLoader(Dataset.from_dict({"text": ["猫", "一只猫", "狗", "一只狗"]}))
    assert ensemble.encode(texts).tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_probabilities_that_single_precision_would_call_equal_stay_apart() -> None:
    model = Other()
    angles = np.asarray([0.6, 0.61])  # 1 - 5e-12 and 1 - 2e-11 for the first class
    images = np.stack([np.cos(angles), np.sin(angles)], 1)
    cosines = TemplateEnsemble(model, 1, ImageTransform()).similarity(images, np.eye(2))
    assert len(set(cosines[:, 0].tolist())) == 2 and set(cosines[:, 0].astype(np.float32).tolist()) == {1.0}


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_the_code_in_the_readme_runs(page: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(dcclip_mteb.__file__).parents[1] / page).read_text("utf-8")
    [code] = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    assert '"DATA"' in code and '"runs/quickstart/align/model"' in code
    monkeypatch.chdir(tmp_path)
    exec(code.replace("DATA", str(root)).replace("runs/quickstart/align/model", TEACHER), {})
    assert [file.name for file in tmp_path.glob("results/mteb/results/*/*/*ZeroShot*")] == ["CIFAR10ZeroShot-zh.json"]
