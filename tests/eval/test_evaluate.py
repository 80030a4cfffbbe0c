"""Evaluation: perfect for an oracle, and equal to open_clip's and CLIP_benchmark's results."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.progress import Lines
from dcclip_cli.data import prompts
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair
from dcclip_cli.eval.compare import compare_results
from dcclip_cli.eval.embedding import FeatureCache
from dcclip_cli.eval.evaluate import EvalOptions, evaluate, open_datasets
from dcclip_cli.eval.metrics import metrics_of
from dcclip_cli.eval.report import write_report
from dcclip_cli.eval.result import EvalResult, load_results, save_results, sha256_of, table, unpack
from dcclip_cli.model.reference import ModelSource
from tests.eval import layouts
from tests.eval.conftest import clear

pytestmark = pytest.mark.usefixtures("small")


@dataclass
class Oracle:
    """Knows images by their colour and class names by the number in them; counts the images that it has seen."""

    width: int = 128
    seen: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    sizes: set[tuple[int, ...]] = field(default_factory=set)
    name: str = "oracle"
    fingerprint: str = "oracle-1"
    preprocessing: Mapping[str, Any] = field(default_factory=lambda: {"size": 9})
    prompts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    logit_scale: float = 100.0
    logit_bias: float | None = None
    precision = "fp32"
    parameters: int = 0
    size_bytes: int = 0

    def preprocess(self, image: Image.Image) -> np.ndarray:
        self.sizes.add(image.size)
        return np.full((3, 1, 1), layouts.label_of(image), np.float32)

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        self.seen.append(len(pixels))
        return np.eye(self.width, dtype=np.float32)[pixels[:, 0, 0, 0].astype(int)]

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        return np.asarray([[int("".join(filter(str.isdigit, text)) or 0)] for text in texts])

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += texts
        return np.eye(self.width, dtype=np.float32)[self.tokenize(texts)[:, 0]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Evaluate a given model in place of the one named."""

    def measured(model: Oracle, names: Sequence[str], root: Path | None = None, **more: Any) -> list[EvalResult]:
        monkeypatch.setattr("dcclip_cli.eval.evaluate.load_encoder", lambda *_, **__: model)
        context = {key: more.pop(key) for key in ("cache", "progress") if key in more}
        options = EvalOptions(datasets=tuple(names), data_root=str(root) if root else None, **more)
        return evaluate([ModelSource("folder", "oracle", "")], open_datasets(options), options, **context)

    return measured


def whole(root: Path, name: str, count: int) -> None:
    layouts.class_folders(root / name / "test", [f"alpha_{number}" for number in range(count)])


@pytest.mark.parametrize("order", [1, -1])
def test_classes_with_one_embedding_share_their_answers_in_any_order(tmp_path: Path, run: Any, order: int) -> None:
    names = {"en": ["cat 1", "kitten 1", "dog 2"], "zh": ["猫1", "小猫1", "狗2"]}
    drawn = [(0, 1), (0, 1), (0, 1), (1, 1), (2, 2), (2, 2), (2, 2), (2, 1)]  # a class, and what the image shows
    pairs = [
        Pair(str(number), layouts.image(shown), (names["zh"][label],), (names["en"][label],))
        for number, (label, shown) in enumerate(drawn)
    ]
    write_parquet(tmp_path / "pets.parquet", pairs[::order])
    for result in run(Oracle(), [str(tmp_path / "pets.parquet")]):
        # Of 8 images 4 are of a class that ties with another, 1 shows the other classes, and 3 are right.
        assert result.metrics == pytest.approx({"top1": 5 / 8, "top5": 1, "mean_per_class": (0.5 + 0.5 + 0.75) / 3})
        assert [set(group) for group in result.indistinct] == [set(names[result.language][:2])] and result.lost == 5 / 8
        details = {name: unpack(result.details[name], name) for name in result.details}
        assert metrics_of(details) == pytest.approx(result.metrics)
        write_report(tmp_path / "report.html", [result])
        assert "so ties decide 62.5 % of the answers" in (tmp_path / "report.html").read_text("utf-8")


