"""Build the quick start's five Parquet files of emoji images with Chinese and English names.

    python recipes/quickstart/build.py EMOJI_DIR

EMOJI_DIR holds one WebDataset tar per drawing style (`noto.tar`, `twemoji.tar`, ...):
`STYLE_CODEPOINTS.webp` and `.json {en, zh, en_kw, zh_kw, category, sub, variant}`. The same input
gives the same bytes. Origins: SOURCES.md.
"""

import argparse
import hashlib
import json
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TRAINING_STYLES = ("noto", "noto-v1", "fluent-3d", "fluent-flat", "fxemoji")
TEST_STYLES = ("twemoji", "emojione2")
LICENCES = dict.fromkeys(("noto", "noto-v1", "fxemoji"), "Apache-2.0")
LICENCES |= dict.fromkeys(("fluent-3d", "fluent-flat"), "MIT") | dict.fromkeys(
    TEST_STYLES, "CC-BY-4.0"
)
SWAPPED = (
    20,
    50,
)  # per cent of the training pictures whose Chinese is another's, in columns of their own
MAX_BYTES = 10_000_000  # all five files together
LANGUAGES = ("zh", "en")
CAPTIONS = pa.list_(pa.string())
SCHEMA = pa.schema(
    {"key": pa.string(), "image": pa.binary(), "zh": CAPTIONS, "en": CAPTIONS, "meta": pa.string()}
)


@dataclass(frozen=True)
class Emoji:
    """One drawing of one code point, with its CLDR names and keywords per language."""

    style: str
    code: str
    image: bytes
    names: dict[str, str]
    keywords: dict[str, list[str]]
    category: str
    sub: str

    @property
    def key(self) -> str:
        return f"{self.style}_{self.code}"


def read_style(path: Path) -> list[Emoji]:
    """The plain emoji of one style (no skin tones, gender variants, flags), in code point order."""
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
    emoji = []
    for stem in sorted(name.removesuffix(".json") for name in members if name.endswith(".json")):
        facts = json.loads(members[f"{stem}.json"])
        if facts["variant"]:
            continue
        emoji.append(
            Emoji(
                style=path.stem,
                code=stem.removeprefix(f"{path.stem}_"),
                image=members[f"{stem}.webp"],
                names={language: facts[language].strip() for language in LANGUAGES},
                keywords={
                    language: [word.strip() for word in facts[f"{language}_kw"]]
                    for language in LANGUAGES
                },
                category=facts["category"],
                sub=facts["sub"],
            )
        )
    return emoji


def bucket(text: str, buckets: int) -> int:
    """A fixed pseudo-random number in [0, buckets) that depends on `text` alone."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % buckets


def unseen_codes(emoji: list[Emoji]) -> set[str]:
    """The code points of the unseen classes: a fifth of the classes, by hash.

    Code points linked by shared names, in either language, fall on one side together: their lowest
    one is hashed.
    """
    group = {item.code: item.code for item in emoji}
    changed = True
    while changed:
        changed = False
        lowest: dict[tuple[str, str], str] = {}
        for item in emoji:
            for language, name in item.names.items():
                label = (language, name.casefold())
                lowest[label] = min(lowest.get(label, group[item.code]), group[item.code])
        for item in emoji:
            found = min(lowest[language, name.casefold()] for language, name in item.names.items())
            changed |= found != group[item.code]
            group[item.code] = found
    return {code for code, first in group.items() if bucket(first, 5) == 0}


def training_captions(item: Emoji, language: str, forbidden: set[str]) -> list[str]:
    """The name first, then its keywords, then keywords two by two; nothing that is an unseen
    class's name.
    """
    keywords = item.keywords[language]
    comma = ", " if language == "en" else "，"
    pairs = zip(keywords[::2], keywords[1::2], strict=False)
    captions = [item.names[language], *keywords, *map(comma.join, pairs)]
    return list(
        dict.fromkeys(caption for caption in captions if caption.casefold() not in forbidden)
    )


def write(path: Path, rows: list[tuple[Emoji, dict[str, list[str]]]]) -> int:
    """Writes pairs as Parquet, image bytes as they came, and returns the file's size in bytes."""
    records = []
    for item, captions in rows:
        meta = {
            "style": item.style,
            "category": item.category,
            "sub": item.sub,
            "licence": LICENCES[item.style],
        }
        records.append({"key": item.key, "image": item.image, **captions, "meta": json.dumps(meta)})
    columns = [pa.field(name, CAPTIONS) for name in rows[0][1] if name not in SCHEMA.names]
    table = pa.Table.from_pylist(records, schema=pa.schema([*SCHEMA, *columns]))
    # zstd takes 7 % off the images too.
    pq.write_table(table, path, compression="zstd", compression_level=19, write_statistics=False)
    styles = ", ".join(
        f"{style} {n}" for style, n in Counter(item.style for item, _ in rows).items()
    )
    print(f"{path.name}: {len(rows)} pictures ({styles}), {path.stat().st_size:,} bytes")
    return path.stat().st_size


