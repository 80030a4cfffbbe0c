"""The groups of cases, the exceptions from what is expected of them, and cases by group, seed and number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random

from tests.hostile.case import Case, Report, Verdict
from tests.hostile.groups import bundles, data, environment, labels, models, pictures, recipes, saved, training

Rule = Callable[[Random], Case]
GROUPS: Mapping[str, Sequence[Rule]] = {
    "recipes, --set, --out": recipes.RULES,
    "pictures, names, stdin": pictures.RULES,
    "labels, templates, --model": labels.RULES,
    "bundles": bundles.RULES,
    "model directories": models.RULES,
    "state, caches, indexes": saved.RULES,
    "data of collect, eval, training": data.RULES,
    "training, export": training.RULES,
    "environment, command lines": environment.RULES,
}
# Shares of the whole: of cases that take long there are fewer.
_SHARES = (16, 15, 13, 17, 13, 9, 9, 4, 4)

# What is not as expected and stays so: a part of a case's name, its verdict, and why.
EXCEPTIONS: Sequence[tuple[str, Verdict, str]] = (
    (
        "--csv",
        Verdict.RAW,
        "CSV is data for programs: a label is written as it is",
    ),
)


def cases(group: str, seed: int, count: int) -> Iterator[tuple[int, Case]]:
    """The first `count` cases of a group, each with its number; none comes twice."""
    seen, number = set[str](), 0
    while len(seen) < count and number < 20 * count + 100:
        made = case(group, seed, number)
        if made.name not in seen:
            seen.add(made.name)
            yield number, made
        number += 1


def case(group: str, seed: int, number: int) -> Case:
    """One case of a group."""
    rules = GROUPS[group]
    return rules[number % len(rules)](Random(f"{group} {seed} {number}"))


def shares(total: int) -> dict[str, int]:
    """How many of `total` cases are of each group."""
    return {group: max(1, round(total * share / sum(_SHARES))) for group, share in zip(GROUPS, _SHARES, strict=True)}


def excepted(report: Report) -> str:
    """Why a case may end as it did although that is not good; "" if it may not."""
    found = (why for part, verdict, why in EXCEPTIONS if report.verdict is verdict and part in report.case.name)
    return next(found, "")
