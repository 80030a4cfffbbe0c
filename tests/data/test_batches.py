"""Which samples a step sees, in which order, with which captions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcclip_cli.data.augment import Augment
from dcclip_cli.data.collator import Collator, first_captions
from dcclip_cli.data.dataset import PairDataset, open_pairs, write_parquet
from dcclip_cli.data.options import CaptionOptions
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.samplers import EpochBatchSampler, caption_groups
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.towers import Tokens


def count_characters(texts: list[str]) -> Tokens:
    lengths = torch.tensor([[len(text)] for text in texts])
    return Tokens(lengths, torch.ones_like(lengths))


def to_side_8(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((8, 8)), np.float32).transpose(2, 0, 1)


def reader(
    table: PairDataset, captions: CaptionOptions | None = None, augment: Augment | None = None, repeats: int = 0
) -> Collator:
    chosen = captions or CaptionOptions()
    return Collator(table, 0, augment or Augment(), chosen, to_side_8, count_characters, num_augmentations=repeats)


def table_of(tmp_path: Path, *pairs: Pair) -> PairDataset:
    write_parquet(tmp_path / "pairs.parquet", pairs)
    return open_pairs(tmp_path / "pairs.parquet")


# ---- order


@pytest.mark.parametrize("groups", [None, np.arange(23) % 7])
def test_an_epoch_shows_a_sample_at_most_once_and_fills_every_batch(groups: np.ndarray | None) -> None:
    batches = EpochBatchSampler(23, 5, seed=0, groups=groups).epoch(0)
    assert [len(batch) for batch in batches] == [5, 5, 5, 5]
    shown = np.concatenate(batches)
    assert len(set(shown.tolist())) == 20


def test_epochs_and_seeds_each_have_another_order() -> None:
    orders = [
        EpochBatchSampler(50, 50, seed).epoch(epoch)[0].tolist() for seed, epoch in [(0, 0), (0, 1), (0, 2), (1, 0)]
    ]
    assert len({tuple(order) for order in orders}) == 4
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(50))}


def test_samples_left_over_in_one_epoch_come_in_another() -> None:
    order = EpochBatchSampler(23, 5, seed=0)
    assert {int(sample) for epoch in range(5) for batch in order.epoch(epoch) for sample in batch} == set(range(23))


@pytest.mark.parametrize("start", [0, 1, 4, 5, 9, 17, 20])
@pytest.mark.parametrize("groups", [None, np.arange(23) % 7])
def test_starting_in_the_middle_gives_the_tail_of_the_whole(start: int, groups: np.ndarray | None) -> None:
    order = EpochBatchSampler(23, 5, seed=4, groups=groups)
    whole = list(order(0, 18))
    assert len(whole) == 18
    assert list(order(start, 18)) == whole[start:]


def test_every_step_says_which_epoch_its_samples_belong_to() -> None:
    steps = list(EpochBatchSampler(10, 5, seed=0)(0, 5))
    assert [{epoch for _, epoch in step} for step in steps] == [{0}, {0}, {1}, {1}, {2}]


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_holds_no_two_samples_of_one_caption_group_while_enough_groups_are_left(seed: int) -> None:
    groups = np.arange(60) // 3  # 20 captions, three pictures each
    left = set(range(60))
    for number, batch in enumerate(EpochBatchSampler(60, 10, seed, groups).epoch(0)):
        distinct = len({int(groups[sample]) for sample in batch})
        assert distinct == min(10, len({int(groups[sample]) for sample in left}))
        assert distinct == 10 or number >= 4
        left -= set(batch.tolist())


def test_where_too_few_distinct_captions_are_left_the_batch_is_filled_up() -> None:
    batches = EpochBatchSampler(6, 3, seed=0, groups=np.zeros(6, int)).epoch(0)
    assert sorted(np.concatenate(batches).tolist()) == [0, 1, 2, 3, 4, 5]


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(DcclipError, match="batch_size 8 is larger than the data"):
        EpochBatchSampler(7, 8, seed=0)


def test_pairs_that_share_a_first_caption_in_either_language_are_one_group(tmp_path: Path) -> None:
    table = table_of(
        tmp_path,
        Pair("a", b"", zh=("猫",), en=("cat",)),
        Pair("b", b"", zh=("狗",), en=("Cat",)),  # with a, whatever the case
        Pair("c", b"", zh=("狗",), en=("dog",)),  # with b, so with a
        Pair("d", b"", zh=("鸟", "猫"), en=("bird",)),  # only a second caption is shared
        Pair("e", b"", en=("fish",)),
    )
    groups = caption_groups(table).tolist()
    assert groups[0] == groups[1] == groups[2]
    assert len({groups[0], groups[3], groups[4]}) == 3


# ---- batches


def test_a_batch_is_the_same_whenever_it_is_read(pairs_file: Path) -> None:
    read = reader(open_pairs(pairs_file), augment=Augment(rotate=20, colour=0.3))
    samples = [(0, 3), (11, 3), (39, 3)]
    first, again = read.batch(samples), read.batch(samples)
    assert torch.equal(first.pixels, again.pixels)
    assert {name: texts.captions for name, texts in first.texts.items()} == {
        name: texts.captions for name, texts in again.texts.items()
    }


def test_a_samples_picture_and_captions_do_not_depend_on_the_rest_of_the_batch(pairs_file: Path) -> None:
    read = reader(open_pairs(pairs_file), augment=Augment(rotate=20, colour=0.3))
    alone, among = read.batch([(5, 2)]), read.batch([(1, 2), (5, 2)])
    assert torch.equal(alone.pixels[0], among.pixels[1])
    assert alone.texts["zh"].captions[0] == among.texts["zh"].captions[1]
    assert alone.texts["en"].captions[0] == among.texts["en"].captions[1]


def test_another_epoch_brings_another_augmentation_unless_repeats_bound_them(pairs_file: Path) -> None:
    table, augment = open_pairs(pairs_file), Augment(rotate=20)
    free, bound = reader(table, augment=augment), reader(table, augment=augment, repeats=2)
    assert not torch.equal(free.batch([(0, 0)]).pixels, free.batch([(0, 2)]).pixels)
    assert torch.equal(bound.batch([(0, 0)]).pixels, bound.batch([(0, 2)]).pixels)
    assert bound.batch([(0, 5)]).augmentation_index.tolist() == [1]


def test_the_teacher_sees_the_same_augmented_picture_through_its_own_preprocessing(pairs_file: Path) -> None:
    table = open_pairs(pairs_file)
    read = Collator(
        table, 0, Augment(rotate=20), CaptionOptions(), to_side_8, count_characters, (lambda image: -to_side_8(image),)
    )
    batch = read.batch([(0, 0), (1, 0)])
    [pixels] = batch.teacher_pixels
    assert torch.equal(pixels, -batch.pixels)


def test_rows_say_which_picture_a_caption_belongs_to(tmp_path: Path, pairs: list[Pair]) -> None:
    image = pairs[0].image
    table = table_of(
        tmp_path,
        Pair("a", image, zh=("猫",), en=("a cat",)),
        Pair("b", image, en=("dog",)),
        Pair("c", image, zh=("小鸟",)),
    )
    texts = reader(table).batch([(2, 0), (1, 0), (0, 0)]).texts
    assert (texts["zh"].image_index.tolist(), texts["zh"].captions) == ([0, 2], ["小鸟", "猫"])
    assert (texts["en"].image_index.tolist(), texts["en"].captions) == ([1, 2], ["dog", "a cat"])
    assert texts["zh"].tokens.ids.tolist() == [[2], [1]]


def test_the_first_caption_is_chosen_as_often_as_asked(pairs_file: Path) -> None:
    table = open_pairs(pairs_file)
    always, never = reader(table, CaptionOptions(first=1)), reader(table, CaptionOptions(first=0))
    for epoch in range(5):
        assert always.batch([(0, epoch)]).texts["en"].captions == ["red circle"]
        assert never.batch([(0, epoch)]).texts["zh"].captions != ["红色的圆"]
    half = reader(table, CaptionOptions(first=0.5))
    drawn = [
        caption for epoch in range(25) for caption in half.batch([(i, epoch) for i in range(8)]).texts["zh"].captions
    ]
    firsts = sum(caption in first_captions(table, "zh") for caption in drawn)
    assert 75 <= firsts <= 125  # of 200; 3.5 standard deviations


def test_second_caption_adds_one_of_the_other_captions_to_the_first(pairs_file: Path) -> None:
    texts = reader(open_pairs(pairs_file), CaptionOptions(second_caption=True)).batch([(0, 0)]).texts
    assert texts["zh"].captions == ["红色的圆"]
    assert texts["en"].captions == ["red circle"]
    assert texts["zh-other"].captions[0] in ("一张圆的图片", "圆")
    assert texts["en-other"].captions[0] in ("a picture of a circle", "circle")


def test_the_old_names_of_the_caption_keys_still_work() -> None:
    old = CaptionOptions.model_validate({"also_other": True, "share": 0.5})
    assert old == CaptionOptions(second_caption=True, caption_fraction=0.5)


def test_only_the_languages_asked_for_are_read(pairs_file: Path) -> None:
    batch = reader(open_pairs(pairs_file), CaptionOptions(languages=("zh",))).batch([(0, 0)])
    assert set(batch.texts) == {"zh"}


def test_a_batch_without_captions_of_a_language_says_so(tmp_path: Path, pairs: list[Pair]) -> None:
    table = table_of(tmp_path, Pair("a", pairs[0].image, en=("cat",)))
    with pytest.raises(DcclipError, match="a whole batch has no 'zh' captions") as raised:
        reader(table).batch([(0, 0)])
    assert "captions.languages" in raised.value.hint


def test_a_broken_picture_is_named_with_its_file_and_key(tmp_path: Path) -> None:
    table = table_of(tmp_path, Pair("the-broken-one", b"no image", zh=("猫",), en=("cat",)))
    with pytest.raises(DcclipError, match=r"pairs\.parquet: pair the-broken-one: .* is not a readable image"):
        reader(table).batch([(0, 0)])


def test_what_is_wrong_with_a_batch_leaves_a_worker_as_a_value(tmp_path: Path) -> None:
    table = table_of(tmp_path, Pair("x", b"no image", zh=("猫",), en=("cat",)))
    returned = reader(table).__getitems__([(0, 0)])
    assert isinstance(returned, DcclipError)


def test_a_share_of_the_pairs_brings_captions_and_every_pair_its_picture(pairs_file: Path) -> None:
    samples = [(index, 0) for index in range(8)]
    few = reader(open_pairs(pairs_file), CaptionOptions(caption_fraction=0.25)).batch(samples)
    all_of_them = reader(open_pairs(pairs_file), CaptionOptions()).batch(samples)
    assert few.pixels.shape == all_of_them.pixels.shape
    assert few.texts["zh"].image_index.tolist() == few.texts["en"].image_index.tolist() == [0, 1]
    assert few.texts["zh"].captions == all_of_them.texts["zh"].captions[:2]
    assert (
        len(reader(open_pairs(pairs_file), CaptionOptions(caption_fraction=0.01)).batch(samples).texts["en"].captions)
        == 1
    )


@pytest.mark.parametrize("repeats", [0, 2])
def test_a_picture_that_was_kept_is_the_picture_that_would_be_made(pairs_file: Path, repeats: int) -> None:
    keeping = reader(open_pairs(pairs_file), augment=Augment(rotate=20, colour=0.3), repeats=repeats)
    for epoch in (0, 1, 0, 1, 2):
        forgetful = reader(open_pairs(pairs_file), augment=Augment(rotate=20, colour=0.3), repeats=repeats)
        samples = [(0, epoch), (1, epoch)]
        assert torch.equal(keeping.batch(samples).pixels, forgetful.batch(samples).pixels)
