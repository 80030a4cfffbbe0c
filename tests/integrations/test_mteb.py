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
from dcclip_cli.core.errors import DcclipError
from dcclip_cli.data import prompts
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.pair import Language
from dcclip_cli.eval import registry
from dcclip_cli.eval.dataset import ImageTransform
from dcclip_cli.eval.datasets import open_dataset
from dcclip_cli.eval.registry import SETS
from dcclip_cli.eval.result import EvalResult, pack, save_results, sha256_of
from dcclip_mteb.results import tasks_of, unfit
from dcclip_mteb.retrieval import split_data
from dcclip_mteb.zero_shot import TemplateEnsemble
from tests.eval import layouts
from tests.eval.test_compare import guesses, result
from tests.tars import tar_bytes

QUICKSTART = Path(__file__).parents[2] / "recipes/quickstart"
TEACHER = str(QUICKSTART / "teacher")
CLASSES = ("cifar10", "pets", "kitti_distance", "hateful_memes", "voc2007")
TEXTS = ("flickr30k_cn", "muge_cn")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Some of the tasks' data sets, two images for a class or a little more, in layouts that are published."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
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
    evaluate(model=TEACHER, datasets=named((*CLASSES, *TEXTS)), out=out / "own", **shared)
    assert dcclip_mteb.write_results(out / "own", out / "mteb", models=[TEACHER]) == []
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
    for task in theirs:
        expected = scores_of(task)
        first_image = scores_of(own_results[task.task_name])
        assert 0.0 < first_image["main_score"] < 1.0
        assert first_image == {name: pytest.approx(expected[name], abs=1e-6) for name in first_image}
        assert task.dataset_revision == own_results[task.task_name].dataset_revision == "no_revision_available"
        assert task.scores.keys() == own_results[task.task_name].scores.keys()
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


def zero_shot(name: str, language: Language, model: str = "学生 a/b") -> EvalResult:
    """A result on a named data set with its own class names and prompts; 300 of 400 images are right."""
    entry = registry.SETS[name]
    class_texts = prompts.read(registry.prompts_of(entry))
    row = replace(result(model, guesses(300), date="2026-11-27"), dataset=registry.name_in(entry, language))
    names = sha256_of(class_texts.names[language])
    return replace(
        row, language=language, class_names_sha256=names, templates_sha256=sha256_of(class_texts.templates[language])
    )


def retrieval(text_ranks: list[int], image_ranks: list[int]) -> EvalResult:
    details = {"text_ranks": pack(np.asarray(text_ranks)), "image_ranks": pack(np.asarray(image_ranks))}
    changes = {"task": "retrieval", "metric": "mean_recall", "split": "test", "details": details}
    return replace(result("m", guesses(1)), dataset="flickr30k-cn", language="zh", **changes)  # type: ignore[arg-type]


def test_a_result_becomes_mtebs_task_result_with_null_for_what_is_not_known(tmp_path: Path) -> None:
    save_results([replace(zero_shot("pets", "zh", model="学生 a/b"), model_fingerprint="0a1b")], tmp_path / "own")
    dcclip_mteb.write_results(tmp_path / "own", tmp_path / "out", "some-org")
    [file] = (tmp_path / "out/results/some-org__学生-a-b").glob("*/OxfordPetsZeroShot-zh.json")
    written = json.loads(file.read_text("utf-8"))
    [[scores]] = written.pop("scores").values()
    assert written["task_name"] == "OxfordPetsZeroShot-zh" and written["dataset_revision"] == "no_revision_available"
    assert written["mteb_version"] is written["kg_co2_emissions"] is None and written["date"] == "2026-11-27"
    assert scores["languages"] == ["zho-Hans"] and scores["accuracy"] == 0.75  # 300 of 400 images
    meta = json.loads((file.parent / "model_meta.json").read_text("utf-8"))
    assert meta["name"] == "some-org/学生-a-b" and meta["revision"] == file.parent.name
    assert meta["n_parameters"] is meta["license"] is meta["training_datasets"] is None


def test_hit_rates_and_mrr_are_those_of_the_first_right_answer_each_way(tmp_path: Path) -> None:
    save_results([retrieval([0, 4, 9, 30], [0, 0, 2, 1])], tmp_path / "own")
    dcclip_mteb.write_results(tmp_path / "own", tmp_path)
    scores = {}
    for name in ("Flickr30kCNT2IRetrieval", "Flickr30kCNI2TRetrieval"):
        [file] = tmp_path.glob(f"results/local__m/*/{name}.json")
        [scores[name]] = json.loads(file.read_text("utf-8"))["scores"]["test"]
    by_text = scores["Flickr30kCNT2IRetrieval"]
    by_image = scores["Flickr30kCNI2TRetrieval"]
    assert by_text["main_score"] == by_text["hit_rate_at_1"] == 0.5 and by_text["hit_rate_at_3"] == 1.0
    assert by_text["mrr_at_10"] == (1 + 1 + 1 / 3 + 1 / 2) / 4
    assert [by_image[f"hit_rate_at_{k}"] for k in (1, 5, 10, 100)] == [0.25, 0.5, 0.75, 1.0]
    assert by_image["mrr_at_10"] == pytest.approx((1 + 1 / 5 + 1 / 10) / 4)


def test_a_sample_and_other_class_names_are_unfit() -> None:
    good = zero_shot("pets", "zh")
    assert unfit(good) == "" and unfit(replace(good, limit=7)) == "not all images were evaluated"
    assert unfit(replace(good, class_names_sha256="x")).startswith("class names or prompts differ")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"dataset": "imagenet", "language": "en"}, "no such task in mteb"),
        ({"dataset": "我的照片 photos"}, "no such task in mteb"),
        ({"task": "linear probe"}, "not zero-shot classification"),
        ({"corrupt": {"1.jpg": "cut"}}, "1 unreadable images"),
        ({"replaced": {"猞猁": "山猫"}}, r"1 class names are replaced, unlike in mteb \(猞猁 as 山猫\)"),
    ],
)
def test_a_result_that_no_task_repeats_is_left_out(changed: dict[str, Any], reason: str, tmp_path: Path) -> None:
    good = zero_shot("pets", "zh")
    variant = replace(good, **changed)
    save_results([variant], tmp_path / "variant")
    save_results([replace(good, model="乙", model_fingerprint="0b")], tmp_path / "good")
    with pytest.raises(DcclipError, match=reason):
        dcclip_mteb.write_results(tmp_path / "variant", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    [left_out] = dcclip_mteb.write_results([tmp_path / "variant", tmp_path / "good"], tmp_path / "out")
    assert left_out.startswith(f"left out: {variant.dataset} {variant.language}")
    assert [file.name for file in (tmp_path / "out").rglob("*ZeroShot*")] == ["OxfordPetsZeroShot-zh.json"]
