"""Pictures alone, and pairs, pictures and lines as one table and one order."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcclip_cli.data.augment import Augment
from dcclip_cli.data.collator import Collator
from dcclip_cli.data.dataset import ConcatDataset, open_pairs, write_parquet
from dcclip_cli.data.options import CaptionOptions
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.samplers import EpochBatchSampler, MixedBatchSampler, Part
from dcclip_cli.data.unpaired import open_images, open_texts
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.towers import Tokens


def count_characters(texts: list[str]) -> Tokens:
    lengths = torch.tensor([[len(text)] for text in texts])
    return Tokens(lengths, torch.ones_like(lengths))


def to_side_8(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((8, 8)), np.float32).transpose(2, 0, 1)


@pytest.fixture
def joined(pairs_file: Path, pairs: list[Pair], tmp_path: Path) -> ConcatDataset:
    """40 pairs, three pictures in a folder, two lines of parallel text."""
    for number, pair in enumerate(pairs[:3]):
        folder = tmp_path / "pictures" / f"猫{number}"
        folder.mkdir(parents=True)
        (folder / "a.PNG").write_bytes(pair.image)
    (tmp_path / "lines.tsv").write_text("蓝色的猫\tblue cat\n绿色的狗\tgreen dog\n", "utf-8")
    return ConcatDataset(
        [open_pairs(pairs_file), open_images(tmp_path / "pictures"), open_texts(tmp_path / "lines.tsv")]
    )


def test_numbers_run_on_through_pairs_pictures_and_lines(joined: ConcatDataset, pairs: list[Pair]) -> None:
    assert (len(joined), joined.num_images, joined.firsts) == (45, 43, [0, 40, 43, 45])
    assert joined[39].key == pairs[39].key
    assert joined[40].image == pairs[0].image and not joined[40].zh
    assert joined[44].en == ("green dog",)
    assert joined.captions("zh")[39:] == [pairs[39].zh, (), (), (), ("蓝色的猫",), ("绿色的狗",)]


def test_an_image_is_identified_by_its_content_wherever_it_is(joined: ConcatDataset) -> None:
    digests = [joined.image_digest(index) for index in range(43)]
    assert len(set(digests)) == 40 and digests[40] == digests[0]


def test_lines_have_rows_after_the_pictures_and_stand_in_both_languages(joined: ConcatDataset) -> None:
    read = Collator(joined, 0, Augment(), CaptionOptions(first=1), to_side_8, count_characters)
    batch = read.batch([(0, 0), (41, 0), (43, 0), (44, 0)])
    assert batch.pixels.shape == (2, 3, 8, 8) and batch.lines == 2
    assert batch.texts["zh"].image_index.tolist() == batch.texts["en"].image_index.tolist() == [0, 2, 3]
    assert batch.texts["en"].captions[1:] == ["blue cat", "green dog"]


def test_a_batch_may_be_lines_alone_or_pictures_alone(joined: ConcatDataset) -> None:
    read = Collator(joined, 0, Augment(), CaptionOptions(), to_side_8, count_characters)
    lines, pictures = read.batch([(43, 0), (44, 0)]), read.batch([(40, 0), (41, 0)])
    assert (len(lines.pixels), lines.texts["zh"].image_index.tolist()) == (0, [0, 1])
    assert (len(pictures.pixels), pictures.texts) == (2, {})


def test_a_batch_falls_into_parts_that_hold_its_pictures_with_their_texts(joined: ConcatDataset) -> None:
    read = Collator(joined, 0, Augment(), CaptionOptions(first=1), to_side_8, count_characters, with_caption_ids=True)
    batch = read.batch([(5, 0), (40, 0), (6, 0), (7, 0), (43, 0), (44, 0)])
    one, two = batch.parts(2)
    assert (one.sample_index.tolist(), two.sample_index.tolist()) == ([5, 40], [6, 7])
    assert torch.equal(torch.cat([one.pixels, two.pixels]), batch.pixels)
    assert (one.texts["zh"].image_index.tolist(), two.texts["zh"].image_index.tolist()) == ([0, 2], [0, 1, 2])
    assert (one.texts["en"].captions[-1], two.texts["en"].captions[-1]) == ("blue cat", "green dog")
    assert one.lines == two.lines == 1


def test_every_process_sees_its_share_of_every_part() -> None:
    order = MixedBatchSampler((Part(EpochBatchSampler(12, 4, seed=0)), Part(EpochBatchSampler(6, 2, seed=1), first=12)))
    whole = list(order.share(0, 5))
    halves = [list(order.share(0, 5, process, 2)) for process in range(2)]
    assert [len(step) for step in whole] == [6] * 5
    for step, one, two in zip(whole, *halves, strict=True):
        assert one[:2] + two[:2] == step[:4] and one[2:] + two[2:] == step[4:]
        assert all(number < 12 for number, _ in step[:4]) and all(number >= 12 for number, _ in step[4:])
    assert list(order.share(3, 5)) == whole[3:]


def test_a_part_that_can_not_be_shared_is_named() -> None:
    with pytest.raises(DcclipError, match="batch_size 3 cannot be split among 2 processes"):
        MixedBatchSampler((Part(EpochBatchSampler(12, 4, seed=0)), Part(EpochBatchSampler(6, 3, seed=0)))).check_shares(
            2
        )


@pytest.mark.parametrize("kind", ["parquet", "tar", "shards"])
def test_pictures_of_tables_come_without_their_captions(tmp_path: Path, pairs: list[Pair], kind: str) -> None:
    if kind == "parquet":
        path = tmp_path / "a.parquet"
        write_parquet(path, pairs[:2])
    else:
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w") as archive:
            for pair in pairs[:2]:  # no records beside them
                member = tarfile.TarInfo(f"{pair.key}.png")
                member.size = len(pair.image)
                archive.addfile(member, io.BytesIO(pair.image))
        path = path if kind == "tar" else tmp_path
    table = open_images(path)
    assert [table[index].image for index in range(len(table))] == [pair.image for pair in pairs[:2]]
    assert table.captions("zh") == [(), ()] and table.has_uncaptioned_images


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DcclipError, match="has no images"):
        open_images(tmp_path)
    with pytest.raises(DcclipError, match="does not exist"):
        open_images(tmp_path / "nowhere")
