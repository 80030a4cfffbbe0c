"""Filtering of one candidate."""

from pathlib import Path
from typing import Any

import pytest

from dcclip_cli.curation.options import CollectOptions
from dcclip_cli.curation.slices import FilterResult, filter_pairs
from dcclip_cli.curation.sources.base import Candidate
from dcclip_cli.curation.sources.tables import TableSource
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.reading import Drop
from tests.curation.conftest import MakeImage


def options(**more: Any) -> CollectOptions:
    return CollectOptions(sources=(TableSource(path=Path("x")),), **more)


def filter_pair(candidate: Candidate, options: CollectOptions) -> FilterResult:
    return next(filter_pairs([candidate], options))


def test_a_pair_is_kept_with_the_captions_that_pass(picture: MakeImage) -> None:
    pair = Pair("a", picture(), zh=(" 一只猫！ ", "a cat", "一只猫！"), en=("a cat", "日本の猫"))
    result = filter_pair(Candidate(pair), options())
    assert result.drop is None and result.decoded is not None
    assert (result.pair.zh, result.pair.en) == (("一只猫！",), ("a cat",))
    assert [(language, caption, drop.reason) for language, caption, drop in result.captions] == [
        ("zh", "a cat", "caption-language"),
        ("zh", "一只猫！", "caption-repeated"),
        ("en", "日本の猫", "caption-language"),
    ]


@pytest.mark.parametrize(
    ("zh", "en", "fit"), [(("猫",), (), True), ((), ("cat",), True), ((), (), False), (("cat",), ("猫",), False)]
)
def test_a_pair_has_a_caption_in_one_language_at_least(
    picture: MakeImage, zh: tuple[str, ...], en: tuple[str, ...], fit: bool
) -> None:
    expected = None if fit else Drop("no-caption", "none that is fit")
    assert filter_pair(Candidate(Pair("a", picture(), zh, en)), options()).drop == expected


def test_without_filters_any_readable_pair_is_kept(picture: MakeImage) -> None:
    made = options(filters=())
    result = filter_pair(Candidate(Pair("a", picture(size=(1, 90)), zh=("a cat",), en=("猫",))), made)
    assert (result.drop, result.pair.zh, result.pair.en) == (None, ("a cat",), ("猫",))
    assert filter_pair(Candidate(Pair("a", b"GIF89a", zh=("猫",))), made).drop is not None


def test_what_the_source_could_not_read_and_too_large_metadata_keep_their_reason(picture: MakeImage) -> None:
    drop = Drop("row-malformed", "第 3 行")
    assert filter_pair(Candidate(Pair("a", b"", zh=("猫",)), drop), options()).drop == drop
    large = filter_pair(Candidate(Pair("a", picture(), zh=("猫",), meta={"page": "x" * 1_000_000})), options()).drop
    assert large is not None and large.reason == "record-bytes"