def test_a_result_names_the_alternates_and_has_the_hash_of_the_list(tmp_path: Path, small: Any, run: Any) -> None:
    layouts.class_folders(tmp_path / "dtd" / "test", [f"alpha_{number}" for number in range(47)])
    file = prompts.FOLDER / "dtd.json"
    content = json.loads(file.read_text("utf-8"))
    content["zh"] |= {"alternates": {"东西3号": ["东西46", "东西1"]}}
    content["zh"]["names"][1] = "东西3号"  # which the oracle takes for class 3
    file.write_text(json.dumps(content), "utf-8")
    clear()
    [result] = run(Oracle(), ["dtd-cn"], tmp_path)
    assert (result.value, result.replaced, result.indistinct, result.lost) == (1, {"东西3号": "东西1"}, [], 0)
    assert result.class_names[1] == "东西3号" and result.class_names_sha256 == sha256_of(result.class_names)


def test_a_data_set_with_plain_names_is_measured_with_both(tmp_path: Path, small: Any, run: Any) -> None:
    whole(tmp_path, "dtd", 47)
    file = prompts.FOLDER / "dtd.json"
    content = json.loads(file.read_text("utf-8"))
    content["zh"]["plain_names"] = {"东西1": "别名3"}  # which the oracle takes for class 3
    file.write_text(json.dumps(content), "utf-8")
    clear()
    lines: list[str] = []
    en, zh = run(Oracle(), ["dtd", "dtd-cn"], tmp_path, progress=Lines(lines.append))
    # An image of class 3 ties with class 1, and one of class 1 with all classes.
    assert "dtd-cn zh, oracle: 96.9 % with 别名3 for 东西1, 100.0 % without" in lines
    assert (en.plain_names, en.plain_value) == ({}, None)
    assert (zh.value, zh.plain_names) == (1.0, {"东西1": "别名3"})
    assert zh.plain_value == pytest.approx((45 + 1 / 2 + 1 / 47) / 47)
    assert zh.class_names[1] == "东西1"
    assert table([en, zh]).rows[0].remark == "with 别名3 96.9 %"
    [present] = run(Oracle(), ["dtd-cn"], tmp_path, partial="present")
    assert present.plain_value == zh.plain_value


def test_a_part_is_measured_marked_and_kept_from_full_results(tmp_path: Path, small: Any, run: Any) -> None:
    for number in (1, 3, 40):
        layouts.write(tmp_path / f"dtd/test/alpha_{number}/1.png", layouts.image(number))
    both = run(Oracle(), ["dtd", "dtd-cn"], tmp_path, partial="all")
    present = run(Oracle(), ["dtd"], tmp_path, partial="present")
    assert [result.value for result in (*both, *present)] == [1.0] * 3
    assert [result.classes for result in (*both, *present)] == [47, 47, 3]
    assert present[0].class_names == ["Thing 1", "Thing 3", "Thing 40"]
    [row] = table(both).rows
    assert row.name == "dtd (incomplete)" and row.remark.startswith("3 of 47 images of 3 of 47 classes")
    save_results(both, tmp_path / "results")
    assert load_results(tmp_path / "results/dtd-partial.json")[0].partial == both[0].partial
    with pytest.raises(DcclipError, match="parts of the data set differ"):
        compare_results(both[:1], [replace(both[0], partial="")])


def test_images_without_a_caption_are_in_no_retrieval(tmp_path: Path, run: Any) -> None:
    rows = [
        Pair(str(at), layouts.image(at), zh=(f"东西{at}",) if at % 2 else (), en=(f"thing {at}",)) for at in range(6)
    ]
    write_parquet(tmp_path / "things.parquet", rows)
    lines = list[str]()
    results = run(Oracle(), [str(tmp_path / "things.parquet")], task="retrieval", progress=Lines(lines.append))
    assert [(result.language, result.n, result.value) for result in results] == [("en", 6, 1.0), ("zh", 3, 1.0)]
    assert "data set things: 3 of 6 pairs have a caption in zh" in lines


def test_kitti_is_resized_to_a_square_and_objectnets_border_is_cropped(tmp_path: Path, run: Any) -> None:
    whole(tmp_path, "kitti_distance", 4)
    model = Oracle()
    [result] = run(model, ["kitti-distance"], tmp_path)
    assert model.sizes == {(9, 9)} and result.preprocessing == {"size": 9, "squash": True}
    layouts.class_folders(tmp_path / "objectnet", [f"alpha_{number}" for number in range(113)])
    model = Oracle()
    [result] = run(model, ["objectnet"], tmp_path)
    assert model.sizes == {(2, 1)} and result.preprocessing == {"size": 9, "border": 2}  # of 6 x 4


