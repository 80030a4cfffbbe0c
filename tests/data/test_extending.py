"""The example of a new data set layout in docs/how-to/extend.md works as shown."""

from pathlib import Path

import pytest

from dcclip_cli.data import dataset
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.unpaired import open_images, open_texts
from dcclip_cli.errors import DcclipError
from tests.data.test_collator import collate
from tests.test_docs import ROOT, blocks

PAGE = ROOT / "docs/how-to/extend.md"


def test_a_class_and_its_name_in_layouts_make_a_dataset(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DcclipError, match="has no pairs") as raised:
        open_pairs(tmp_path)
    assert (
        raised.value.hint
        == "name a .parquet file, a .tar file or a folder of such shards, embeddings in a .parquet file"
    )
    [code] = [block for block in blocks(PAGE, "python") if "class CaptionedFolder" in block]
    [line] = [block for block in blocks(PAGE, "python") if block.startswith("LAYOUTS")]
    scope = dict(vars(dataset))
    exec(compile(code + line, PAGE, "exec"), scope)
    monkeypatch.setattr(dataset, "LAYOUTS", scope["LAYOUTS"])

    given = [Pair(f"{number}.png", pair.image, pair.zh[:1], pair.en[:1]) for number, pair in enumerate(pairs[:3])]
    for pair in given:
        (tmp_path / pair.key).write_bytes(pair.image)
    lines = [f"{pair.key}\t{pair.zh[0]}\t{pair.en[0]}\n" for pair in given]
    (tmp_path / "captions.tsv").write_text("".join(lines), "utf-8")
    photos = open_pairs(tmp_path)
    assert list(photos) == given
    batch = collate(photos).batch([(2, 0), (0, 0)])
    assert batch.pixels.shape == (2, 3, 8, 8)
    assert batch.texts["zh"].captions == [pairs[2].zh[0], pairs[0].zh[0]]
    assert len(photos.fingerprint) == 64
    assert [pair.image for pair in open_images(tmp_path)] == [pair.image for pair in pairs[:3]]
    assert {*open_texts(tmp_path).captions("en")} == {(), *(pair.en[:1] for pair in pairs[:3])}
