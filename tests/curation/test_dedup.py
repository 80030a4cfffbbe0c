"""Decisions on a few pairs by the filters over all pairs: duplicates, evaluation sets, needed languages."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw, ImageOps

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.curation.dedup.dedup import (
    CAPTIONS,
    COMPARED,
    DECISIONS,
    Decontaminate,
    DedupOptions,
    dedup,
    signature_table,
    signatures_of,
)
from dcclip_cli.curation.dedup.minhash import SameCaption
from dcclip_cli.curation.dedup.same_images import SameImage
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.decoded import DecodedImage
from dcclip_cli.data.near_duplicates import similar, thumbnail
from dcclip_cli.data.pair import Language, Pair
from tests.curation.conftest import make_picture
from tests.images import encode
from tests.tars import tar_of

Facts = dict[str, Any]
CAT = "a cat that sleeps on the old red sofa"


def fact(
    key: str, image: int | str | bytes, zh: Sequence[str] = (), en: Sequence[str] = (), source: str = "web"
) -> Facts:
    content = image if isinstance(image, bytes) else make_picture(image)
    opened = Image.open(io.BytesIO(content)).convert("RGB")
    return signatures_of(Pair(key, content, tuple(zh), tuple(en)), DecodedImage(opened, "png", 1, len(content)), source)


def deduplicated(
    folder: Path,
    facts: list[Facts],
    options: DedupOptions | None = None,
    scores: list[Facts] | None = None,
    files: int = 1,
    **more: Any,
) -> tuple[dict[str, Facts], list[Facts]]:
    """The decisions by key, and the captions dropped by themselves."""
    paths = [folder / f"facts{number}.parquet" for number in range(files)]
    for number, path in enumerate(paths):
        pq.write_table(signature_table(facts[number::files]), path)
    score_files = [folder / "scores.parquet"] if scores else []
    for path in score_files:
        pq.write_table(pa.Table.from_pylist(scores), path)
    dedup(paths, score_files, options or DedupOptions(), folder / "dedup", **more)
    rows = pq.read_table(folder / "dedup" / DECISIONS).to_pylist()
    assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)
    return {row["key"]: row for row in rows}, pq.read_table(folder / "dedup" / CAPTIONS).to_pylist()


def reasons(decisions: dict[str, Facts]) -> dict[str, str | None]:
    return {key: row["reason"] for key, row in decisions.items()}


def test_captions_of_the_same_image_are_merged_into_the_first_pair(tmp_path: Path) -> None:
    facts = [fact("2", 1, ["猫", "黑猫"], []), fact("0", 1, [], ["a cat"]), fact("1", 1, ["猫"], ["a cat", "a kitten"])]
    decisions, captions = deduplicated(tmp_path, facts)
    assert reasons(decisions) == {"0": None, "1": "image-merged", "2": "image-merged"}
    assert (decisions["0"]["zh"], decisions["0"]["en"]) == (["猫", "黑猫"], ["a cat", "a kitten"])
    assert (decisions["1"]["zh"], decisions["1"]["en"]) == ([], [])
    assert decisions["1"]["detail"] == "the same image as 0"
    # What the first pair had already, or got from another, is no loss, but is counted: read is kept plus dropped.
    assert [(row["key"], row["language"], row["caption"], row["reason"]) for row in captions] == [
        ("1", "en", "a cat", "caption-repeated"),
        ("2", "zh", "猫", "caption-repeated"),
    ]


@pytest.mark.parametrize(
    ("second", "options", "reason", "detail"),
    [
        (fact("1", 1, ["猫"]), None, "image-duplicate", "the same image as 0"),
        (fact("1", make_picture(1, kind="WEBP", lossless=1), ["猫"]), None, "image-duplicate", "the same pixels as 0"),
        (fact("1", 1, ["猫"]), DedupOptions(duplicates=()), None, None),
    ],
    ids=["no new caption", "another format", "duplicates allowed"],
)
def test_of_equal_images_the_first_is_kept(
    tmp_path: Path, second: Facts, options: DedupOptions | None, reason: str | None, detail: str | None
) -> None:
    decisions, _ = deduplicated(tmp_path, [fact("0", 1, ["猫"]), second, fact("2", 2, ["狗"])], options)
    assert reasons(decisions) == {"0": None, "1": reason, "2": None}
    assert (decisions["1"]["detail"], decisions["0"]["en"]) == (detail, [])


def test_a_placeholder_does_not_gather_the_captions_of_everything(tmp_path: Path) -> None:
    facts = [fact(f"{number:02}", 1, [], [f"thing {number}"]) for number in range(18)]
    decisions, _ = deduplicated(tmp_path, facts, DedupOptions(duplicates=(SameImage(),)))
    assert decisions["00"]["en"] == [f"thing {number}" for number in range(16)]
    assert list(reasons(decisions).values()) == [None, *15 * ["image-merged"], *2 * ["image-duplicate"]]


def test_of_images_that_show_the_same_only_the_first_is_kept(tmp_path: Path) -> None:
    small = make_picture(1, (32, 32))
    compressed = make_picture(1, kind="JPEG", quality=40)
    facts = [fact("1", small, ["猫"]), fact("0", 1, ["猫"]), fact("2", compressed, ["猫"]), fact("3", 2, ["猫"])]
    decisions, _ = deduplicated(tmp_path, facts)
    near = "image-near-duplicate"
    assert reasons(decisions) == {"0": None, "1": near, "2": near, "3": None}
    assert decisions["2"]["detail"] == "shows the same as 0"
    exact = DedupOptions(duplicates=(SameImage(),))
    assert set(reasons(deduplicated(tmp_path, facts, exact)[0]).values()) == {None}


def test_a_pair_needs_its_languages_after_exact_and_before_near_duplicates(tmp_path: Path) -> None:
    facts = [fact("0", 1, ["猫"]), fact("1", 1, [], ["a cat"]), fact("2", 2, ["狗"])]
    decisions, _ = deduplicated(tmp_path, facts, needs=("zh", "en"))
    assert reasons(decisions) == {"0": None, "1": "image-merged", "2": "no-caption"}
    assert decisions["2"]["detail"] == "none is left in en"
    facts = [fact("0", 1, ["猫"]), fact("1", make_picture(1, (32, 32)), ["猫"], ["a cat"])]
    assert reasons(deduplicated(tmp_path, facts, needs=("en",))[0]) == {"0": "no-caption", "1": None}


def test_a_caption_is_dropped_from_pairs_beyond_at_most(tmp_path: Path) -> None:
    facts = [fact("0", 1, ["猫"], [CAT]), fact("1", 2, ["狗"], [CAT]), fact("2", 3, [], [CAT])]
    once, thrice = (DedupOptions(duplicates=(SameCaption(at_most=limit),)) for limit in (1, 3))
    decisions, captions = deduplicated(tmp_path, facts, once)
    assert reasons(decisions) == {"0": None, "1": None, "2": "no-caption"}
    assert (decisions["1"]["zh"], decisions["1"]["en"]) == (["狗"], [])
    same = {"language": "en", "caption": CAT, "reason": "caption-duplicate"}
    assert captions == [
        {"key": "1", **same, "detail": "1 earlier pair has it, the first is 0"},
        {"key": "2", **same, "detail": "2 earlier pairs have it, the first is 0"},
    ]
    assert set(reasons(deduplicated(tmp_path, facts, thrice)[0]).values()) == {None}
    # The captions of a pair itself are no other pair's.
    for at_most in (1, 2):
        facts = [fact(str(n), n, ["一只猫。", "一只猫"], [CAT, f"{CAT}!"]) for n in range(4)]
        decisions, captions = deduplicated(
            tmp_path, facts, DedupOptions(duplicates=(SameCaption(at_most=at_most, similarity=None),))
        )
        assert [len(row["zh"] + row["en"]) for row in decisions.values()] == [4] * at_most + [0] * (4 - at_most)
        assert {row["detail"] for row in captions if row["key"] == "2"} <= {"2 earlier pairs have it, the first is 0"}


@pytest.mark.parametrize(
    ("first", "second", "language", "near"),
    [
        (CAT, CAT.title() + "!", "en", True),
        (CAT, CAT + " here", "en", True),
        ("一只猫睡在旧的红色沙发上，旁边有一本书", "一只猫睡在旧的红色沙发上旁边有一本书。", "zh", True),
        (CAT, CAT.replace("cat", "rat"), "en", False),
        ("一只猫睡在旧的红色沙发上，旁边有一本书", "一只狗睡在旧的红色沙发上，旁边有一本书", "zh", False),
        ("cat", "cats", "en", False),
    ],
)
def test_captions_that_say_the_same_are_near_duplicates_and_others_are_not(
    tmp_path: Path, first: str, second: str, language: Language, near: bool
) -> None:
    captions_of = [([text], []) if language == "zh" else ([], [text]) for text in (first, second)]
    facts = [fact(str(number), number + 1, *both) for number, both in enumerate(captions_of)]
    options = DedupOptions(duplicates=(SameCaption(at_most=1, similarity=0.8 if near else 0.6),))
    _, captions = deduplicated(tmp_path, facts, options)
    assert [(row["key"], row["reason"]) for row in captions] == ([("1", "caption-near-duplicate")] if near else [])


def compared_with(folder: Path, facts: list[Facts], path: Path) -> tuple[list[str | None], Facts]:
    """The details of the pairs' drops, the same for `decontaminate` and `earlier`, and what was counted."""
    details: list[list[str | None]] = []
    for options in (DedupOptions(decontaminate=Decontaminate(paths=(path,))), DedupOptions(earlier=(path,))):
        decisions, _ = deduplicated(folder, facts, options)
        details.append([row["detail"] for row in decisions.values()])
        kind = "earlier" if options.earlier else "evaluation"
        assert set(reasons(decisions).values()) <= {None, f"{kind}-image"}
    assert details[0] == details[1]
    [compared] = json.loads((folder / "dedup" / COMPARED).read_text())
    return details[0], compared


