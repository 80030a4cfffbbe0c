"""What a collection leaves, and how it accounts for the rest."""

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcclip_cli.data.collect import CollectOptions, CollectResult, collect, judge
from dcclip_cli.data.filters import Drop, LanguageFilter
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.sources import Candidate, PairsSource, TsvSource
from dcclip_cli.data.table import open_pairs, write_parquet
from dcclip_cli.errors import DcclipError
from dcclip_cli.progress import Silent
from dcclip_cli.recipe.document import anchored

RECIPE = Path(__file__).parents[2] / "recipes" / "collect-sample.yaml"

Picture = Callable[..., bytes]


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def options(folder: Path, pairs: list[Pair], **more: Any) -> CollectOptions:
    folder.mkdir(exist_ok=True)
    write_parquet(folder / "raw.parquet", pairs)
    return CollectOptions(sources=(PairsSource(path=folder / "raw.parquet"),), **more)


def dropped(out: Path) -> list[tuple[str, str, str | None]]:
    rows = pq.read_table(out / "dropped.parquet").to_pylist()
    return [(row["key"], row["reason"], row["language"]) for row in rows]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_sample_recipe_keeps_and_drops_what_its_header_says(tmp_path: Path) -> None:
    section = yaml.safe_load(RECIPE.read_text("utf-8"))["collect"]
    result = collect(CollectOptions.model_validate(anchored(section, RECIPE.parent)), tmp_path / "out")
    assert (result.pairs.read, result.pairs.kept, result.shards) == (15, 8, 1)
    once = ("small", "unreadable", "duplicate", "aspect", "missing", "outside")
    assert result.pairs.dropped == {"no-caption": 1, **{f"image-{reason}": 1 for reason in once}}
    for language in ("zh", "en"):
        assert result.captions[language].dropped["caption-language"] == 1
    pairs = open_pairs(tmp_path / "out")
    assert pairs.captions("zh") == [
        ("猫脸",), ("狗脸",), ("披萨",), ("汽车",), ("吉他",), ("蝴蝶，张开了翅膀",), ("自行车",), (),
    ]  # fmt: skip
    assert pairs.captions("en")[5:] == [("a butterfly, wings spread",), (), ("turtle",)]
    assert [Path(pairs[index].meta["image"]).suffix for index in range(3)] == [".webp", ".png", ".jpg"]


