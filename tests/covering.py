"""Covering arrays: few rows that have each pair of values of two options, unless it breaks a rule."""

import sys
from collections.abc import Mapping, Sequence, Set
from functools import cached_property
from itertools import combinations
from typing import Any

from allpairspy import AllPairs

Row = dict[str, str]  # the label of a value by option
Pair = tuple[tuple[str, str], tuple[str, str]]
Table = Mapping[str, Mapping[str, Any]]  # what a value sets, by option and label; the first label is plain


def pairs_of(row: Row) -> set[Pair]:
    """The pairs of values of two options that a row covers."""
    return set(combinations(row.items(), 2))


def all_pairs(table: Table) -> set[Pair]:
    """All pairs of values of two options."""
    values = [(option, label) for option, labels in table.items() for label in labels]
    return {(first, second) for first, second in combinations(values, 2) if first[0] != second[0]}


class CoveringArray:
    """Rows of a table of options. A rule names values, by option, that do not go together.

    `dangerous` are values, by option, whose pairs the quick rows cover.
    """

    def __init__(self, table: Table, rules: Sequence[Row], dangerous: Mapping[str, str]) -> None:
        self.table = table
        self.rules = rules
        self._dangerous = dangerous

    def follows_rules(self, row: Row, broken: Row | None = None) -> bool:
        """Whether a row, or the first values of one, breaks no rule but `broken`."""
        return not any(
            all(row.get(option) in labels.split() for option, labels in rule.items())
            for rule in self.rules
            if rule != broken
        )

    @cached_property
    def quick_rows(self) -> list[Row]:
        """Rows that cover all pairs of dangerous values; other options are plain."""
        table = {
            option: {
                label: values[label]
                for label in self._dangerous.get(option, next(iter(values))).split()
                if label in values
            }
            for option, values in self.table.items()
        }
        return self._covering(table, [])

    @cached_property
    def rows(self) -> list[Row]:
        """Rows that cover all pairs of values that follow the rules, the quick ones first."""
        return self._covering(self.table, self.quick_rows)

    def _covering(self, table: Table, rows: list[Row]) -> list[Row]:
        """These rows and others, which together cover all pairs of the table's values that follow the rules."""
        array = AllPairs(
            [[*values] for values in table.values()],
            lambda labels: self.follows_rules(dict(zip(table, labels, strict=False))),
            [[*row.values()] for row in rows],
        )
        rows = [*rows, *(dict(zip(table, labels, strict=True)) for labels in array)]
        missing = all_pairs(table).difference(*map(pairs_of, rows))
        for pair in sorted(missing):  # where AllPairs stops: it looks for the next row from the first option on
            if pair in missing and (row := self.completed(dict(pair), missing, table=table)):
                rows.append(row)
                missing -= pairs_of(row)
        return rows

    def completed(
        self, fixed: Row, wanted: Set[Pair] = frozenset(), broken: Row | None = None, table: Table | None = None
    ) -> Row | None:
        """A row with these values and many `wanted` pairs, which breaks no rule but `broken`; None if there is none."""
        table = table or self.table

        def complete(row: Row, options: list[str]) -> Row | None:
            if not self.follows_rules({**fixed, **row}, broken):
                return None
            if not options:
                return row
            option, *further = options

            def new_pairs(label: str) -> int:
                return sum((value, (option, label)) in wanted for value in row.items())

            labels = [fixed[option]] if option in fixed else sorted(table[option], key=new_pairs, reverse=True)
            return next(filter(None, (complete({**row, option: label}, further) for label in labels)), None)

        return complete({}, [*table])

    def name_of(self, row: Row) -> str:
        """The values that are not plain, for the name of a test."""
        plain = {option: next(iter(values)) for option, values in self.table.items()}
        return "-".join(f"{option}.{label}" for option, label in row.items() if label != plain[option]) or "plain"


def covers_all(name: str, array: CoveringArray) -> None:
    """Print how many pairs the rows have, and assert that rules exclude the others."""
    pairs = all_pairs(array.table)
    missing = pairs.difference(*map(pairs_of, array.rows))
    covered = len(pairs) - len(missing)
    sys.stdout.write(f"{name}: {len(array.rows)} rows cover {covered} pairs; rules exclude {len(missing)}\n")
    assert not [pair for pair in missing if array.completed(dict(pair))]