def with_swapped(
    rows: list[tuple[Emoji, dict[str, list[str]]]],
) -> list[tuple[Emoji, dict[str, list[str]]]]:
    """The rows with the columns `zh_swapped_N`: N % of the pictures have the Chinese of another of
    these pictures.
    """
    columns = {}
    for percent in SWAPPED:
        chinese = [captions["zh"] for _, captions in rows]
        chosen = [
            number
            for number, (item, _) in enumerate(rows)
            if bucket(f"{item.key} swapped", 100) < percent
        ]
        chosen.sort(key=lambda number: bucket(rows[number][0].key, 2**32))
        for number, other in zip(chosen, chosen[1:] + chosen[:1], strict=True):
            chinese[number] = rows[other][1]["zh"]
        columns[f"zh_swapped_{percent}"] = chinese
    return [
        (item, captions | {name: chinese[number] for name, chinese in columns.items()})
        for number, (item, captions) in enumerate(rows)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "emoji_dir", type=Path, metavar="EMOJI_DIR", help="folder of STYLE.tar files"
    )
    folder: Path = parser.parse_args().emoji_dir
    styles = {
        style: read_style(folder / f"{style}.tar") for style in (*TRAINING_STYLES, *TEST_STYLES)
    }
    everything = [item for style in styles.values() for item in style]
    unseen = unseen_codes(everything)
    forbidden = {
        name.casefold()
        for item in everything
        if item.code in unseen
        for name in item.names.values()
    }

    def training(validation: bool) -> list[tuple[Emoji, dict[str, list[str]]]]:
        """The seen classes of the training styles: a sixteenth of the pictures for validation, or
        all others.
        """
        items = [
            item for style in TRAINING_STYLES for item in styles[style] if item.code not in unseen
        ]
        items = [item for item in items if (bucket(item.key, 16) == 0) == validation]
        return [
            (item, {lang: training_captions(item, lang, forbidden) for lang in LANGUAGES})
            for item in items
        ]

    def test(style: str, of_unseen: bool) -> list[tuple[Emoji, dict[str, list[str]]]]:
        """One style's seen or unseen classes; the only caption is the class name."""
        items = [item for item in styles[style] if (item.code in unseen) == of_unseen]
        return [(item, {lang: [item.names[lang]] for lang in LANGUAGES}) for item in items]

    here = Path(__file__).resolve().parent
    size = write(here / "train.parquet", with_swapped(training(validation=False)))
    size += write(here / "validation.parquet", training(validation=True))
    for style in TEST_STYLES:
        size += write(here / f"{style}.parquet", test(style, of_unseen=False))
    size += write(here / "unseen.parquet", test("twemoji", of_unseen=True))
    print(f"together {size:,} bytes, at most {MAX_BYTES:,}")
    if size >= MAX_BYTES:
        raise SystemExit("error: too large\nhint:  take a style out of TRAINING_STYLES")


if __name__ == "__main__":
    main()