def test_images_of_an_evaluation_set_are_dropped_and_a_missing_set_is_an_error(tmp_path: Path) -> None:
    files = {"1.png": "PNG", "b.bmp": "BMP", "t.TIFF": "TIFF", "g.gif": ""}
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    for name, kind in files.items():
        (tmp_path / "pets/cat" / name).write_bytes(make_picture(name, kind=kind) if kind else b"GIF89a")
    pets = [fact(str(key), image, ["猫"], ["a dog"]) for key, image in enumerate(["1.png", "b.bmp", "t.TIFF", "wolf"])]
    details, compared = compared_with(tmp_path, pets, tmp_path / "pets")
    assert details == [*(f"shows the same as pets/cat/{name}" for name, kind in files.items() if kind), None]
    assert (compared["images"], compared["unreadable"]) == (3, 1)
    assert compared["first_unreadable"].startswith("pets/cat/g.gif (")
    write_parquet(tmp_path / "bad.parquet", [Pair("bad", b"no image")])
    faults = {"no.parquet": "does not exist", "bad.parquet": "none of 1 images is readable: bad.parquet:bad"}
    for name, fault in faults.items():
        with pytest.raises(DcclipError, match=fault):
            compared_with(tmp_path, pets, tmp_path / name)


@pytest.mark.parametrize("shard", ["test.parquet", "data/test-00000.parquet", "test/0.tar", "0.tar"])
@pytest.mark.parametrize("picture", ["logo.png", "assets/figure.jpg"])
def test_a_folder_of_shards_with_a_picture_is_compared_with_both(tmp_path: Path, shard: str, picture: str) -> None:
    place = tmp_path / "set" / shard
    logo = tmp_path / "set" / picture
    for file in (place, logo):
        file.parent.mkdir(parents=True, exist_ok=True)
    logo.write_bytes(make_picture("logo"))
    pairs = [Pair("e1", make_picture(1), zh=("猫",)), Pair("e2", make_picture(2), en=("a dog",))]
    place.write_bytes(tar_of(pairs)) if shard.endswith(".tar") else write_parquet(place, pairs)
    small = make_picture(1, kind="JPEG", quality=60)
    facts = [fact("0", small, ["猫"]), fact("1", 2, [], ["a dog"]), fact("2", "logo", ["标志"]), fact("3", 4, ["狗"])]
    details, compared = compared_with(tmp_path, facts, tmp_path / "set")
    folder = f"set/{shard}".rpartition("/")[0]
    assert details == [
        *(f"shows the same as {name}" for name in (f"{folder}:e1", f"{folder}:e2", f"set/{picture}")),
        None,
    ]
    assert (compared["path"], compared["images"], compared["unreadable"]) == (str(tmp_path / "set"), 3, 0)


