"""Cached teacher features: those that the teacher gives, computed once, and complete after an interruption."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dcclip_cli import api
from dcclip_cli.core import store
from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.progress import Silent
from dcclip_cli.core.store import FeatureStore, open_block
from dcclip_cli.data.batch import Batch
from dcclip_cli.data.collator import Collator
from dcclip_cli.data.dataset import open_pairs, write_parquet
from dcclip_cli.data.options import Augment, CaptionOptions
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.pixels import training_preprocess
from dcclip_cli.data.samplers import Sample
from dcclip_cli.model.model_dir import load_model
from dcclip_cli.model.precision import Choice
from dcclip_cli.model.teachers import AltClipTeacher, FgClip2Teacher, OpenClipTeacher, TransformersTeacher
from dcclip_cli.model.towers import OpenClipTowers, Towers
from dcclip_cli.train import teacher_cache
from dcclip_cli.train.loading import load_batches
from dcclip_cli.train.losses.base import Loss, Outputs, Widths
from dcclip_cli.train.losses.embeddings import EmbeddingLoss
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss, to_grid
from dcclip_cli.train.teacher import Grid, LazyTeacher, OnlineTeacher, TeacherFacts, map_grids
from dcclip_cli.train.teacher_cache import TeacherCache, folder_of
from tests.conftest import SHAPES
from tests.images import encode
from tests.model.test_preprocess import noise
from tests.tars import tar_of

ALL = (FeatureMapLoss(), TokenFeaturesLoss(), EmbeddingLoss())
WIDTHS = Widths(16, 32, 16)  # those of the tiny AltCLIP, which matter only to batches without images
# Half a unit in the last of 11 bits, and room for small numbers of unit-length vectors.
FP16: dict[str, Any] = {"rtol": 2**-10, "atol": 2**-14}


@pytest.fixture(scope="module")
def student(model_folder: Path) -> OpenClipTowers:
    return load_model(model_folder)


@pytest.fixture(scope="module")
def altclip(altclip_folder: Path) -> Towers:
    return AltClipTeacher(model=str(altclip_folder)).load()


def collator(
    pairs_file: Path, student: Towers, teacher: Towers, augmentations: int = 2, second: bool = False
) -> Collator:
    return Collator(
        open_pairs(pairs_file),
        0,
        Augment(background="random", rotate=15, colour=0.3),
        CaptionOptions(second_caption=second),
        training_preprocess(student),
        student.tokenize,
        (training_preprocess(teacher),),
        augmentations,
    )


class Loaded(LazyTeacher):
    """A teacher that is loaded already and stays so."""

    def __init__(self, towers: Towers) -> None:
        self.device = "cpu"
        choice = Choice("fp32", "as requested")
        measured = towers.name, towers.fingerprint, towers.logit_scale, 0, WIDTHS, choice
        self.facts = TeacherFacts(*measured, towers.text_layout)
        self._towers = towers

    def free(self) -> None: ...


def filled(
    teacher: Towers, reading: Collator, root: Path, losses: tuple[Loss, ...] = ALL, grids: dict[int, Grid] | None = None
) -> TeacherCache:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCCLIP_CACHE", str(root))
        cache = TeacherCache(Loaded(teacher), reading, losses, grids or {-1: Grid(2, 2)}, 1, Silent())
    samples: list[list[Sample]] = [[(index, epoch) for index in range(len(reading.dataset))] for epoch in range(32)]
    cache.complete(samples)  # each augmented image and each caption
    return cache


def read(cache: TeacherCache, reading: Collator, samples: list[Sample]) -> Batch:
    """A batch with what the cache has of it."""
    return replace(reading, read_features=(cache.reader,)).batch(samples)


def contents(cache: TeacherCache) -> dict[tuple[str, bytes], bytes]:
    """Every stored row, by array and key."""
    features: dict[tuple[str, bytes], bytes] = {}
    for file in sorted(cache.folder.rglob("*.safetensors")):
        arrays = open_block(file)
        stored = FeatureStore(file.parent)
        for name in arrays.keys() - {"keys", "text_states.offsets"}:
            for key in arrays["keys"]:
                features.setdefault((name, key.tobytes()), stored.read(name, key.copy().view("S16")).tobytes())
    return features


def assert_same_targets(cached: Outputs, online: Outputs) -> None:
    torch.testing.assert_close(cached.image.embedding, F.normalize(online.image.embedding, dim=-1), **FP16)
    torch.testing.assert_close(cached.image.map, to_grid(online.image.map, 2, 2), **FP16)
    assert cached.texts.keys() == online.texts.keys()
    for name, text in online.texts.items():
        torch.testing.assert_close(cached.texts[name].embedding, F.normalize(text.embedding, dim=-1), **FP16)
        assert torch.equal(cached.texts[name].mask.sum(1), text.mask.sum(1))
        real = text.mask.bool()
        length = cached.texts[name].mask.shape[1]
        torch.testing.assert_close(cached.texts[name].tokens[real[:, :length]], text.states[real], **FP16)
        assert torch.equal(cached.image_index[name], online.image_index[name])


def test_the_teacher_is_in_memory_only_while_a_section_is_computed(
    pairs_file: Path, student: Towers, altclip: Towers, altclip_folder: Path
) -> None:
    teacher = LazyTeacher(AltClipTeacher(model=str(altclip_folder)), "cpu", Silent())
    cache = TeacherCache(teacher, collator(pairs_file, student, altclip), ALL, {-1: Grid(2, 2)}, 0, Silent())
    for count, samples in ((2, [(0, 0), (1, 0)]), (3, [(0, 0), (2, 0)])):
        cache.complete([samples])
        assert cache.computed["images"] == count
        assert teacher._towers is None


@pytest.mark.any_cpu
@pytest.mark.parametrize("name", ["altclip", "chinese_clip", "siglip"])
@pytest.mark.parametrize("second", [False, True])
def test_cached_features_are_the_teachers_to_fp16(
    pairs_file: Path, student: Towers, tmp_path: Path, request: pytest.FixtureRequest, name: str, second: bool
) -> None:
    teacher = TransformersTeacher(model=str(request.getfixturevalue(f"{name}_folder"))).load()
    reading = collator(pairs_file, student, teacher, second=second)
    cache = filled(teacher, reading, tmp_path)
    online = OnlineTeacher(teacher, 0, (), WIDTHS)
    for samples in ([(0, 0), (13, 0), (39, 0)], [(5, 1), (38, 1)], [(7, 3)], [(7, 8), (6, 8)]):
        batch = read(cache, reading, samples)
        assert_same_targets(cache.features(batch), online.features(batch))


@pytest.mark.any_cpu
@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        (OpenClipTeacher, "quickstart", {}),
        (TransformersTeacher, "chineseclip", {"precision": "bf16"}),
        (TransformersTeacher, "siglip2", {}),
        (FgClip2Teacher, "fgclip2", {"precision": "bf16", "trust_remote_code": True}),  # NaFlex, as the next
        (TransformersTeacher, "embeddinggemma2", {"precision": "bf16"}),
    ],
)
def test_a_row_has_the_same_bits_whichever_run_computed_it(
    pairs: list[Pair], student: Towers, hub_teachers: Path, tmp_path: Path, own_modules: Path,
    kind: type[OpenClipTeacher | TransformersTeacher], name: str, options: dict[str, Any],
) -> None:  # fmt: skip
    folder = Path("recipes/quickstart/teacher") if name == "quickstart" else hub_teachers / name
    if not folder.exists():
        pytest.skip("transformers is too old for EmbeddingGemma 2")
    teacher = kind.model_validate({"model": str(folder), "precision": "fp32"} | options).load()
    # Every fourth image has another number of NaFlex patches than the rest; the first run has no others.
    sizes = ((64, 64) if number % 4 == 3 else (40 + 5 * number, 300 - 7 * number) for number in range(len(pairs)))
    sized = map(lambda pair, size: replace(pair, image=encode(noise(*size))), pairs, sizes)
    write_parquet(tmp_path / "sizes.parquet", sized)
    reading = collator(tmp_path / "sizes.parquet", student, teacher)
    expected = contents(filled(teacher, reading, tmp_path / "empty"))
    chinese = replace(reading, captions=CaptionOptions(languages=("zh",)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCCLIP_CACHE", str(tmp_path / "shared"))
        other = TeacherCache(Loaded(teacher), chinese, ALL, {-1: Grid(2, 2)}, 1, Silent())
    for samples in ([(number, 1) for number in range(39, 0, -4)], [(number, 0) for number in range(38, 0, -2)]):
        other.complete([samples])
    cache = filled(teacher, reading, tmp_path / "shared")
    assert min(other.computed.values()) > 20 and min(cache.computed.values()) > 20
    assert folder_of(Loaded(teacher).facts, "cuda:0").name != cache.folder.name  # whose rows depend on the batch
    rows = contents(cache)
    assert rows.keys() == expected.keys()
    assert Counter(name for (name, key), row in rows.items() if row != expected[name, key]) == {}


@pytest.mark.parametrize(
    ("change", "images", "texts"),
    [
        ("teacher", 40, 112),
        ("augmentations", 40, 0),  # a second one each
        ("seed", 40, 0),
        ("languages", 0, 0),
        ("grid", 40, 0),
        ("tokens", 0, 112),
        ("less", 0, 0),
    ],
)
def test_only_rows_that_a_change_touches_are_computed(
    pairs_file: Path,
    student: Towers,
    altclip: Towers,
    chinese_clip_folder: Path,
    tmp_path: Path,
    change: str,
    images: int,
    texts: int,
) -> None:
    reading = collator(pairs_file, student, altclip, augmentations=1)
    teacher = altclip
    filled(altclip, reading, tmp_path, losses=(FeatureMapLoss(),) if change == "tokens" else ALL)
    losses: tuple[Loss, ...] = ALL
    grids = None
    match change:
        case "teacher":
            teacher = TransformersTeacher(model=str(chinese_clip_folder)).load()
        case "augmentations":
            reading = replace(reading, num_augmentations=2)
        case "seed":
            reading = replace(reading, seed=1)
        case "languages":
            reading = replace(reading, captions=CaptionOptions(languages=("zh",)))
        case "grid":
            grids = {-1: Grid(1, 1)}
        case "less":
            losses = (EmbeddingLoss(),)
    after = filled(teacher, reading, tmp_path, losses, grids)
    assert after.computed == {"images": images, "captions": texts}


def test_a_cache_that_was_complete_is_not_looked_through_again_unless_a_block_is_gone(
    pairs_file: Path, student: Towers, altclip: Towers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = collator(pairs_file, student, altclip)
    loaders = list[int]()

    def noted(*arguments: Any, **options: Any) -> Any:
        loaders.append(1)
        return load_batches(*arguments, **options)

    monkeypatch.setattr(teacher_cache, "load_batches", noted)
    monkeypatch.setattr(store, "_CLAIMED", 1)  # 80 images are two claims
    filled(altclip, reading, tmp_path)
    assert loaders == [1]  # whose processes start once
    with monkeypatch.context() as patch:
        for name in ("missing", "fill"):
            patch.setattr(FeatureStore, name, pytest.fail)
        complete = filled(altclip, reading, tmp_path)
    files = {kind: next(complete.folder.glob(f"{kind}*/*.safetensors")) for kind in ("images", "texts")}
    rows = {kind: len(open_block(file)["keys"]) for kind, file in files.items()}
    for file in files.values():
        file.unlink()
    with pytest.raises(DcclipError, match=r"cached teacher features were deleted from .*images.* or .*texts"):
        read(complete, reading, [(index, 0) for index in range(40)])
    assert filled(altclip, reading, tmp_path).computed == {"images": rows["images"], "captions": rows["texts"]}


def test_an_image_that_is_replaced_by_one_of_the_same_size_is_computed_after_one_error(
    whole_recipe: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(16):
        Image.new("RGB", (48, 48), (number * 10, 0, 0)).save(folder / f"{number}.png", compress_level=0)
    (tmp_path / "lines.tsv").write_text("".join(f"{zh}\t{en}\n" for en, zh in SHAPES.items()), "utf-8")
    sizes = {"images_per_step": 4, "texts_per_step": 4, "steps": 4, "workers": 1, "losses": [{"kind": "embedding"}]}
    recipe = {key: value for key, value in whole_recipe.items() if key not in ("align", "eval", "export")}
    recipe |= {"data": {"images": str(folder), "texts": str(tmp_path / "lines.tsv")}}
    recipe["distill"] = recipe["distill"] | sizes
    api.distill(recipe, out=tmp_path / "run")
    Image.new("RGB", (48, 48), (3, 77, 99)).save(folder / "5.png", compress_level=0)
    with pytest.raises(DcclipError, match="cached teacher features were deleted"):
        api.distill(recipe, out=tmp_path / "second")
    api.distill(recipe, out=tmp_path / "second")


def test_only_what_a_loss_needs_is_stored_and_tokens_take_the_room_of_their_own_length(
    pairs_file: Path, student: Towers, altclip: Towers, tmp_path: Path
) -> None:
    cache = filled(altclip, collator(pairs_file, student, altclip), tmp_path, losses=(TokenFeaturesLoss(),))
    rows = contents(cache)
    assert Counter(name for name, _ in rows) == {"image_embedding": 80, "text_embedding": 112, "text_states": 112}
    captions = {caption for pair in open_pairs(pairs_file) for caption in (*pair.zh, *pair.en)}
    tokens = sum(int(altclip.tokenize([caption]).mask.sum()) for caption in captions)
    assert sum(len(row) for (name, _), row in rows.items() if name == "text_states") == tokens * 16 * 2


def test_one_new_caption_or_image_is_the_only_one_that_is_computed(
    pairs: list[Pair], student: Towers, altclip: Towers, tmp_path: Path
) -> None:
    def fill(some: list[Pair]) -> dict[str, int]:
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data/000000.tar").write_bytes(tar_of(some))
        reading = collator(tmp_path / "data", student, altclip, augmentations=1)
        return dict(filled(altclip, reading, tmp_path / "cache").computed)

    assert fill(pairs[:8])["images"] == 8
    assert fill([replace(pairs[0], en=("a first one", *pairs[0].en)), *pairs[1:8]]) == {"images": 0, "captions": 1}
    assert fill([replace(pairs[0], image=pairs[39].image), *pairs[1:8]]) == {"images": 1, "captions": 0}
    assert fill([*pairs[:8], pairs[20]])["images"] == 1  # the first is found from before


def test_the_maps_of_several_layers_are_stored_each_on_its_students_grid(
    pairs_file: Path, student: Towers, altclip: Towers, tmp_path: Path
) -> None:
    assert map_grids(student)[-1] == Grid(2, 2)  # 64 px at stride 32
    assert map_grids(altclip)[-1] == Grid(4, 4)  # 32 px in patches of 8
    loss = FeatureMapLoss(student_layers=(-2, -1), teacher_layers=(0, -1))
    reading = collator(pairs_file, student, altclip)
    cache = filled(altclip, reading, tmp_path, (loss,), {-2: Grid(4, 4), -1: Grid(2, 2)})
    batch = read(cache, reading, [(0, 0), (20, 1)])
    cached = cache.features(batch).image
    online = OnlineTeacher(altclip, 0, (0,), WIDTHS).features(batch).image
    torch.testing.assert_close(cached.layer(0), online.layer(0), **FP16)  # 4 x 4 is the teacher's own grid
    torch.testing.assert_close(cached.layer(-1), to_grid(online.layer(-1), 2, 2), **FP16)
    assert not torch.equal(online.layer(0), online.layer(-1))