def test_the_manifest_gives_the_counts_and_each_shards_sha256(tmp_path: Path, picture: Picture) -> None:
    pairs = [
        Pair("a", picture("red"), zh=("猫",), en=("cat", "猫")),
        Pair("b", picture("blue"), zh=("狗",)),
        Pair("c", picture("red"), en=("a cat",)),
    ]
    out = tmp_path / "out"
    collect(options(tmp_path, pairs, shard_size=1), out)
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    assert manifest["pairs"] == {"read": 3, "kept": 2, "dropped": {"image-duplicate": 1}}
    assert manifest["captions"] == {
        "zh": {"read": 2, "kept": 2, "dropped": {}},
        "en": {"read": 3, "kept": 1, "dropped": {"caption-language": 1, "image-duplicate": 1}},
    }
    digests = contents(out)
    assert manifest["shards"] == [
        {"name": name, "pairs": 1, "sha256": digests[name]} for name in ("000000.tar", "000001.tar")
    ]
    assert dropped(out) == [("000000000", "caption-language", "en"), ("000000002", "image-duplicate", None)]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, picture: Picture) -> None:
    pairs = [Pair(str(n), picture((n, 0, 0)), zh=("猫",), en=("cat",)) for n in range(5)]
    pairs.append(Pair("x", b"gif", zh=("坏",)))
    made = options(tmp_path, pairs, shard_size=2)
    collect(made, tmp_path / "one")
    collect(made, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 5


def test_a_finished_output_is_left_alone_unless_fresh(tmp_path: Path, picture: Picture) -> None:
    out = tmp_path / "out"
    made = options(tmp_path, [Pair("a", picture(), zh=("猫",)), Pair("b", picture("blue"), en=("dog",))])
    first = collect(made, out)
    before = contents(out)
    write_parquet(tmp_path / "raw.parquet", [Pair("a", picture(), zh=("猫",))])
    heard = Heard()
    again = collect(made, out, heard)
    assert (first.already_finished, again.already_finished) == (False, True)
    assert (again.pairs, again.captions, contents(out), heard.lines) == (first.pairs, first.captions, before, [])
    assert collect(made, out, fresh=True).pairs.kept == 1
    assert len(open_pairs(out)) == 1


def test_a_finished_output_of_other_options_is_said_to_be_so(tmp_path: Path, picture: Picture) -> None:
    made = options(tmp_path, [Pair("a", picture(), zh=("猫",), en=("cat",))])
    collect(made, tmp_path / "out")
    heard = Heard()
    collect(made.model_copy(update={"needs": ("zh",)}), tmp_path / "out", heard)
    assert heard.lines == [f"{tmp_path / 'out'} was made with other options than the recipe's; --fresh makes it again"]


def test_what_an_interrupted_run_left_is_cleared_away(tmp_path: Path, picture: Picture) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "000007.tar").write_bytes(b"half a shard")
    (tmp_path / "out").mkdir()
    collect(options(tmp_path, [Pair("a", picture(), zh=("猫",))]), tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == ["000000.tar", "dropped.parquet", "manifest.json"]
    assert not (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("foreign", ["photo.jpg", "manifest.json"])
def test_a_folder_that_is_no_output_is_never_touched(
    tmp_path: Path, picture: Picture, foreign: str, fresh: bool
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / foreign).write_text("[]")
    with pytest.raises(DcclipError, match="is no output of collect"):
        collect(options(tmp_path, [Pair("a", picture(), zh=("猫",))]), tmp_path / "out", fresh=fresh)
    assert (tmp_path / "out" / foreign).read_text() == "[]"


def test_keeping_nothing_is_an_error_that_says_why(tmp_path: Path, picture: Picture) -> None:
    pairs = [Pair("a", picture(size=(8, 8)), zh=("猫",)), Pair("b", b"", en=("dog",)), Pair("c", b"", en=("fox",))]
    with pytest.raises(DcclipError, match="none of the 3 pairs was kept: 2 image-format, 1 image-small"):
        collect(options(tmp_path, pairs), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert len(dropped(tmp_path / ".out.partial")) == 3


def test_a_missing_source_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DcclipError, match=r"absent\.tsv is not a file"):
        collect(CollectOptions(sources=(TsvSource(path=tmp_path / "absent.tsv"),)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_pair_remembers_its_source_its_place_there_and_its_licence(tmp_path: Path, picture: Picture) -> None:
    write_parquet(tmp_path / "raw.parquet", [Pair("a", picture(), zh=("猫",), meta={"licence": "MIT"})])
    (tmp_path / "dog.png").write_bytes(picture("blue"))
    (tmp_path / "dogs.tsv").write_text("image\ten\ndog.png\ta dog\n")
    pairs = PairsSource(path=tmp_path / "raw.parquet", name="old", licence="CC0-1.0")
    table = TsvSource(path=tmp_path / "dogs.tsv", licence="CC0-1.0")
    collect(CollectOptions(sources=(pairs, table)), tmp_path / "out")
    cat, dog = open_pairs(tmp_path / "out")
    assert cat.meta == {"source": "old", "origin": "a", "licence": "MIT"}
    assert dog.meta == {"source": "dogs.tsv", "origin": "2", "licence": "CC0-1.0", "image": "dog.png"}


def test_a_pair_stays_with_the_captions_that_are_fit(picture: Picture) -> None:
    pair = Pair("a", picture(), zh=(" 一只猫！ ", "a cat", "", "一只猫！"), en=("a cat", "cafe\u0301"))
    verdict = judge(Candidate(pair), CollectOptions(sources=(PairsSource(path=Path("x")),)))
    assert verdict.drop is None
    assert (verdict.pair.zh, verdict.pair.en) == (("一只猫！",), ("a cat",))
    assert [(language, caption, drop.reason) for language, caption, drop in verdict.captions] == [
        ("zh", "a cat", "caption-language"),
        ("zh", "一只猫！", "caption-repeated"),
        ("en", "cafe\u0301", "caption-language"),
    ]


@pytest.mark.parametrize(
    ("zh", "en", "needs", "missing"),
    [
        (("猫",), (), (), None),
        ((), ("cat",), (), None),
        ((" ",), ("\t",), (), "zh or en"),
        (("猫",), (), ("zh", "en"), "en"),
        (("猫",), ("cat",), ("zh", "en"), None),
        ((), ("cat",), ("zh",), "zh"),
    ],
)
def test_a_pair_needs_a_caption_in_any_or_in_the_languages_asked_for(
    picture: Picture, zh: tuple[str, ...], en: tuple[str, ...], needs: tuple[Any, ...], missing: str | None
) -> None:
    made = CollectOptions(sources=(PairsSource(path=Path("x")),), needs=needs)
    expected = Drop("no-caption", f"none that is fit in {missing}") if missing else None
    assert judge(Candidate(Pair("a", picture(), zh, en)), made).drop == expected


def test_without_filters_any_readable_pair_stays(picture: Picture) -> None:
    made = CollectOptions(sources=(PairsSource(path=Path("x")),), filters=())
    verdict = judge(Candidate(Pair("a", picture(size=(1, 90)), zh=("a cat",), en=("猫",))), made)
    assert (verdict.drop, verdict.pair.zh, verdict.pair.en) == (None, ("a cat",), ("猫",))
    assert judge(Candidate(Pair("a", b"GIF89a", zh=("猫",))), made).drop is not None


def test_metadata_larger_than_a_shard_can_hold_is_a_reason(picture: Picture) -> None:
    made = CollectOptions(sources=(PairsSource(path=Path("x")),))
    verdict = judge(Candidate(Pair("a", picture(), zh=("猫",), meta={"page": "x" * 1_000_000})), made)
    assert verdict.drop is not None
    assert verdict.drop.reason == "record-bytes"


def test_duplicates_stay_if_the_recipe_keeps_them(tmp_path: Path, picture: Picture) -> None:
    pairs = [Pair("a", picture(), zh=("猫",)), Pair("b", picture(), en=("cat",))]
    assert collect(options(tmp_path, pairs, duplicates="keep"), tmp_path / "out").pairs.kept == 2


def test_an_image_dropped_for_its_captions_does_not_make_the_next_a_duplicate(tmp_path: Path, picture: Picture) -> None:
    pairs = [Pair("a", picture(), zh=("cat",)), Pair("b", picture(), zh=("猫",))]
    result = collect(options(tmp_path, pairs), tmp_path / "out")
    assert (result.pairs.kept, result.pairs.dropped) == (1, {"no-caption": 1})


def test_a_hostile_tar_writes_nothing_outside_and_drops_what_is_bad(tmp_path: Path, picture: Picture) -> None:
    source, long_caption = tmp_path / "in" / "raw.tar", "猫" * 300_000
    source.parent.mkdir()
    with tarfile.open(source, "w") as archive:
        for key, image, captions in (
            ("../../escaped", picture("red"), {"zh": "猫"}),
            ("/tmp/absolute", picture("blue"), {"en": "a dog"}),
            ("nul", picture("green"), {"zh": "猫\0", "en": "cat\0"}),
            ("long", picture("black"), {"zh": long_caption}),
            ("cut", picture("white")[:60], {"zh": "猫"}),
        ):
            for name, content in ((f"{key}.png", image), (f"{key}.json", json.dumps(captions).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    result = collect(CollectOptions(sources=(PairsSource(path=source),)), tmp_path / "in" / "out")
    assert (result.pairs.read, result.pairs.kept) == (4, 2)  # a KEY.json over 1 MB is passed over by the tar's reader
    assert result.pairs.dropped == {"no-caption": 1, "image-unreadable": 1}
    assert [(pair.key, pair.zh, pair.en) for pair in open_pairs(tmp_path / "in" / "out")] == [
        ("000000000", ("猫",), ()),
        ("000000001", (), ("a dog",)),
    ]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "000000.tar", "dropped.parquet", "manifest.json", "raw.tar",
    ]  # fmt: skip


def test_a_caption_of_50_mb_in_a_parquet_file_is_dropped(tmp_path: Path, picture: Picture) -> None:
    pairs = [Pair("a", picture(), zh=("猫" * 17_000_000,), en=("a cat",))]  # 3 bytes a character
    result = collect(options(tmp_path, pairs), tmp_path / "out")
    assert (result.pairs.kept, result.captions["zh"].dropped) == (1, {"caption-long": 1})


captions = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(["猫", "cat"]))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), captions, captions), min_size=1, max_size=6))
def test_every_pair_and_caption_read_is_kept_or_dropped_once(
    tmp_path_factory: pytest.TempPathFactory, picture: Picture, raw: list[tuple[int, list[str], list[str]]]
) -> None:
    images = [picture("red"), picture("blue"), picture(size=(4, 4)), b"no image"]
    pairs = [Pair(str(n), images[kind], tuple(zh), tuple(en)) for n, (kind, zh, en) in enumerate(raw)]
    pairs.append(Pair("last", picture("green"), zh=("猫",)))
    folder = tmp_path_factory.mktemp("property")
    made = options(folder, pairs, filters=(LanguageFilter(),))
    result: CollectResult = collect(made, folder / "out")
    assert result.pairs.read == len(pairs)
    for count in (result.pairs, *result.captions.values()):
        assert count.read == count.kept + sum(count.dropped.values())
    assert result.captions["zh"].read == sum(1 for pair in pairs for text in pair.zh if text.strip())
    kept = list(open_pairs(folder / "out"))
    assert (len(kept), sum(len(pair.zh) for pair in kept)) == (result.pairs.kept, result.captions["zh"].kept)
    whole = Counter(reason for _, reason, language in dropped(folder / "out") if language is None)
    assert whole == result.pairs.dropped
