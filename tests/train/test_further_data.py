"""Both stages on more than pairs: pictures without captions, lines without pictures, phrases made of these."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dcclip_cli.core.errors import translated
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair
from dcclip_cli.model.model_dir import load_model
from dcclip_cli.model.preprocess import decode
from dcclip_cli.model.tokenizer import load_tokenizer
from tests.train.jobs import Job, Watch, elsewhere, in_processes, logged, refused, run, run_job, weights

ZH = ["紫色的小鱼", "白色的大树", "粉色的星星", "黄色的小船"]
EN = ["purple fish", "white tree", "pink star", "yellow boat"]


@pytest.fixture
def folder(pairs: list[Pair], tmp_path: Path) -> Path:
    """The pictures of the second eight pairs."""
    (tmp_path / "pictures").mkdir()
    for pair in pairs[8:16]:
        (tmp_path / "pictures" / f"{pair.key}.png").write_bytes(pair.image)
    return tmp_path / "pictures"


@pytest.fixture
def lines_file(tmp_path: Path) -> Path:
    """Sixteen lines of parallel text, none of them a caption of the drawn pairs."""
    colours = {"白": "white", "黄": "yellow", "紫": "purple", "粉": "pink"}
    names = {"星星": "star", "小船": "boat", "大树": "tree", "小鱼": "fish"}
    lines = [f"{zh}色的{name}\t{en} {names[name]}\n" for zh, en in colours.items() for name in names]
    (tmp_path / "lines.tsv").write_text("".join(lines), "utf-8")
    return tmp_path / "lines.tsv"


def test_parallel_text_alone_teaches_the_text_tower_and_leaves_the_image_tower_as_it_was(
    distilling: Job, lines_file: Path
) -> None:
    losses = [{"kind": "embedding"}, {"kind": "cross_lingual"}, {"kind": "token_features"}]
    distilling |= {"data": {"texts": str(lines_file)}}
    distilling["options"] = {"losses": losses, "steps": 3, "optimizer": {"weight_decay": 0}}
    before = weights(run(elsewhere(distilling, "started", {"steps": 1, "warmup_steps": 10**6})))
    result = run(distilling)
    after = weights(result)
    changed = {name.partition(".")[0] for name, value in after.items() if (value - before[name]).abs().max() > 1e-5}
    assert changed == {"text"}
    assert set(result.metrics) >= {"embedding", "cross_lingual", "token_features"}


@pytest.mark.parametrize("chinese", [3, 20])
def test_a_batch_mixes_sources_and_a_step_without_captions_is_warned_of(
    chinese: int, aligning: Job, pairs: list[Pair], tmp_path: Path
) -> None:
    sources = [tmp_path / "zh.parquet", tmp_path / "en.parquet"]
    write_parquet(sources[0], [replace(pair, en=()) for pair in pairs[:chinese]])
    write_parquet(sources[1], [replace(pair, zh=()) for pair in pairs[chinese:]])
    aligning |= {"data": {"train": [*map(str, sources)]}}
    aligning["options"] |= {"captions": {"languages": ["zh"]}, "log_every_steps": 1}
    watch = Watch()
    losses = [step["loss"] for step in logged(run(aligning, watch).model.parent)]
    warnings = [line for line in watch.said if line.startswith("warning: ")]
    if chinese == 20:  # four of eight pairs of each batch
        assert all(losses) and not warnings
        return
    [warning] = warnings
    first = int(re.findall(r"step (\d+) changes no weight, because its batch has no captions in zh", warning)[0])
    assert losses[first - 1] == 0 and losses.count(0) > 1
    assert translated(warning, "zh").startswith(f"警告：align：第 {first} 步没有改变任何权重")


def test_one_image_is_too_few_for_a_batch_norm(distilling: Job) -> None:
    distilling["student"]["image"] = {"timm": "test_resnet", "size": 32}  # its last map is 1 x 1
    with refused("a batch or part of a batch has only one image", "fewer parts"):
        run(elsewhere(distilling, "parts", {"losses": [{"kind": "embedding"}], "accumulate": 8}))


def test_images_alone_train_a_student_with_tokens_and_weights_of_its_teachers_text_tower(
    distilling: Job, folder: Path
) -> None:
    text = {"inherit": "embeddings", "vocabulary": {"from": "teacher", "size": 300}}
    student = distilling["student"]
    distilling |= {"data": {"images": str(folder)}, "student": student | {"text": student["text"] | text}}
    distilling["options"] = {"losses": [{"kind": "embedding"}], "steps": 2}
    tokenizer = load_tokenizer(run(distilling).model)
    assert "<unk>" not in tokenizer.encode("红色的圆, a red circle").tokens


@pytest.mark.parametrize("teacher_cache", [True, False])
def test_a_damaged_photograph_is_a_warning_and_many_are_an_error(
    distilling: Job, lines_file: Path, folder: Path, teacher_cache: bool
) -> None:
    (folder / "坏 0.png").write_bytes(b"broken")
    distilling |= {"data": {"images": str(folder), "texts": str(lines_file)}}
    distilling["options"] = {"losses": [{"kind": "embedding"}], "steps": 3, "teacher_cache": teacher_cache}
    run(distilling, watch := Watch())
    [warning] = [line for line in watch.said if "white" in line]
    assert warning.startswith("warning: distill: 坏 0.png: ") and translated(warning, "zh").endswith("用一张白图代替")
    for number in range(1, 12):
        (folder / f"坏 {number}.png").write_bytes(b"broken")
    file = folder.with_name("many.json")
    file.write_text(json.dumps(elsewhere(distilling, "many", {"steps": 9})))
    with refused("data.images: 12 of .* images are unreadable", "replace or remove the images"):
        in_processes(1 if teacher_cache else 2, run_job, file)  # each of two sees about half of them


def test_the_rate_counts_images_and_texts_only_in_steps_without_images(
    distilling: Job, lines_file: Path, folder: Path
) -> None:
    distilling["options"] |= {"losses": [{"kind": "embedding"}], "images_per_step": 2, "texts_per_step": 16}
    distilling["options"] |= {"steps": 2, "log_every_steps": 1}
    results = []
    for name, data in (("both", {"images": str(folder)}), ("texts", {})):
        result = run(elsewhere(distilling, name, data={**data, "texts": str(lines_file)}))
        first = logged(result.model.parent)[0]
        # one more step is left
        results.append({key: value * first["seconds_left"] for key, value in first.items() if key.endswith("_second")})
    assert results == [
        {"images_per_second": pytest.approx(2, rel=0.01)},
        {"texts_per_second": pytest.approx(16, rel=0.01)},
    ]


# ---- stage 2: what a student learnt from these is not forgotten


@pytest.fixture
def further(aligning: Job, model_folder: Path, pairs: list[Pair], folder: Path, tmp_path: Path) -> Job:
    """Stage 2 on eight of the pairs, held to the model that it starts from, with the other pictures and eight lines."""
    some_pairs = tmp_path / "some.parquet"
    lines = tmp_path / "lines.tsv"
    write_parquet(some_pairs, pairs[:8])
    lines.write_text("".join(f"{zh}\t{en}\n" for zh, en in zip(ZH, EN, strict=True)), "utf-8")
    aligning["data"] = {"train": str(some_pairs), "images": str(folder), "texts": str(lines)}
    aligning["teacher"] = {"kind": "open_clip", "model": str(model_folder)}
    aligning["options"] |= {
        "losses": [{"kind": "embedding", "weight": 20}],
        "augment": {},
        "augmentations": 1,
        "steps": 12,
        "freeze_batch_norms": True,
    }
    return aligning


def drift(model: Path, start: Path, pictures: list[Pair]) -> tuple[float, float]:
    """1 - cosine between two models' embeddings: means over these pictures, and over the lines."""
    embeddings = []
    for towers in (load_model(start), load_model(model)):
        assert towers.preprocess is not None
        pixels = torch.stack([torch.from_numpy(towers.preprocess(decode(pair.image))) for pair in pictures])
        with torch.no_grad():
            image = towers.image_features(pixels).embedding
            text = towers.text_features(towers.tokenize(ZH + EN)).embedding
        embeddings.append((image, text))
    cosine = torch.nn.functional.cosine_similarity
    (image, text), (other_image, other_text) = embeddings
    return 1 - float(cosine(image, other_image).mean()), 1 - float(cosine(text, other_text).mean())


def test_images_and_texts_without_partners_stay_where_the_teacher_has_them(
    further: Job, model_folder: Path, pairs: list[Pair]
) -> None:
    further["options"]["teacher_cache"] = False
    without = drift(run(further).model, model_folder, pairs[8:16])
    pictures = run(elsewhere(further, "with pictures", {"images_per_step": 8}))
    lines = run(elsewhere(further, "with lines", {"texts_per_step": 4}))
    assert drift(pictures.model, model_folder, pairs[8:16])[0] < 0.9 * without[0]
    assert drift(lines.model, model_folder, pairs[8:16])[1] < 0.9 * without[1]
    assert {"image_zh", "image_en", "embedding"} <= set(lines.metrics)


def test_the_contrast_is_of_pairs_alone(further: Job) -> None:
    further["options"] |= {"steps": 1, "losses": [{"kind": "embedding", "weight": 0}]}
    alone, beside = (
        run(elsewhere(further, name, options)).metrics
        for name, options in (("alone", {}), ("beside", {"images_per_step": 4, "texts_per_step": 2}))
    )
    for term in ("image_zh", "image_en"):
        assert beside[term] == pytest.approx(alone[term], abs=1e-5)
