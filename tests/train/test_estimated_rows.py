import pytest

from dcclip_cli.data.preview import Preview
from dcclip_cli.train.estimate import Rows, checkpoint_bytes, rows_used, steps_of, teacher_cache_bytes
from dcclip_cli.train.feature_shapes import Grid
from dcclip_cli.train.losses.base import Widths
from dcclip_cli.train.losses.embeddings import EmbeddingLoss
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss
from dcclip_cli.train.options import TrainOptions

ALTCLIP = Widths(embedding=768, image_map=1024, text_tokens=768)
PAPERS = (FeatureMapLoss(), TokenFeaturesLoss(), EmbeddingLoss())
GRIDS = {-1: Grid(7, 7)}


def test_the_papers_teacher_takes_100_kb_an_image_and_120_kb_a_long_caption() -> None:
    options = TrainOptions(epochs=1, augmentations=4)
    long = {"pairs": Preview(1_000, [{"zh": ("长" * 200,), "en": ()}])}
    image, caption = 2 * (768 + 7 * 7 * 1024), 2 * (768 + 77 * 768)  # measured: 101,890 and 119,811
    found = teacher_cache_bytes(ALTCLIP, PAPERS, options, long, GRIDS, Rows(4_000, 1_000))
    assert found == 4_000 * image + 1_000 * caption
    short = {"texts": Preview(1_000, [{"zh": ("猫狗",), "en": ("a cat ",)}])}  # 6 bytes each: 3.5 tokens
    found = teacher_cache_bytes(ALTCLIP, PAPERS[1:], options, short, GRIDS, Rows(0, 2_000))
    assert found == pytest.approx(2_000 * 2 * (768 + 3.5 * 768))


def test_a_run_of_a_few_steps_uses_only_the_rows_of_these() -> None:
    options = TrainOptions(steps=10, batch_size=8, augmentations=4)
    data = {"pairs": Preview(1_000_000, [{"zh": ("猫",), "en": ()}]), "images": Preview(20, [{"zh": (), "en": ()}])}
    assert rows_used(options, data, {"pairs": 8, "images": 8}, 10) == Rows(80 + 80, 80)
    assert rows_used(options, data, {"pairs": 8, "images": 8}, 1_000_000) == Rows(4_000_000 + 80, 1_000_000)


def test_captions_are_counted_as_they_are_chosen() -> None:
    data = {"pairs": Preview(100, [{"zh": ("猫", "一只猫", "猫咪"), "en": ("cat",)}])}
    sizes = {"pairs": 10}
    first = TrainOptions.model_validate({"epochs": 9, "captions": {"first": 1.0}})
    assert rows_used(first, data, sizes, 90).texts == 200
    assert rows_used(TrainOptions(epochs=9), data, sizes, 90).texts == 400
    assert rows_used(TrainOptions(epochs=2), data, sizes, 20).texts == 300  # two of the three at most


def test_a_finer_layer_of_the_student_has_a_larger_map_of_the_teachers_own_width() -> None:
    options, data = TrainOptions(epochs=1), {"images": Preview(1, [{"zh": (), "en": ()}])}
    wide = Widths(768, 1024, 768, {2: 256})
    loss = FeatureMapLoss(student_layers=(1,), teacher_layers=(2,))
    found = teacher_cache_bytes(wide, (loss,), options, data, {-1: Grid(7, 7), 1: Grid(56, 56)}, Rows(1, 0))
    assert found == 2 * (768 + 56 * 56 * 256)


def test_two_checkpoints_and_the_model_are_on_disk_at_once() -> None:
    assert checkpoint_bytes(1_000, TrainOptions(epochs=1)) == 4_000 * 7
    best = TrainOptions(epochs=1, ema=0.9, keep="best", validate_every_steps=1)
    assert checkpoint_bytes(1_000, best) == 4_000 * 10


def test_an_epoch_is_one_of_the_first_kind_of_data() -> None:
    data = {"pairs": Preview(1_000, []), "texts": Preview(7, [])}
    assert steps_of(TrainOptions(epochs=1.5), data, {"pairs": 64, "texts": 7}) == 23  # 1.5 times 15
    assert steps_of(TrainOptions(steps=3), {}, {}) == 3
