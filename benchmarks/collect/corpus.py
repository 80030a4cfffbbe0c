"""The planted corpus: clean and faulty pairs, spread over every kind of source."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random

import layouts
import yaml
from faults import AGAIN, PICTURES, save
from layouts import Item, Layout
from pictures import Pool, Real
from words import CAPTIONS, LONG, dressed, spoken

from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import LANGUAGES, Pair
from dcclip_cli.model.preprocess import decode

# Faults of a source's row: the one kind of source that has it, and the right reasons.
ROWS: dict[str, tuple[Layout, set[str]]] = {
    "missing": (layouts.comma, {"image-missing"}),
    "outside": (layouts.lines, {"image-outside"}),
    "malformed": (layouts.tsv, {"row-malformed"}),
    "unreadable JSON": (layouts.folder, {"captions-unreadable"}),
    "broken base64": (layouts.chinese_clip, {"image-base64"}),
}
SAME, NEAR, EXCLUDED = "a caption of 100 pictures", "nearly such a caption", "in an evaluation set"
UNCOUNTED = "no fault, not counted"
SHARED = 140  # the default lets 100 pictures share a caption; some of these are dropped for looking alike
RIGHT = {fault: reasons for table in (PICTURES, ROWS, AGAIN) for fault, (_, reasons) in table.items()}
RIGHT |= {fault: reasons for fault, (_, _, reasons) in CAPTIONS.items()}
RIGHT |= {SAME: {"caption-duplicate"}, NEAR: {"caption-near-duplicate"}, EXCLUDED: {"evaluation-image"}}


class Planter:
    """Makes `each` items of every fault out of real pairs; `drawn` are large drawings.

    Items that may be kept despite their fault come `later`, so that no clean pair follows one with its caption; items
    that repeat something (`again`) come last, since the first of equal pairs is kept.
    """

    def __init__(self, real: Pool, drawn: Sequence[Real], each: int, random: Random) -> None:
        self._real, self._each, self._random = real, each, random
        drawn = random.sample(drawn, 100 + each)
        self._drawn, self.evaluation = drawn[:100], drawn[100:]
        self._spare = iter(random.sample(real.spare, len(real.spare)))
        self._numbers = count()
        self._clean = list(self._clean_items())
        self._captions = [(item.zh, item.en) for item in self._clean if len(item.captions) == len(LANGUAGES)]
        spoilt = list(self._spoilt_captions())
        alone = [item for item in spoilt if len(item.captions) == 1]
        self.first = [*self._clean, *self._spoilt_pictures(), *self._spoilt_rows(), *alone]
        random.shuffle(self.first)
        originals = [self._item(picture, UNCOUNTED) for picture in self._drawn]
        long = [item for item in self._clean if len(item.captions) == 2 and all(map(_is_long, item.captions.items()))]
        self._shared = dict(zip((SAME, NEAR), random.sample(long, 2), strict=True))
        sharing = [
            replace(self._item(next(self._spare), UNCOUNTED), **model.captions)
            for model in self._shared.values()
            for _ in range(SHARED)
        ]
        self.later = [*originals, *sharing, *(item for item in spoilt if len(item.captions) > 1)]
        self.again = [*self._pictures_again(), *self._texts_again()]

    def _item(self, picture: Real, fault: str) -> Item:
        zh, en = self._random.choice(self._captions)
        return Item(f"{fault.replace(' ', '-')}-{next(self._numbers):05d}", picture.image, zh, en, fault)

    def _clean_items(self) -> Iterator[Item]:
        """Three in five with both languages, the others with one."""
        for one in self._real.clean:
            zh, en = (side[0] if side else None for side in (one.zh, one.en))
            left_out = self._random.choice(("zh", "en", None, None, None)) if zh and en else None
            item = Item(f"clean-{next(self._numbers):05d}", one.image, zh, en)
            yield replace(item, **{left_out: None}) if left_out else item

    def _spoilt_pictures(self) -> Iterator[Item]:
        for fault, (spoil, _) in PICTURES.items():
            for _ in range(self._each):
                item = self._item(next(self._spare), fault)
                yield replace(item, image=spoil(self._random, decode(item.image)))
        for picture in self.evaluation:
            yield self._item(Real(save(decode(picture.image), "JPEG", quality=85)), EXCLUDED)

    def _spoilt_rows(self) -> Iterator[Item]:
        return (replace(self._item(next(self._spare), row), row=row) for row in ROWS for _ in range(self._each))

    def _spoilt_captions(self) -> Iterator[Item]:
        """Half of them next to a good caption in the other language, which keeps the pair."""
        for fault, (*makes, reasons) in CAPTIONS.items():
            for number in range(self._each):
                language, make = self._random.choice([one for one in zip(LANGUAGES, makes, strict=True) if one[1]])
                item = self._item(next(self._spare), fault)
                spoilt = {language: make(self._random, item.captions[language])}
                alone = number % 2 or "no-caption" in reasons
                yield replace(item, **(dict.fromkeys(LANGUAGES) if alone else {}) | spoilt)

    def _pictures_again(self) -> Iterator[Item]:
        """With captions that no clean pair has, since the first pair receives them if the pixels are the same."""
        large = [*(one for one in self._real.clean if one.photo), *self._drawn]
        for fault, (spoil, _) in AGAIN.items():
            for picture in self._random.sample(large, self._each):
                said = {language: spoken(language)(self._random, "") for language in LANGUAGES}
                item = replace(self._item(picture, fault), **said)
                yield replace(item, image=spoil(self._random, decode(item.image)))

    def _texts_again(self) -> Iterator[Item]:
        """Other images with captions that too many images already have."""
        for fault, model in self._shared.items():
            for _ in range(self._each):
                said = dict(model.captions)
                if fault == NEAR:
                    said = {language: dressed(self._random, text) for language, text in said.items()}
                yield replace(self._item(next(self._spare), fault), **said)


def _is_long(caption: tuple[str, str]) -> bool:
    language, text = caption
    return len(text) >= LONG[language]


def write(planter: Planter, root: Path, random: Random) -> dict[tuple[str, str], Item]:
    """Write the sources and `planted.yaml`; returns the item of each source and key."""
    known, sources = {}, []
    for part, items in (("first", planter.first), ("later", planter.later), ("again", planter.again)):
        for layout, share in _spread(items, random).items():
            name = f"{part}-{layout.__name__}"
            (root / name).mkdir(parents=True)
            written = layout(root / name, share)
            sources.append(written.entry | {"name": name})
            known |= {(name, key): item for key, item in zip(written.keys, share, strict=True)}
    evaluation = [Pair(str(number), picture.image) for number, picture in enumerate(planter.evaluation)]
    write_parquet(root / "evaluation.parquet", evaluation)
    collect = {"sources": sources, "decontaminate": {"paths": [f"{root}/evaluation.parquet"]}}
    (root / "planted.yaml").write_text(yaml.safe_dump({"name": "planted", "collect": collect}), "utf-8")
    return known


def _spread(items: Sequence[Item], random: Random) -> dict[Layout, list[Item]]:
    """Assign every item to a random kind of source that can represent it."""
    placed: dict[Layout, list[Item]] = defaultdict(list)
    for item in items:
        fitting = list(layouts.LAYOUTS)
        if item.row:
            fitting = [ROWS[item.row][0]]
        elif len(item.captions) > 1 or item.fault == "the other language":
            fitting = [layout for layout in fitting if layout not in layouts.ONE_CAPTION]
        if item.zh is None or item.en is not None or item.fault:
            fitting = [layout for layout in fitting if layout is not layouts.coco_cn]
        placed[random.choice(fitting)].append(item)
    return placed
