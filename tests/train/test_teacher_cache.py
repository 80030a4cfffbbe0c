"""The teacher's kept answers: the same as asking it, asked for once, whole after being broken off."""

import hashlib
import io
import json
import multiprocessing
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.format import open_memmap
from torch.nn import functional as F

from dcclip_cli.data.augment import Augment
from dcclip_cli.data.collator import Collator
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.options import CaptionOptions
from dcclip_cli.data.pair import Pair
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.model_dir import load_model
from dcclip_cli.model.teachers import AltClipTeacher, TransformersTeacher
from dcclip_cli.model.towers import OpenClipTowers, Towers
from dcclip_cli.progress import Silent
from dcclip_cli.train import teacher_cache
from dcclip_cli.train.cache_blocks import Block, BlockStore
from dcclip_cli.train.feature_shapes import Grid, map_grids
from dcclip_cli.train.losses.base import Loss, Outputs, Widths
from dcclip_cli.train.losses.embeddings import EmbeddingLoss
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss, to_grid
from dcclip_cli.train.teacher_cache import TeacherCache, build_cache
from dcclip_cli.train.teachers import OnlineTeacher

ALL = (FeatureMapLoss(), TokenFeaturesLoss(), EmbeddingLoss())
WIDTHS = Widths(16, 32, 16)  # those of the tiny AltCLIP, which matter only to batches without pictures
FP16: dict[str, Any] = {
    "rtol": 2**-10,
    "atol": 2**-14,
}  # half a unit in the last of 11 bits, and room for unit-length small numbers


@pytest.fixture(scope="module")
def student(model_folder: Path) -> OpenClipTowers:
    return load_model(model_folder)


@pytest.fixture(scope="module")
def altclip(altclip_folder: Path) -> Towers:
    return AltClipTeacher(model=str(altclip_folder)).load()


def reader(
    pairs_file: Path, student: Towers, teacher: Towers, repeats: int = 2, second_caption: bool = False
) -> Collator:
    return Collator(
        open_pairs(pairs_file),
        0,
        Augment(background="random", rotate=15, colour=0.3),
        CaptionOptions(second_caption=second_caption),
        student.preprocess,
        student.tokenize,
        (teacher.preprocess,),
        repeats,
    )


def build(
    teacher: Towers,
    read: Collator,
    folder: Path,
    losses: tuple[Loss, ...] = ALL,
    grid: Grid | None = None,
    elsewhere: tuple[Path, ...] = (),
) -> TeacherCache:
    grids = {-1: grid or Grid(2, 2)}
    return build_cache(teacher, WIDTHS, read, losses, grids, folder, elsewhere, "cpu", Silent())


def assert_same_targets(kept: Outputs, asked: Outputs) -> None:
    torch.testing.assert_close(kept.image.embedding, F.normalize(asked.image.embedding, dim=-1), **FP16)
    torch.testing.assert_close(kept.image.map, to_grid(asked.image.map, 2, 2), **FP16)
    assert kept.texts.keys() == asked.texts.keys()
    for name, text in asked.texts.items():
        torch.testing.assert_close(kept.texts[name].embedding, F.normalize(text.embedding, dim=-1), **FP16)
        assert torch.equal(kept.texts[name].mask.sum(1), text.mask.sum(1))
        real = text.mask.bool()
        length = kept.texts[name].mask.shape[1]
        torch.testing.assert_close(kept.texts[name].tokens[real[:, :length]], text.tokens[real], **FP16)
        assert torch.equal(kept.rows[name], asked.rows[name])


