"""Decisions on a few pairs by the filters over all pairs: duplicates, evaluation sets, needed languages."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dcclip_cli.curation.dedup.dedup import (
    CAPTIONS,
    DECISIONS,
    Decontaminate,
    DedupOptions,
    dedup,
    signature_table,
    signatures_of,
)
from dcclip_cli.curation.dedup.minhash import SameCaption
from dcclip_cli.curation.dedup.near_duplicates import SameImage
from dcclip_cli.curation.filters.image import DecodedImage
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Language, Pair
from dcclip_cli.errors import DcclipError
from tests.curation.conftest import make_picture

Facts = dict[str, Any]
CAT = "a cat that sleeps on the old red sofa"


def fact(key: str, image: int | bytes, zh: Sequence[str] = (), en: Sequence[str] = (), source: str = "web") -> Facts:
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
    given = [folder / "scores.parquet"] if scores else []
    for path in given:
        pq.write_table(pa.Table.from_pylist(scores), path)
    dedup(paths, given, options or DedupOptions(), folder / "dedup", **more)
    rows = pq.read_table(folder / "dedup" / DECISIONS).to_pylist()
    assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)
    return {row["key"]: row for row in rows}, pq.read_table(folder / "dedup" / CAPTIONS).to_pylist()


def reasons(decisions: dict[str, Facts]) -> dict[str, str | None]:
    return {key: row["reason"] for key, row in decisions.items()}


def test_pairs_that_have_nothing_in_common_stay_as_they_are(tmp_path: Path) -> None:
    facts = [fact("0", 1, ["一只猫"], ["a cat"]), fact("1", 2, [], ["a dog", "a pup"])]
    kept = {"reason": None, "detail": None, "scores": None}
    first = {"key": "0", "zh": ["一只猫"], "en": ["a cat"], **kept}
    second = {"key": "1", "zh": [], "en": ["a dog", "a pup"], **kept}
    assert deduplicated(tmp_path, facts) == ({"0": first, "1": second}, [])
    assert deduplicated(tmp_path, []) == ({}, [])


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
    facts = [fact(str(number), 1, [], [f"thing {number}"]) for number in range(5)]
    decisions, _ = deduplicated(tmp_path, facts, DedupOptions(duplicates=(SameImage(most_captions=3),)))
    assert decisions["0"]["en"] == ["thing 0", "thing 1", "thing 2"]
    assert list(reasons(decisions).values()) == [None, "image-merged", "image-merged", *2 * ["image-duplicate"]]


def test_of_images_that_show_the_same_only_the_first_is_kept(tmp_path: Path) -> None:
    small, compressed = make_picture(1, (32, 32)), make_picture(1, kind="JPEG", quality=40)
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
    once, thrice = (DedupOptions(duplicates=(SameCaption(at_most=most),)) for most in (1, 3))
    decisions, captions = deduplicated(tmp_path, facts, once)
    assert reasons(decisions) == {"0": None, "1": None, "2": "no-caption"}
    assert (decisions["1"]["zh"], decisions["1"]["en"]) == (["狗"], [])
    same = {"language": "en", "caption": CAT, "reason": "caption-duplicate"}
    assert captions == [
        {"key": "1", **same, "detail": "1 earlier pair has it, the first is 0"},
        {"key": "2", **same, "detail": "2 earlier pairs have it, the first is 0"},
    ]
    assert set(reasons(deduplicated(tmp_path, facts, thrice)[0]).values()) == {None}


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


def test_images_of_an_evaluation_set_are_dropped_and_a_missing_set_is_an_error(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test.parquet", [Pair("e7", make_picture(1), en=("a cat",)), Pair("bad", b"no image")])
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    (tmp_path / "pets" / "cat" / "1.png").write_bytes(make_picture(1))
    facts = [fact("0", make_picture(1, kind="JPEG", quality=60), ["猫"]), fact("1", 2, ["狗"])]
    for name, image in (("test.parquet", "test.parquet:e7"), ("pets", "pets/cat/1.png")):
        options = DedupOptions(decontaminate=Decontaminate(paths=(tmp_path / name,)))
        decisions, _ = deduplicated(tmp_path, facts, options)
        assert reasons(decisions) == {"0": "evaluation-image", "1": None}
        assert decisions["0"]["detail"] == f"shows the same as {image}"
    with pytest.raises(DcclipError, match="does not exist"):
        deduplicated(tmp_path, facts, DedupOptions(decontaminate=Decontaminate(paths=(tmp_path / "no.parquet",))))


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


def test_the_result_does_not_depend_on_files_their_order_or_memory(tmp_path: Path) -> None:
    facts = [
        fact(f"{number:03d}", number // 2, ["猫" * (number % 5 + 1)], [f"cat number {number % 7}"], f"s{number % 3}")
        for number in range(60)
    ]
    outputs = []
    for files, rows in ((1, facts), (3, facts[::-1])):
        folder = tmp_path / str(files)
        folder.mkdir()
        deduplicated(folder, rows, files=files, memory_mb=1000 * files)
        outputs.append([(folder / "dedup" / name).read_bytes() for name in (DECISIONS, CAPTIONS)])
        assert sorted(path.name for path in (folder / "dedup").iterdir() if path.is_file()) == [CAPTIONS, DECISIONS]
    assert outputs[0] == outputs[1]


def test_the_result_does_not_depend_on_the_parts_in_which_it_is_found(tmp_path: Path, monkeypatch: Any) -> None:
    ends = ("", ", photo", ", stock photo", ", a photo")
    zh, en = ([f"{text}{ends[number % 4]}" for number in range(20)] for text in ("一只猫在院子里的旧红沙发上睡觉", CAT))
    facts = [fact(f"{number:03d}", number, [zh[number]], [en[number]]) for number in range(20)]
    options = DedupOptions(duplicates=(SameCaption(at_most=2, similarity=0.6),))
    whole = deduplicated(tmp_path, facts, options)
    assert {row["reason"] for row in whole[1]} == {"caption-duplicate", "caption-near-duplicate"}
    assert {row["language"] for row in whole[1]} == {"zh", "en"}
    monkeypatch.setattr("dcclip_cli.curation.dedup.minhash._TEXTS_AT_A_TIME", 3)
    monkeypatch.setattr("dcclip_cli.curation.dedup.dedup._PAIRS_AT_A_TIME", 7)
    monkeypatch.setattr("dcclip_cli.curation.dedup.dedup._GROUP_ROWS", 2)
    assert deduplicated(tmp_path, facts, options) == whole
    file = pq.ParquetFile(tmp_path / "dedup" / DECISIONS)
    groups = [file.read_row_group(number)["key"].to_pylist() for number in range(file.num_row_groups)]
    assert max(map(len, groups)) == 2 and list(chain(*groups)) == sorted(row["key"] for row in facts)
