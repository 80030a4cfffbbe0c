"""Batches: augmented images, chosen captions, and the same ones whenever they are read."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.data.batch import copy_to
from dcclip_cli.data.collator import Collator
from dcclip_cli.data.dataset import open_pairs, write_parquet
from dcclip_cli.data.options import Augment, CaptionOptions
from dcclip_cli.data.pair import ConcatDataset, Pair, PairDataset
from dcclip_cli.data.pixels import ImageCache, Uint8Pixels, training_preprocess
from dcclip_cli.data.unpaired import open_images, open_texts
from dcclip_cli.model.preprocess import Preprocessing
from dcclip_cli.model.towers import Tokens
from dcclip_cli.train.loading import load_batches

AUGMENT = Augment(rotate=20, colour=0.3)


def count_characters(texts: list[str]) -> Tokens:
    lengths = torch.tensor([[len(text)] for text in texts])
    return Tokens(lengths, torch.ones_like(lengths))


def to_side_8(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((8, 8)), np.float32).transpose(2, 0, 1)


def collate(dataset: PairDataset, captions: dict[str, Any] | None = None, **changes: Any) -> Collator:
    """A collator of a dataset: images of 8 by 8, one token per text, its length."""
    options = CaptionOptions.model_validate(captions or {})
    return replace(Collator(dataset, 0, Augment(), options, to_side_8, count_characters), **changes)


def dataset_of(tmp_path: Path, *pairs: Pair) -> PairDataset:
    write_parquet(tmp_path / "pairs.parquet", pairs)
    return open_pairs(tmp_path / "pairs.parquet")


@pytest.fixture
def joined(pairs_file: Path, pairs: list[Pair], tmp_path: Path) -> ConcatDataset:
    """40 pairs, three images without captions, two lines of parallel text."""
    for number, pair in enumerate(pairs[:3]):
        (tmp_path / f"{number}.png").write_bytes(pair.image)
    (tmp_path / "texts.tsv").write_text("蓝色的猫\tblue cat\n绿色的狗\tgreen dog\n", "utf-8")
    return ConcatDataset([open_pairs(pairs_file), open_images(tmp_path), open_texts(tmp_path / "texts.tsv")])


def test_a_sample_is_the_same_whenever_and_in_whatever_batch_it_is_read(pairs_file: Path) -> None:
    collator = collate(open_pairs(pairs_file), augment=AUGMENT)
    first, again, alone = (collator.batch(samples) for samples in ([(0, 3), (5, 3)], [(0, 3), (5, 3)], [(5, 3)]))
    assert torch.equal(first.pixels, again.pixels) and torch.equal(first.pixels[1:], alone.pixels)
    for language in ("zh", "en"):
        captions = first.texts[language].captions
        assert captions == again.texts[language].captions
        assert captions[1:] == alone.texts[language].captions


def test_another_epoch_has_another_augmentation_unless_their_number_is_fixed(pairs_file: Path) -> None:
    dataset = open_pairs(pairs_file)
    free, fixed = (collate(dataset, augment=AUGMENT, num_augmentations=count) for count in (0, 2))
    assert not torch.equal(free.batch([(0, 0)]).pixels, free.batch([(0, 2)]).pixels)
    assert torch.equal(fixed.batch([(0, 0)]).pixels, fixed.batch([(0, 2)]).pixels)
    assert fixed.batch([(0, 5)]).augmentation_index.tolist() == [1]


def test_towers_with_one_geometry_share_pixels_that_are_made_handed_over_and_moved_once(pairs_file: Path) -> None:
    half: Any = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    settings = Preprocessing(8), Preprocessing(8, crop="floor", resize_mode="squash"), Preprocessing(8, **half)
    student, other, same = (training_preprocess(SimpleNamespace(preprocessing=geometry)) for geometry in settings)  # type: ignore[arg-type]
    own = (to_side_8, lambda image: -to_side_8(image))
    collator = collate(open_pairs(pairs_file), augment=AUGMENT, preprocess=student)
    ensemble = replace(collator, teacher_preprocess=(other, same, *own))
    samples = [(0, 0), (1, 0)]
    [batch] = load_batches(ensemble.batch, [samples], 1)
    assert [pixels is batch.pixels for pixels in batch.teacher_pixels] == [False, True, False, False]
    assert torch.equal(batch.pixels, replace(collator, preprocess=Uint8Pixels(settings[2])).batch(samples).pixels)
    assert torch.equal(batch.teacher_pixels[0], replace(collator, preprocess=other).batch(samples).pixels)
    assert torch.equal(batch.teacher_pixels[2], -batch.teacher_pixels[3])
    moved = batch.to("meta")
    assert moved.teacher_pixels[1] is moved.pixels and {pixels.is_meta for pixels in moved.teacher_pixels} == {True}


def test_images_are_read_in_the_order_of_the_files_and_stay_in_that_of_the_samples(pairs_file: Path) -> None:
    dataset = open_pairs(pairs_file)
    samples = [(7, 0), (2, 0), (30, 0), (5, 0)]
    expected = torch.cat([collate(dataset).batch([sample]).pixels for sample in samples])
    requests: list[int] = []
    image_of = dataset.image

    def image(index: int) -> bytes:
        requests.append(index)
        return image_of(index)

    dataset.image = image  # type: ignore[method-assign]
    assert torch.equal(collate(dataset).batch(samples).pixels, expected)
    assert requests == [2, 5, 7, 30]


def test_a_batch_moves_to_a_device_with_every_tensor_that_is_computed_with(pairs_file: Path) -> None:
    collator = collate(open_pairs(pairs_file), with_caption_ids=True, teacher_preprocess=(to_side_8,))
    moved = collator.batch([(0, 0), (1, 0)]).to("meta")
    texts = moved.texts["zh"]
    tensors = [moved.pixels, *moved.teacher_pixels, texts.image_index, texts.tokens.ids, texts.tokens.mask]
    assert {str(tensor.device) for tensor in tensors} == {"meta"}
    assert texts.caption_ids is not None and texts.image_caption_ids is not None
    assert texts.caption_ids.is_meta and texts.image_caption_ids.is_meta
    assert moved.sample_index.tolist() == [0, 1]  # stays on the CPU


def test_an_unreadable_image_is_named_with_its_file_and_key(tmp_path: Path) -> None:
    collator = collate(dataset_of(tmp_path, Pair("the-broken-one", b"no image", zh=("猫",), en=("cat",))))
    with pytest.raises(DcclipError, match=r"pairs\.parquet: pair the-broken-one: .* is not a readable image"):
        collator.batch([(0, 0)])


@pytest.mark.parametrize("num_augmentations", [0, 2])
def test_a_damaged_photograph_without_captions_is_white_and_is_named(
    num_augmentations: int, pictures: list[Path]
) -> None:
    content = pictures[1].read_bytes()
    pictures[1].write_bytes(content[: len(content) // 2])
    collator = collate(open_images(pictures[0].parent), num_augmentations=num_augmentations)
    batch = collator.batch([(0, 0), (1, 0)])
    [problem] = batch.to("cpu").unreadable
    assert problem.startswith(f"{pictures[1].name}: ") and "is not a readable image" in problem
    assert batch.pixels[1].float().std() == 0 < batch.pixels[0].float().std()
    assert [collator.batch([(row, 0)]).unreadable for row in (0, 1)] == [(), (problem,)]  # now from the image cache


@pytest.mark.parametrize(("mode", "fit"), [("RGB", 3), ("RGBA", 2)])
def test_the_cache_makes_each_image_once_up_to_its_limit(mode: str, fit: int) -> None:
    cache = ImageCache(limit=999)
    decoded: list[Image.Image] = []

    def make() -> Image.Image:
        decoded.append(Image.new(mode, (10, 10), len(decoded)))
        return decoded[-1]

    for _ in range(2):
        images = [cache.get((3, augmentation), make) for augmentation in range(4)]
    assert images[:fit] == decoded[:fit]
    assert len(decoded) == 4 + (4 - fit)


def test_image_index_is_the_image_that_a_caption_belongs_to(tmp_path: Path, pairs: list[Pair]) -> None:
    image = pairs[0].image
    dataset = dataset_of(
        tmp_path,
        Pair("a", image, zh=("猫",), en=("a cat",)),
        Pair("b", image, en=("dog",)),
        Pair("c", image, zh=("小鸟",)),
    )
    texts = collate(dataset).batch([(2, 0), (1, 0), (0, 0)]).texts
    assert (texts["zh"].image_index.tolist(), texts["zh"].captions) == ([0, 2], ["小鸟", "猫"])
    assert (texts["en"].image_index.tolist(), texts["en"].captions) == ([1, 2], ["dog", "a cat"])
    assert texts["zh"].tokens.ids.tolist() == [[2], [1]]


def test_the_first_caption_is_chosen_as_often_as_asked(pairs_file: Path) -> None:
    dataset = open_pairs(pairs_file)
    always, half, never = (collate(dataset, {"first": first}) for first in (1, 0.5, 0))
    for epoch in range(5):
        assert always.batch([(0, epoch)]).texts["en"].captions == ["red circle"]
        assert never.batch([(0, epoch)]).texts["zh"].captions != ["红色的圆"]
    drawn = [
        caption for epoch in range(25) for caption in half.batch([(i, epoch) for i in range(8)]).texts["zh"].captions
    ]
    firsts = sum(caption in {captions[0] for captions in dataset.captions("zh")} for caption in drawn)
    assert 75 <= firsts <= 125  # of 200; 3.5 standard deviations


def test_second_caption_adds_one_of_the_other_captions_in_the_languages_asked_for(pairs_file: Path) -> None:
    texts = collate(open_pairs(pairs_file), {"second_caption": True}).batch([(0, 0)]).texts
    assert texts["zh"].captions == ["红色的圆"]
    assert texts["en"].captions == ["red circle"]
    assert texts["zh-other"].captions[0] in ("一张圆的图片", "圆")
    assert texts["en-other"].captions[0] in ("a picture of a circle", "circle")
    assert set(collate(open_pairs(pairs_file), {"languages": ("zh",)}).batch([(0, 0)]).texts) == {"zh"}


def test_a_language_without_captions_is_in_no_batch_and_in_no_part(tmp_path: Path, pairs: list[Pair]) -> None:
    image = pairs[0].image
    batch = collate(dataset_of(tmp_path, Pair("a", image, zh=("猫",)), Pair("b", image, en=("dog",)))).batch(
        [(0, 0), (1, 0)]
    )
    assert [[*part.texts] for part in (batch, *batch.parts(2))] == [["zh", "en"], ["zh"], ["en"]]


# ---- images without captions, texts without images, embeddings in place of images


def test_texts_without_images_have_numbers_after_the_images_and_a_batch_may_be_either_alone(
    joined: ConcatDataset,
) -> None:
    collator = collate(joined, {"first": 1})
    batch = collator.batch([(0, 0), (41, 0), (43, 0), (44, 0)])
    assert batch.pixels.shape == (2, 3, 8, 8) and batch.num_unpaired_texts == 2
    assert batch.texts["zh"].image_index.tolist() == batch.texts["en"].image_index.tolist() == [0, 2, 3]
    assert batch.texts["en"].captions[1:] == ["blue cat", "green dog"]
    texts = collator.batch([(43, 0), (44, 0)])
    images = collator.batch([(40, 0), (41, 0)])
    assert (len(texts.pixels), texts.texts["zh"].image_index.tolist()) == (0, [0, 1])
    assert (len(images.pixels), images.texts) == (2, {})


def test_processes_and_parts_have_equal_shares_of_captions_images_and_texts(joined: ConcatDataset) -> None:
    collator = collate(joined, {"first": 1, "caption_fraction": 0.5}, with_caption_ids=True)  # of pairs 5 and 6
    samples = [(index, 0) for index in (5, 6, 7, 8, 40, 41, 43, 44)]
    batch = collator.batch(samples)
    assert batch.texts["zh"].image_index.tolist() == [0, 1, 6, 7]
    least = collate(joined, {"caption_fraction": 0.01}).batch(samples)  # of one pair
    assert len(least.texts["zh"].captions) == 3 and torch.equal(least.pixels, batch.pixels)
    for parts in (batch.parts(2), [collator.batch(samples, process, 2) for process in range(2)]):
        for part, number, rows, english in zip(
            parts,
            (0, 1),
            ([0, 2, 3], [1, 4, 5]),
            (["red square", "blue cat"], ["green square", "green dog"]),
            strict=True,
        ):
            assert torch.equal(part.sample_index, batch.sample_index[rows]) and torch.equal(
                part.pixels, batch.pixels[rows]
            )
            assert part.texts["zh"].image_index.tolist() == part.texts["en"].image_index.tolist() == [0, 3]
            assert part.texts["en"].captions == english
            ids = batch.texts["zh"].caption_ids
            own_ids = part.texts["zh"].caption_ids
            assert ids is not None and own_ids is not None and torch.equal(own_ids, ids[[number, 2 + number]])
            assert part.num_unpaired_texts == 1


def test_embeddings_take_the_place_of_pixels_and_equal_ones_have_one_caption_id(tmp_path: Path) -> None:
    table = {"key": ["cat", "dog", "hound"], "embedding": [[1, 0], [0, 1], [0, 1]], "zh": [["猫"], ["狗"], ["犬"]]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    collator = collate(open_pairs(tmp_path / "a.parquet"), {"languages": ("zh",)}, with_caption_ids=True)
    batch = collator.batch([(2, 0), (0, 0), (1, 0)])
    assert batch.pixels.tolist() == [[0, 1], [1, 0], [0, 1]]
    ids = batch.texts["zh"].caption_ids
    assert ids is not None
    assert ids[0] == ids[2] != ids[1]  # 犬 and 狗 have one embedding, 猫 another


class Copied(torch.Tensor):
    """Records whether it may be copied without waiting."""

    waiting: list[bool]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.waiting.append(not kwargs["non_blocking"])
        return args[0]


def test_only_cuda_reads_a_tensor_after_its_memory_may_be_used_again() -> None:
    source = torch.zeros(2).as_subclass(Copied)
    Copied.waiting = []
    for device in ("cuda", "cuda:1", torch.device("cuda"), "mps", torch.device("mps"), "cpu"):
        copy_to(source, device)
    assert Copied.waiting == [False, False, False, True, True, True]
