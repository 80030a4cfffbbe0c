"""What becomes of one candidate."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcclip_cli.curation.candidate import Candidate, Drop
from dcclip_cli.curation.judge import judge
from dcclip_cli.curation.options import CollectOptions
from dcclip_cli.curation.sources.pairs import PairsSource
from dcclip_cli.data.pair import Pair

Picture = Callable[..., bytes]


def options(**more: Any) -> CollectOptions:
    return CollectOptions(sources=(PairsSource(path=Path("x")),), **more)


def test_a_pair_stays_with_the_captions_that_are_fit(picture: Picture) -> None:
    pair = Pair("a", picture(), zh=(" 一只猫！ ", "a cat", "", "一只猫！"), en=("a cat", "日本の猫"))
    verdict = judge(Candidate(pair), options())
    assert verdict.drop is None and verdict.picture is not None
    assert (verdict.pair.zh, verdict.pair.en) == (("一只猫！",), ("a cat",))
    assert [(language, caption, drop.reason) for language, caption, drop in verdict.captions] == [
        ("zh", "a cat", "caption-language"),
        ("zh", "一只猫！", "caption-repeated"),
        ("en", "日本の猫", "caption-language"),
    ]


@pytest.mark.parametrize(
    ("zh", "en", "fit"),
    [(("猫",), (), True), ((), ("cat",), True), ((" ",), ("\t",), False), (("cat",), ("猫",), False)],
)
def test_a_pair_has_a_caption_in_one_language_at_least(
    picture: Picture, zh: tuple[str, ...], en: tuple[str, ...], fit: bool
) -> None:
    expected = None if fit else Drop("no-caption", "none that is fit")
    assert judge(Candidate(Pair("a", picture(), zh, en)), options()).drop == expected


def test_without_filters_any_readable_pair_stays(picture: Picture) -> None:
    made = options(filters=())
    verdict = judge(Candidate(Pair("a", picture(size=(1, 90)), zh=("a cat",), en=("猫",))), made)
    assert (verdict.drop, verdict.pair.zh, verdict.pair.en) == (None, ("a cat",), ("猫",))
    assert judge(Candidate(Pair("a", b"GIF89a", zh=("猫",))), made).drop is not None


def test_what_the_source_could_not_read_keeps_its_reason() -> None:
    drop = Drop("row-malformed", "第 3 行")
    assert judge(Candidate(Pair("a", b"", zh=("猫",)), drop), options()).drop == drop


def test_metadata_larger_than_a_shard_can_hold_is_a_reason(picture: Picture) -> None:
    verdict = judge(Candidate(Pair("a", picture(), zh=("猫",), meta={"page": "x" * 1_000_000})), options())
    assert verdict.drop is not None
    assert verdict.drop.reason == "record-bytes"