def test_a_folder_of_img2dataset_is_compared_with_its_image_files(tmp_path: Path) -> None:
    for name in ("00000/000000000.png", ".thumbs/0.png"):  # next to 00000.parquet, a table of URLs
        (tmp_path / "set" / name).parent.mkdir(parents=True)
        (tmp_path / "set" / name).write_bytes(make_picture(name))
    pq.write_table(pa.table({"url": ["https://example.org/猫.png"]}), tmp_path / "set/00000.parquet")
    facts = [fact("0", "00000/000000000.png", ["猫"]), fact("1", ".thumbs/0.png", ["狗"])]
    details, compared = compared_with(tmp_path, facts, tmp_path / "set")
    assert details == ["shows the same as set/00000/000000000.png", None]
    assert (compared["images"], compared["unreadable"]) == (1, 0)


@pytest.mark.parametrize(("captions", "kept"), [(False, (["黑猫。"], ["black cat", "pet"])), (True, ([], ["pet"]))])
def test_captions_of_an_evaluation_set_are_dropped_only_on_request(
    tmp_path: Path, captions: bool, kept: tuple[list[str], list[str]]
) -> None:
    write_parquet(tmp_path / "test.parquet", [Pair("e7", make_picture(9), zh=("黑猫",), en=("Black cat.",))])
    options = DedupOptions(decontaminate=Decontaminate(paths=(tmp_path / "test.parquet",), captions=captions))
    decisions, dropped = deduplicated(tmp_path, [fact("0", 1, ["黑猫。"], ["black cat", "pet"])], options)
    assert (decisions["0"]["zh"], decisions["0"]["en"]) == kept
    assert {row["reason"] for row in dropped} == ({"evaluation-caption"} if captions else set())


