"""Class names that a model's tokenizer cannot tell apart, and the alternates that replace them.

Chinese BERT's vocabulary lacks characters of names such as 蝾螈, 猞猁 and 犰狳: each is read as two unknown tokens, and
the three classes of ImageNet are one class to a model with that vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dcclip_cli.predict.encoder import Encoder
from dcclip_cli.predict.zero_shot import fill
from dcclip_cli.text import check_unicode

_NOBODYS = "\u4dbf"  # a rare Chinese character, in hardly any vocabulary


@dataclass(frozen=True)
class ClassTexts:
    """The names that a model is asked with, in label order.

    `replaced` maps a name to the alternate in its place. `alike` are the groups of classes, by number, whose texts are
    still the same tokens.
    """

    names: tuple[str, ...]
    replaced: dict[str, str]
    alike: tuple[tuple[int, ...], ...]


def class_texts(
    model: Encoder, names: Sequence[str], alternates: Mapping[str, Sequence[str]], templates: Sequence[str]
) -> ClassTexts:
    """The names, where several are the same tokens by alternates that no other class is the same as.

    Classes that have the same name in the list itself are left as they are.
    """
    first = fill(templates[:1], "{}")[0]
    groups = _groups(_tokens(model, [first.replace("{}", name) for name in names]))
    alike = [several for group in groups for several in _same_in_all(model, names, group, templates)]
    unreadable = [number for several in alike for number in several if len({names[one] for one in several}) > 1]
    if not unreadable:
        return ClassTexts(tuple(names), {}, tuple(map(tuple, alike)))
    offered = {one: alternates.get(names[one], ()) for one in unreadable}
    chosen = _alternates(model, names, offered, alike, first)
    asked = [chosen.get(number, name) for number, name in enumerate(names)]
    left = [[one for one in several if one not in chosen] for several in alike]
    return ClassTexts(
        tuple(asked),
        {names[number]: name for number, name in chosen.items()},
        tuple(tuple(several) for several in left if len(several) > 1),
    )


def lost(groups: Iterable[Sequence[int]], labels: np.ndarray, per_class: bool) -> float:
    """The least loss of accuracy (0..1) from `groups` of classes that a model cannot tell apart.

    At best, a model is right on the largest class of each group. `per_class`: of the mean over the classes that occur.
    """
    counts = np.bincount(labels, minlength=1 + max((one for group in groups for one in group), default=0))
    sizes = [[int(counts[one]) for one in group if counts[one]] for group in groups]
    if per_class:
        return sum(max(0, len(group) - 1) for group in sizes) / max(1, int(np.count_nonzero(counts)))
    return sum(sum(group) - max(group, default=0) for group in sizes) / max(1, len(labels))


def _tokens(model: Encoder, texts: Sequence[str]) -> list[bytes]:
    check_unicode(texts)
    return [row.tobytes() for row in model.tokenize(texts)]


def _groups(keys: Iterable[Hashable]) -> list[list[int]]:
    """The places of equal keys, where there are several, in order."""
    places: dict[Hashable, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    return [several for several in places.values() if len(several) > 1]


def _same_in_all(
    model: Encoder, names: Sequence[str], group: Sequence[int], templates: Sequence[str]
) -> list[list[int]]:
    """The parts of a group that are the same tokens in every template, not only where one is cut at its end."""
    rows = _tokens(model, [text for number in group for text in fill(templates, names[number])])
    of_class = [tuple(rows[at * len(templates) : (at + 1) * len(templates)]) for at in range(len(group))]
    return [[group[place] for place in several] for several in _groups(of_class)]


def _alternates(
    model: Encoder,
    names: Sequence[str],
    offered: Mapping[int, Sequence[str]],
    groups: Sequence[Sequence[int]],
    template: str,
) -> dict[int, str]:
    """By class number, the alternate with the fewest unknown characters that is not the same tokens as another class.

    One with unknown characters is only taken for a class that is still alike to another.
    """
    candidates = [(number, name) for number, several in offered.items() for name in several]
    unknown = _unknown_parts(model, [name for _, name in candidates], template)
    rows = _tokens(model, [template.replace("{}", text) for text in (*names, *(name for _, name in candidates))])
    taken, chosen = set(rows[: len(names)]), dict[int, str]()
    left = {number: together for together in map(set, groups) for number in together}
    for place in sorted(range(len(candidates)), key=lambda place: (unknown[place], place)):
        (number, name), row = candidates[place], rows[len(names) + place]
        needed = unknown[place] == 0 or len(left[number]) > 1
        if number not in chosen and row not in taken and needed:
            chosen[number] = name
            taken.add(row)
            left[number].discard(number)
    return chosen


def _unknown_parts(model: Encoder, texts: Sequence[str], template: str) -> list[float]:
    """The fraction of each text's characters that the tokenizer reads as it reads a character that nobody writes."""
    characters = sorted({char for text in texts for char in text})
    *rows, nobodys = _tokens(model, [template.replace("{}", char) for char in (*characters, _NOBODYS)])
    unknown = {char for char, row in zip(characters, rows, strict=True) if row == nobodys}
    return [sum(char in unknown for char in text) / len(text) for text in texts]
