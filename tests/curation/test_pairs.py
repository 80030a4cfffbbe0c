"""Each pair of collect's options: all that is read is kept or accounted for, and equal collections are equal."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from allpairspy import AllPairs

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.run_dir import RunDir
from dcclip_cli.curation.collect import collect
from dcclip_cli.curation.executors import Engine
from dcclip_cli.data.dataset import open_pairs, write_parquet
from dcclip_cli.data.pair import LANGUAGES, Pair
from dcclip_cli.recipe.load import load
from dcclip_cli.recipe.preflight import check
from tests.covering import Row, all_pairs, pairs_of
from tests.curation.conftest import make_picture
from tests.curation.test_collect import contents
from tests.tars import tar_of

TABLES: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("pairs.yaml").read_text("utf-8"))
OPTIONS = TABLES["options"]
DIRTY = TABLES["dirty"]
DIRTY["long"][:2] = DIRTY["long"][0] * 50, DIRTY["long"][1] * 50
OTHER_LANGUAGE = {"zh": "en", "en": "zh"}
ROWS: list[Row] = [dict(zip(OPTIONS, row, strict=True)) for row in AllPairs([[*labels] for labels in OPTIONS.values()])]
NOUNS = {"猫": "cat", "狗": "dog", "馬": "horse", "鱼": "fish", "牛": "cow", "羊": "sheep", "鸟": "bird"}
PLACES = {"桌上": "on the table", "海边": "at the sea", "雪地里": "in the snow"}
CLEAN = [(f"{place}有一只{noun}", f"a {NOUNS[noun]} {PLACES[place]}") for place in PLACES for noun in NOUNS]
NAMES = [name for number in range(len(CLEAN)) for name in (str(number), *[*DIRTY][number : number + 1])]
IMAGES = {name: make_picture(name, (96, 96)) for name in NAMES} | {
    "cut": make_picture()[:300],
    "text": b"not an image",
    "small": make_picture("small", (8, 8)),
    "narrow": make_picture("narrow", (240, 40)),
    "copy": make_picture(0, (96, 96)),
    "merged": make_picture(1, (96, 96), "WEBP", lossless=True),
    "near": make_picture(2, (96, 96), "JPEG", quality=60),
    "written": make_picture("spoken", (96, 96)),
}


def write_source(kind: str, texts: str, path: Path) -> None:
    """All pairs as a source of this kind; in `mixed`, clean ones have one language, in turn."""
    pairs = list[Pair]()
    table = list[Row]()
    for number, name in enumerate(NAMES):
        captions = zip(LANGUAGES, DIRTY[name] if name in DIRTY else CLEAN[int(name)], strict=False)
        omitted = OTHER_LANGUAGE.get(texts) or (texts == "mixed" and name not in DIRTY and LANGUAGES[int(name) % 2])
        row: Row = {language: "" if language == omitted else caption for language, caption in captions}
        zh, en = ((caption,) if caption else () for caption in row.values())
        pairs.append(Pair(f"{number:03}", IMAGES[name], zh, en))
        table.append({"image": f"{number:03}.png", **row})
        if kind in ("jsonl", "tsv", "csv"):
            (path.parent / f"{number:03}.png").write_bytes(IMAGES[name])
    if kind == "parquet":
        write_parquet(path, pairs)
    elif kind == "tar":
        path.write_bytes(tar_of(pairs))
    elif kind == "jsonl":  # without the keys of absent captions
        path.write_text("\n".join(json.dumps({key: cell for key, cell in row.items() if cell}) for row in table))
    elif kind in ("tsv", "csv"):
        lines = [[*table[0]], *(row.values() for row in table)]
        path.write_text("\n".join({"tsv": "\t", "csv": ","}[kind].join(cells) for cells in lines), "utf-8")
    else:
        for pair, row in zip(pairs, table, strict=True):
            file = path / pair.key[:2] / f"{pair.key}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(pair.image)
            file.with_suffix(".json").write_text(json.dumps({key: row[key] for key in LANGUAGES}))
        languages = [texts] if texts in LANGUAGES else LANGUAGES
        classes = [{"zh": "伊尔-76", "en": "Il-76"}, *({"zh": zh, "en": en} for zh, en in NOUNS.items())]
        names = {f"0{at}": {key: name[key] for key in languages} for at, name in enumerate(classes)}
        (path / "classes.yaml").write_text(json.dumps(names))


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The sources, evaluation sets and earlier collections that rows name, in the current folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("collect"))
        for name in ("photos", "shards/data", "empty"):
            Path(name).mkdir(parents=True)
        for kind, texts in product(OPTIONS["source"], OPTIONS["texts"]):
            write_source(kind, texts, Path(f"{texts}.{kind}"))
        evaluated, earlier = (Pair(name, IMAGES[name], zh=(DIRTY[name][0],)) for name in ("evaluated", "earlier"))
        Path("photos/1.png").write_bytes(evaluated.image)
        Path("shards/logo.png").write_bytes(make_picture("logo"))
        write_parquet(Path("shards/data/test.parquet"), [evaluated])
        write_parquet(Path("earlier.parquet"), [earlier])
        Path("earlier.tar").write_bytes(tar_of([earlier]))
        Path("parallel.tsv").write_text("left\tright\n猫\tcat\n", "utf-8")
        yield


def section(row: Row) -> dict[str, Any]:
    """The section `collect` that a row describes."""
    kind = {"folder": "folder", "class_folders": "class_folders", "tar": "tars"}.get(row["source"], "table")
    section: dict[str, Any] = {"sources": [{"kind": kind, "path": f"{row['texts']}.{row['source']}"}]}
    for option, label in row.items():
        for key, value in OPTIONS[option][label].items():
            section[key] = section.get(key, {}) | value if isinstance(value, dict) else value
    return section


def run(section: dict[str, Any], out: Path, limit: int = 0, workers: int = 1) -> Path:
    """The output of a section that `--check` says is ready."""
    loaded = load({"name": "pairs", "collect": section})
    check(loaded, RunDir(out.with_name("run")), ["collect"])
    assert loaded.recipe.collect is not None
    return collect(loaded.recipe.collect, out, limit=limit or None, engine=Engine(workers=workers)).folder


def samples(out: Path) -> list[tuple[bytes, tuple[str, ...], tuple[str, ...]]]:
    return [(pair.image, pair.zh, pair.en) for pair in open_pairs(out)]


def rows(quick: int) -> Any:
    """Parameters: all rows, slow after the first `quick`."""
    slow = [pytest.mark.slow]
    cases = [pytest.param(row, id="-".join(row.values()), marks=slow * (at >= quick)) for at, row in enumerate(ROWS)]
    return pytest.mark.parametrize("row", cases)


@rows(quick=12)
def test_each_pair_is_kept_or_dropped_for_its_reason_and_kept_when_collected_again(row: Row, tmp_path: Path) -> None:
    # a tar is one slice
    limit = int(row["limit"])
    size = 1000 if row["source"] == "tar" else int(row["shard_size"])
    out = run(section(row), tmp_path / "out", limit)
    manifest = json.loads((out / "manifest.json").read_text())
    table = pq.read_table(out / "dropped.parquet")
    names = {f"{at // size:06}{at % size:06}": name for at, name in enumerate(NAMES[: limit or None])}
    kept_names = [names[pair.key] for pair in open_pairs(out)]
    dropped = {names[line["key"]]: line["reason"] for line in table.to_pylist() if line["language"] is None}
    assert Counter([*kept_names, *dropped]) == Counter(names.values())
    assert manifest["pairs"] == {"read": len(names), "kept": len(kept_names), "dropped": Counter(dropped.values())}
    for language, count in manifest["captions"].items():
        captions = sum(len(pair.captions(language)) for pair in open_pairs(out))
        assert count["read"] - sum(count["dropped"].values()) == count["kept"] == captions
    for name in names.values() if row["scores"] == "none" and row["filters"] != "strict" else ():
        fates = DIRTY[name][2:] if name in DIRTY else []
        fate = next((fate for fate, when in fates if all(row[key] in when[key].split() for key in when)), None)
        assert dropped.get(name) in (fate, fate and fate.replace("merged", "duplicate")), name
    source = {"tar": {"kind": "tars", "path": f"{out}"}, "parquet": {"kind": "table", "path": f"{out}/0*.parquet"}}
    again = run(section(row | {"scores": "none"}) | {"sources": [source[row["shards"]]]}, tmp_path / "again")
    assert pq.read_table(again / "dropped.parquet").num_rows == 0
    assert samples(again) == samples(out)


@rows(quick=1)
def test_neither_workers_nor_kinds_of_source_and_shards_change_pairs(row: Row, tmp_path: Path) -> None:
    row = row | {"shard_size": "7"}
    limit = int(row["limit"])
    kinds = [*OPTIONS["source"]]
    alone, together = (run(section(row), tmp_path / str(workers), limit, workers) for workers in (1, 2))
    assert contents(alone) == contents(together)
    other_format = {"shard_size": "1000", "shards": {"tar": "parquet", "parquet": "tar"}[row["shards"]]}
    if row["source"] != "class_folders":
        other_format["source"] = kinds[(kinds.index(row["source"]) + 1) % (len(kinds) - 1)]
    assert samples(run(section(row | other_format), tmp_path / "other", limit)) == samples(alone)


@pytest.mark.parametrize("name", TABLES["broken"])
def test_what_a_run_refuses_the_check_refuses(name: str, tmp_path: Path) -> None:
    loaded = load({"name": "pairs", "collect": section(ROWS[0]) | TABLES["broken"][name]})
    assert loaded.recipe.collect is not None
    with pytest.raises(DcclipError):
        check(loaded, RunDir(tmp_path / "run"), ["collect"])
    with pytest.raises(DcclipError):
        collect(loaded.recipe.collect, tmp_path / "out", engine=Engine(workers=1))


def test_rows_cover_all_pairs_of_values() -> None:
    assert all_pairs(OPTIONS) == set().union(*map(pairs_of, ROWS))