def test_scores_follow_their_captions_through_a_merger(tmp_path: Path) -> None:
    facts = [fact("0", 1, ["猫"], ["a cat"]), fact("1", 1, [], ["a kitten", "a cat"])]
    agreement = [("0", "zh", 0, 0.5), ("0", "en", 0, 0.25), ("1", "en", 0, 0.75), ("1", "en", 1, 0.125)]
    scores = [
        dict(zip(("name", "key", "language", "place", "value"), row, strict=True))
        for row in [*(("agreement", *row) for row in agreement), ("watermark", "0", None, None, 0.01)]
    ]
    decisions, _ = deduplicated(tmp_path, facts, scores=scores)
    assert decisions["0"]["en"] == ["a cat", "a kitten"]
    assert json.loads(decisions["0"]["scores"]) == {"agreement": {"zh": [0.5], "en": [0.25, 0.75]}, "watermark": 0.01}


def test_the_result_does_not_depend_on_files_their_order_memory_or_the_parts_in_which_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = ("", ", photo", ", stock photo", ", a photo")
    zh, en = ([f"{text}{ends[number % 4]}" for number in range(24)] for text in ("一只猫在院子里的旧红沙发上睡觉", CAT))
    facts = [fact(f"{number:03d}", number % 20, [zh[number]], [en[number]]) for number in range(24)]
    options = DedupOptions(duplicates=(SameImage(), SameCaption(at_most=2, similarity=0.6)))
    expected = deduplicated(tmp_path, facts, options)
    assert {row["reason"] for row in expected[1]} >= {"caption-duplicate", "caption-near-duplicate"}
    assert {row["language"] for row in expected[1]} == {"zh", "en"}
    assert deduplicated(tmp_path, facts[::-1], options, files=3, memory_mb=3000) == expected
    files = (path.name for path in (tmp_path / "dedup").iterdir() if path.is_file())
    assert sorted(files) == [CAPTIONS, COMPARED, DECISIONS]
    monkeypatch.setattr("dcclip_cli.curation.dedup.minhash._TEXTS_AT_A_TIME", 3)
    monkeypatch.setattr("dcclip_cli.curation.dedup.dedup._PAIRS_AT_A_TIME", 7)
    monkeypatch.setattr("dcclip_cli.curation.dedup.dedup._GROUP_ROWS", 2)
    assert deduplicated(tmp_path, facts, options) == expected
    file = pq.ParquetFile(tmp_path / "dedup" / DECISIONS)
    assert max(file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)) == 2


