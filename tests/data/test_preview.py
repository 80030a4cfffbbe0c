import tarfile
from pathlib import Path

import pytest

from dcclip_cli.curation.shards import ShardWriter
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.preview import preview_images, preview_pairs, preview_texts
from dcclip_cli.errors import DcclipError


@pytest.fixture
def shards(pairs: list[Pair], tmp_path: Path) -> Path:
    """The 40 drawn pairs in two tars."""
    (tmp_path / "shards").mkdir()
    for number in range(2):
        writer = ShardWriter(tmp_path / f"shards/{number}.tar")
        for pair in pairs[number::2]:
            writer.add(pair)
        writer.finish(f"{number}.tar")
    return tmp_path / "shards"


def test_a_first_look_counts_pairs_and_captions(pairs: list[Pair], pairs_file: Path, shards: Path) -> None:
    table, tars = preview_pairs(pairs_file), preview_pairs(shards)
    assert table.samples == 40 and abs(tars.samples - 40) <= 4  # by the size of the files
    for found in (table, tars):
        assert {tuple(map(len, one.values())) for one in found.captions} == {(3, 3)}
    lengths = [len(text.encode()) for pair in pairs for text in pair.zh]
    assert table.bytes_per_caption(("zh",)) == pytest.approx(sum(lengths) / 120)


def test_images_and_texts_are_counted_too(pictures: list[Path], pairs_file: Path, tmp_path: Path) -> None:
    assert preview_images(pictures[0].parent).samples == 5
    assert preview_images(pairs_file).samples == 40
    (tmp_path / "texts.txt").write_text("猫\n\na cat\n", "utf-8")
    found = preview_texts(tmp_path / "texts.txt")
    assert found.samples == 2 and found.captions == [{"zh": ("猫",), "en": ()}, {"zh": (), "en": ("a cat",)}]


def test_what_has_no_samples_is_said(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.tar").write_bytes(b"no tar" * 200)
    (tmp_path / "texts.txt").write_text("\n \n")
    with tarfile.open(tmp_path / "bare.tar", "w"):
        pass
    for look, name, what in (
        (preview_pairs, "无", "does not exist"),
        (preview_pairs, "empty", "has no pairs"),
        (preview_images, "empty", "has no images"),
        (preview_pairs, "bad.tar", "is not a readable tar file"),
        (preview_pairs, "bare.tar", "has no pairs"),
        (preview_texts, "texts.txt", "has no text"),
        (preview_texts, "empty", "has no pairs"),
    ):
        with pytest.raises(DcclipError, match=what):
            look(tmp_path / name)
