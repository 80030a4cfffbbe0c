import pytest

from dcclip_cli.data.preview import Preview
from dcclip_cli.model.available import TeacherWidths
from dcclip_cli.train.disk_space import checkpoint_bytes, teacher_cache_bytes
from dcclip_cli.train.losses.embeddings import EmbeddingLoss
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss
from dcclip_cli.train.options import TrainOptions

ALTCLIP = TeacherWidths(embedding=768, image_map=1024, text_tokens=768)
PAPERS = (FeatureMapLoss(), TokenFeaturesLoss(), EmbeddingLoss())


def test_the_papers_teacher_takes_100_kb_an_image_and_120_kb_a_long_caption() -> None:
    options = TrainOptions(epochs=1, augmentations=4)
    long = Preview(1_000, [{"zh": ("长" * 200,), "en": ()}])
    image, caption = 2 * (768 + 7 * 7 * 1024), 2 * (768 + 77 * 768)  # measured: 101,890 and 119,811
    assert teacher_cache_bytes(ALTCLIP, PAPERS, options, {"train": long}, 224) == 1_000 * (4 * image + caption)
    short = Preview(1_000, [{"zh": ("猫狗",), "en": ("a cat ",)}])  # 6 bytes each: 3.5 tokens
    assert teacher_cache_bytes(ALTCLIP, PAPERS[1:], options, {"texts": short}, 224) == pytest.approx(
        1_000 * 2 * 2 * (768 + 3.5 * 768)
    )


def test_a_run_of_a_few_steps_caches_only_what_these_use() -> None:
    options = TrainOptions(steps=10, batch_size=8, augmentations=4)
    data = {"train": Preview(1_000_000, [{"zh": ("猫",), "en": ()}]), "images": Preview(20, [{"zh": (), "en": ()}])}
    found = teacher_cache_bytes(ALTCLIP, (EmbeddingLoss(),), options, data, 224)
    assert found == 2 * 768 * (80 + 80 + 80)  # images of pairs, images, captions


def test_a_finer_layer_of_the_student_has_a_larger_map() -> None:
    options, data = TrainOptions(epochs=1, augmentations=1), {"images": Preview(1, [{"zh": (), "en": ()}])}
    for student, cells in ((-1, 49), (4, 49), (-2, 14 * 14), (1, 56 * 56)):
        loss = FeatureMapLoss(student_layers=(student,), teacher_layers=(-1,))
        assert teacher_cache_bytes(ALTCLIP, (loss,), options, data, 224) == 2 * (768 + cells * 1024)


def test_two_checkpoints_and_the_model_are_on_disk_at_once() -> None:
    assert checkpoint_bytes(1_000, TrainOptions(epochs=1)) == 4_000 * 7
    best = TrainOptions(epochs=1, ema=0.9, keep="best", validate_every_steps=1)
    assert checkpoint_bytes(1_000, best) == 4_000 * 10