def scene(seed: int) -> Image.Image:
    """An image of 256 px with soft and hard shapes, as in a photograph."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 255, (6, 6, 3), np.uint8))
    image = small.resize((256, 256), Image.Resampling.BICUBIC)
    for _ in range(8):
        x, y, width, height = random.integers(0, 256, 4)
        colour = tuple(int(value) for value in random.integers(0, 255, 3))
        ImageDraw.Draw(image).ellipse((x, y, x + width / 3, y + height / 3), fill=colour)
    return image


def clock(hour: int) -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((3, 3, 60, 60), fill="#eeeeee", outline="#444444", width=4)
    angle = 2 * np.pi * hour / 12
    draw.line((32, 32, 32, 12), fill="black", width=3)
    draw.line((32, 32, 32 + 15 * np.sin(angle), 32 - 15 * np.cos(angle)), fill="black", width=4)
    return image


def cropped(image: Image.Image) -> Image.Image:
    return image.crop((6, 6, 250, 250))  # 2.5 % on each side, nearly


def marked(image: Image.Image) -> Image.Image:
    ImageDraw.Draw(image).text((150, 230), "© example.com", fill="red")
    return image


def small(image: Image.Image) -> np.ndarray:
    return thumbnail(DecodedImage(image, "png", 1, 0))


def same(one: Image.Image, other: Image.Image) -> bool:
    return bool(similar(small(one)[None], small(other)[None])[0])


@pytest.mark.parametrize(
    "change",
    [
        lambda image: Image.open(io.BytesIO(encode(image, "JPEG", quality=40))).convert("RGB"),
        lambda image: image.resize((128, 128)),
        cropped,
        marked,
        lambda image: ImageOps.expand(image, 8, "black"),
    ],
    ids=["compressed", "halved", "cropped", "marked", "framed"],
)
def test_a_slightly_altered_image_shows_the_same(change: Callable[[Image.Image], Image.Image]) -> None:
    assert all(same(scene(seed), change(scene(seed))) for seed in range(5))


def disc(number: int) -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    colours = ("#dd2e44", "#5dadec", "#fdcb58", "#78b159", "#aa8ed6", "#c1694f", "#31373d", "#f4900c")
    ImageDraw.Draw(image).ellipse((6, 8, 58, 50), fill=colours[number])
    return image


@pytest.mark.parametrize("draw", [scene, clock, disc])
def test_scenes_clock_faces_and_discs_of_other_colours_do_not_show_the_same(draw: Callable[[int], Image.Image]) -> None:
    assert not any(same(draw(first), draw(second)) for first in range(8) for second in range(first))


def document(corners: int) -> Image.Image:
    """An icon of a document with a white polygon on it."""
    image = Image.new("RGB", (128, 128), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((28, 8, 100, 120), fill="#2f88ff", outline="black", width=8)
    draw.regular_polygon((64, 64, 11), corners, rotation=180, fill="white")
    return image


def test_another_sign_in_the_middle_is_another_image_and_a_logo_in_the_corner_is_not() -> None:
    with_logo = document(3)
    ImageDraw.Draw(with_logo).ellipse((112, 112, 124, 124), fill="#e61e1e")
    assert same(document(3), with_logo)
    assert not any(same(document(3), document(corners)) for corners in (5, 6, 8))