@pytest.mark.any_cpu
@pytest.mark.parametrize("name", ["altclip", "chinese_clip", "siglip"])
@pytest.mark.parametrize("second_caption", [False, True])
def test_kept_answers_are_the_teachers_to_fp16(
    pairs_file: Path, student: Towers, tmp_path: Path, request: pytest.FixtureRequest, name: str, second_caption: bool
) -> None:
    teacher = TransformersTeacher(model=str(request.getfixturevalue(f"{name}_folder"))).load()
    read = reader(pairs_file, student, teacher, second_caption=second_caption)
    cache, online = build(teacher, read, tmp_path), OnlineTeacher(teacher, 0, (), WIDTHS)
    for samples in ([(0, 0), (13, 0), (39, 0)], [(5, 1), (38, 1)], [(7, 3)], [(7, 8), (6, 8)]):
        batch = read.batch(samples)
        assert_same_targets(cache.features(batch), online.features(batch))


def test_another_augmentation_of_a_picture_has_another_answer(
    pairs_file: Path, student: Towers, altclip: Towers, tmp_path: Path
) -> None:
    read = reader(pairs_file, student, altclip)
    cache = build(altclip, read, tmp_path)
    first, second, again = (cache.features(read.batch([(3, epoch)])).image.embedding for epoch in (0, 1, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


def test_the_teacher_is_asked_once(
    pairs_file: Path, student: Towers, altclip: Towers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = reader(pairs_file, student, altclip)
    before = build(altclip, read, tmp_path)
    with monkeypatch.context() as patch:
        for method in ("image_features", "text_features"):
            patch.setattr(altclip, method, lambda *_: pytest.fail("asked again"))
        after = build(altclip, read, tmp_path)
    batch = read.batch([(0, 0), (20, 1)])
    assert torch.equal(before.features(batch).image.map, after.features(batch).image.map)
    assert torch.equal(before.features(batch).texts["zh"].tokens, after.features(batch).texts["zh"].tokens)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.npy"))}


@pytest.mark.parametrize(
    ("method", "call"), [("image_features", 1), ("image_features", 2), ("text_features", 1), ("text_features", 2)]
)
def test_broken_off_anywhere_and_filled_again_it_holds_the_same_bytes(
    pairs_file: Path,
    student: Towers,
    altclip: Towers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    call: int,
) -> None:
    read = reader(pairs_file, student, altclip, repeats=4)  # 160 pictures and 96 captions, 64 at once
    build(altclip, read, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(altclip, method, failing_at(call, getattr(altclip, method)))
        with pytest.raises(RuntimeError, match="power cut"):
            build(altclip, read, tmp_path / "broken")
    assert contents(tmp_path / "broken") != contents(tmp_path / "whole")
    build(altclip, read, tmp_path / "broken")
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def failing_at(call: int, method: Callable[..., object]) -> Callable[..., object]:
    calls = iter(range(1, 100))

    def wrapped(*arguments: object) -> object:
        if next(calls) == call:
            raise RuntimeError("power cut")
        return method(*arguments)

    return wrapped


def test_a_block_that_another_process_finishes_while_it_is_looked_at_counts_as_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlockStore(tmp_path, (), [Block("texts", 0, 7)], 7)
    partial = tmp_path / ".texts.partial"
    partial.mkdir()
    (partial / "done.json").write_text('{"done": 3, "seconds": 0.1}')
    assert store.rows_there == 3

    def just_finished(_: Block) -> Path:
        partial.rename(tmp_path / "texts")
        return partial

    monkeypatch.setattr(store, "_partial", just_finished)
    assert store.rows_there == 7


@pytest.mark.parametrize("change", ["teacher", "repeats", "augment", "seed", "languages", "grid", "tokens"])
def test_what_changes_the_answers_has_a_cache_of_its_own(
    pairs_file: Path, student: Towers, altclip: Towers, chinese_clip_folder: Path, tmp_path: Path, change: str
) -> None:
    read = reader(pairs_file, student, altclip, repeats=1)
    build(altclip, read, tmp_path, losses=(FeatureMapLoss(),) if change == "tokens" else ALL)
    before = blocks(tmp_path)
    match change:
        case "teacher":
            build(TransformersTeacher(model=str(chinese_clip_folder)).load(), read, tmp_path)
        case "repeats":
            build(altclip, replace(read, num_augmentations=2), tmp_path)
        case "augment":
            build(altclip, replace(read, augment=Augment()), tmp_path)
        case "seed":
            build(altclip, replace(read, seed=1), tmp_path)
        case "languages":
            build(altclip, replace(read, captions=CaptionOptions(languages=("zh",))), tmp_path)
        case "grid":
            build(altclip, read, tmp_path, grid=Grid(1, 1))
        case "tokens":
            build(altclip, read, tmp_path)
    added = {name.partition("-")[0] for name in blocks(tmp_path) - before}
    # Pictures and captions are kept apart: what changes only one of them leaves the other as it is.
    assert added == {"teacher": {"images", "texts"}, "languages": {"texts"}, "tokens": {"texts"}}.get(
        change, {"images"}
    )


def blocks(folder: Path) -> set[str]:
    return {str(path.parent.relative_to(folder)) for path in folder.rglob("done.json")}


def test_only_what_a_loss_asks_for_is_kept(pairs_file: Path, student: Towers, altclip: Towers, tmp_path: Path) -> None:
    read = reader(pairs_file, student, altclip)
    build(altclip, read, tmp_path, losses=(EmbeddingLoss(),))
    assert {path.name for path in tmp_path.rglob("*.npy")} == {"image_embedding.npy", "text_embedding.npy"}


def test_the_grid_is_the_students(student: Towers, altclip: Towers) -> None:
    assert map_grids(student)[-1] == Grid(2, 2)  # 64 px at stride 32
    assert map_grids(altclip)[-1] == Grid(4, 4)  # 32 px in patches of 8


def test_a_kept_answer_that_is_not_finite_is_refused(
    pairs_file: Path, student: Towers, altclip: Towers, tmp_path: Path
) -> None:
    read = reader(pairs_file, student, altclip)
    build(altclip, read, tmp_path)
    [file] = tmp_path.rglob("image_embedding.npy")
    open_memmap(file, "r+")[7, 0] = np.nan  # picture 3, its second augmentation
    cache = build(altclip, read, tmp_path)
    cache.features(read.batch([(3, 0), (4, 1)]))
    with pytest.raises(DcclipError, match=r"image_embedding.npy .* not finite .* 1 of 2 rows") as raised:
        cache.features(read.batch([(3, 1), (4, 1)]))
    assert raised.value.hint.startswith(f"delete {file.parent}, ")


def test_another_run_over_the_same_data_takes_what_is_there_and_writes_nothing_there(
    pairs_file: Path, student: Towers, altclip: Towers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = reader(pairs_file, student, altclip)
    first = build(altclip, read, tmp_path / "first")
    written = contents(tmp_path / "first")
    with monkeypatch.context() as patch:
        for method in ("image_features", "text_features"):
            patch.setattr(altclip, method, lambda *_: pytest.fail("asked again"))
        other = build(altclip, read, tmp_path / "other", elsewhere=(tmp_path / "empty", tmp_path / "first"))
    assert (first.found, other.found) == (0, first.images.rows + first.texts.rows)
    assert not blocks(tmp_path / "other") and contents(tmp_path / "first") == written
    batch = read.batch([(0, 0), (20, 1)])
    assert torch.equal(first.features(batch).image.map, other.features(batch).image.map)
    assert torch.equal(first.features(batch).texts["zh"].tokens, other.features(batch).texts["zh"].tokens)


def test_who_asks_for_less_takes_it_from_what_has_more(
    pairs_file: Path, student: Towers, altclip: Towers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = reader(pairs_file, student, altclip)
    more = build(altclip, read, tmp_path / "more")
    alone = build(altclip, read, tmp_path / "alone", losses=(EmbeddingLoss(),))
    before = blocks(tmp_path / "more")
    (tmp_path / "more/images-broken").mkdir()
    (tmp_path / "more/images-broken/key.json").write_text('{"teacher": ')
    with monkeypatch.context() as patch:
        for method in ("image_features", "text_features"):
            patch.setattr(altclip, method, lambda *_: pytest.fail("asked again"))
        less = build(altclip, read, tmp_path / "more", losses=(EmbeddingLoss(),))
    assert blocks(tmp_path / "more") == before
    assert less.found == more.images.rows + more.texts.rows
    batch = read.batch([(0, 0), (20, 1)])
    for one, other in zip(sides(less.features(batch)), sides(alone.features(batch)), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(less.features(batch).image.map, more.features(batch).image.map)


def sides(side: Outputs) -> list[torch.Tensor]:
    return [side.image.embedding, side.image.map, *(text.tokens for text in side.texts.values())]


def test_shards_that_are_added_leave_the_blocks_before_them_as_they_are(
    pairs: list[Pair], student: Towers, altclip: Towers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_cache, "SAMPLES_IN_BLOCK", 8)
    shard(tmp_path / "data" / "000000.tar", pairs[:16])
    build(altclip, reader(tmp_path / "data", student, altclip), tmp_path / "cache")
    before = blocks(tmp_path / "cache")
    shard(tmp_path / "data" / "000001.tar", pairs[16:24])
    build(altclip, reader(tmp_path / "data", student, altclip), tmp_path / "cache")
    added = [name for name in blocks(tmp_path / "cache") - before if name.startswith("images")]
    assert len([name for name in before if name.startswith("images")]) == 2
    assert len(added) == 1


def test_a_picture_that_changes_has_its_block_built_anew(
    pairs: list[Pair], student: Towers, altclip: Towers, tmp_path: Path
) -> None:
    shard(tmp_path / "data" / "000000.tar", pairs[:8])
    before = build(altclip, reader(tmp_path / "data", student, altclip), tmp_path / "cache")
    shard(tmp_path / "data" / "000000.tar", [replace(pairs[0], image=pairs[39].image), *pairs[1:8]])
    read = reader(tmp_path / "data", student, altclip)
    after = build(altclip, read, tmp_path / "cache")
    batch = read.batch([(0, 0), (1, 0)])
    assert not torch.equal(before.features(batch).image.embedding[0], after.features(batch).image.embedding[0])
    assert torch.equal(before.features(batch).image.embedding[1], after.features(batch).image.embedding[1])


def test_two_processes_fill_one_cache_each_block_once(
    pairs_file: Path, student: Towers, altclip: Towers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_cache, "SAMPLES_IN_BLOCK", 8)
    read = reader(pairs_file, student, altclip)
    build(altclip, read, tmp_path / "one")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=build, args=(altclip, read, tmp_path / "two")) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert arrays(tmp_path / "two") == arrays(tmp_path / "one")
    assert not list((tmp_path / "two").rglob("*.partial"))


def arrays(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.npy")
    }


def test_the_maps_of_several_layers_are_kept_each_on_its_students_grid(
    pairs_file: Path, student: Towers, altclip: Towers, tmp_path: Path
) -> None:
    loss = FeatureMapLoss(student_layers=(-2, -1), teacher_layers=(0, -1))
    read = reader(pairs_file, student, altclip)
    grids = {-2: Grid(4, 4), -1: Grid(2, 2)}
    cache = build_cache(altclip, WIDTHS, read, (loss,), grids, tmp_path, (), "cpu", Silent())
    batch = read.batch([(0, 0), (20, 1)])
    kept, asked = cache.features(batch).image, OnlineTeacher(altclip, 0, (0,), WIDTHS).features(batch).image
    torch.testing.assert_close(kept.layer(0), asked.layer(0), **FP16)  # 4 x 4 is the teacher's own grid
    torch.testing.assert_close(kept.layer(-1), to_grid(asked.layer(-1), 2, 2), **FP16)
    assert not torch.equal(asked.layer(0), asked.layer(-1))


def shard(file: Path, pairs: list[Pair]) -> None:
    file.parent.mkdir(exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for pair in pairs:
            record = json.dumps({"zh": pair.zh, "en": pair.en}).encode()
            for name, content in ((f"{pair.key}.png", pair.image), (f"{pair.key}.json", record)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