def test_a_second_language_costs_no_second_pass_and_neither_does_another_prompt(tmp_path: Path, run: Any) -> None:
    whole(tmp_path, "dtd", 47)
    model = Oracle()
    cache = FeatureCache(tmp_path / "cache")
    first, second = run(model, ["dtd", "dtd-cn"], tmp_path, cache=cache, batch_size=10)
    assert model.seen == [10, 10, 10, 10, 7]
    assert first.images_per_second > 0 and second.images_per_second == 0
    count = len(model.texts)
    run(model, ["dtd-cn"], tmp_path, cache=FeatureCache(tmp_path / "cache"))
    assert len(model.texts) == count  # the texts are cached too
    run(model, ["dtd-cn"], tmp_path, cache=FeatureCache(tmp_path / "cache"), templates="name")
    assert len(model.texts) == count + 47 and len(model.seen) == 5
    again = Oracle(fingerprint="oracle-2")
    run(again, ["dtd"], tmp_path, cache=FeatureCache(tmp_path / "cache"))
    assert sum(again.seen) == 47
    layouts.write(tmp_path / "dtd/test/alpha_3/3.png", layouts.image(3) + b"\0")
    clear()
    changed = Oracle()
    run(changed, ["dtd"], tmp_path, cache=FeatureCache(tmp_path / "cache"))
    assert sum(changed.seen) == 47


def test_unreadable_images_are_counted_and_named(tmp_path: Path, run: Any) -> None:
    whole(tmp_path, "dtd", 47)
    (tmp_path / "dtd/test/alpha_5/5.png").write_bytes(b"no image")
    (tmp_path / "dtd/test/alpha_9/9.png").write_bytes(layouts.image(9)[:40])
    lines: list[str] = []
    for _ in range(2):  # also with cached embeddings of the others
        cache = FeatureCache(tmp_path / "cache")
        [result] = run(Oracle(), ["dtd-cn"], tmp_path, cache=cache, progress=Lines(lines.append))
        assert result.n == 45 and result.value == 1.0
        assert sorted(result.corrupt) == ["alpha_5/5.png", "alpha_9/9.png"]
        assert "2 of 47 images are unreadable and ignored: alpha_5/5.png (" in lines[-1]
    for file in (tmp_path / "dtd").rglob("*.png"):
        file.write_bytes(b"no image")
    clear()
    with pytest.raises(DcclipError, match="none of 47 images is readable"):
        run(Oracle(), ["dtd"], tmp_path)


def test_two_data_sets_of_one_name_are_refused(pairs_file: Path, tmp_path: Path, pairs: list[Pair]) -> None:
    write_parquet(tmp_path / "train.parquet", pairs[:3])
    with pytest.raises(DcclipError, match="two data sets have the name train") as raised:
        open_datasets(EvalOptions(datasets=(str(pairs_file), str(tmp_path / "train.parquet"))))
    assert raised.value.hint == "rename one of the files or folders"


def test_an_auc_of_images_of_one_class_is_an_error_and_no_number(tmp_path: Path, run: Any) -> None:
    layouts.class_folders(tmp_path / "hateful-memes/dev", ["alpha_0", "alpha_1"])
    with pytest.raises(DcclipError, match=r"hateful-memes: roc_auc is not defined for 1 images") as raised:
        run(Oracle(), ["hateful-memes"], tmp_path, limit=1)
    assert "--limit" in raised.value.hint


def test_probes_train_on_the_training_split_with_cached_embeddings(tmp_path: Path, small: Any, run: Any) -> None:
    names = [f"alpha_{number}" for number in range(10)]
    layouts.class_folders(tmp_path / "mnist/test", names)
    with pytest.raises(DcclipError, match="mnist contains no train images of mnist"):
        run(Oracle(), ["mnist"], tmp_path, task="probe")
    for number, name in enumerate(names):
        for copy in range(3):
            layouts.write(tmp_path / f"mnist/train/{name}/{copy}.png", layouts.image(number))
    clear()
    model = Oracle()
    results = run(model, ["mnist"], tmp_path, task="probe", shots=(2, 0))
    assert [result.task for result in results] == ["linear probe, 2 shots", "linear probe"]
    assert all(result.value == 1.0 and result.n == 10 for result in results)
    assert results[0].metrics["top1_std"] == 0.0 and "top1_std" not in results[1].metrics
    assert sum(model.seen) == 10 + 30 and model.texts == []
