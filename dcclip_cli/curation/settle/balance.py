"""How is too much of one kind held down: by leaving some of it out, or by drawing it less often?

A group is a source, the languages that a pair has, or the head word of its caption.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dcclip_cli.curation.settle.tables import GlobalRule
from dcclip_cli.data.pair import Language

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

By = Literal["source", "language", "head-word"]


class Cap(GlobalRule):
    """Keeps at most so many pairs of a group, drawn by a hash of their keys: the same ones each time."""

    kind: Literal["cap"] = "cap"
    by: By
    most: int = Field(ge=1, description="Pairs of one group that stay")
    only: tuple[str, ...] = Field((), description="The groups that are capped; none: every group")

    def apply(self, connection: DuckDBPyConnection) -> None:
        """`cap-source`, `cap-language` or `cap-head-word`."""
        _group(connection, self.by)
        connection.execute(
            """
            INSERT INTO pair_drops
                SELECT number, $reason, 'more than ' || $most::BIGINT || ' of ' || name
                FROM grouped JOIN pairs USING (number) WHERE $all OR list_contains($only, name)
                QUALIFY row_number() OVER (PARTITION BY name ORDER BY md5_number_lower(key), number) > $most
            """,
            {"reason": f"cap-{self.by}", "most": self.most, "all": not self.only, "only": list(self.only)},
        )


class Weights(GlobalRule):
    """Weighs pairs for sampling, so that big groups are drawn less often than their size would have it.

    A pair's weight is its group's size to the power of minus `power`, times the group's `factor`, scaled to a mean of 1
    over all pairs: 0 leaves the sizes as they are, 1 draws every group equally often.
    """

    kind: Literal["weights"] = "weights"
    by: By
    power: float = Field(0.5, ge=0, le=1, description="0: no balance, 1: all groups alike")
    factors: dict[str, Annotated[float, Field(gt=0)]] = Field({}, description="How many times to draw single groups")

    def apply(self, connection: DuckDBPyConnection) -> None:
        """One row of `weights` for every live pair; no drops."""
        _group(connection, self.by)
        connection.execute(
            """
            INSERT INTO weights
                WITH sizes AS (
                    SELECT name, count(*) AS size,
                        count(*) ** (-$power::DOUBLE) * coalesce(list_extract(map_extract($factors, name), 1), 1) AS raw
                    FROM grouped GROUP BY name ORDER BY name
                ),
                scale AS (SELECT sum(size) / sum(size * raw ORDER BY name) AS scale FROM sizes)
                SELECT number, raw * scale FROM grouped JOIN sizes USING (name) CROSS JOIN scale
            """,
            {"power": self.power, "factors": _as_map(self.factors)},
        )


def _as_map(factors: dict[str, float]) -> dict[str, list[str] | list[float]]:
    return {"key": list(factors), "value": list(factors.values())}


def _group(connection: DuckDBPyConnection, by: By) -> None:
    """Fill the table `grouped` (number, name) with every live pair."""
    if by == "source":
        query = "SELECT number, source AS name FROM live_pairs"
    elif by == "language":
        query = """
            SELECT number, string_agg(DISTINCT language, '+' ORDER BY language DESC) AS name
            FROM live_captions GROUP BY number
        """
    else:
        if not connection.execute("SELECT 1 FROM duckdb_functions() WHERE function_name = 'head_word'").fetchall():
            connection.create_function("head_word", head_word, ["VARCHAR", "VARCHAR"], "VARCHAR")
        query = """
            SELECT number, head_word(arg_min(text, (language, place)), min(language)) AS name
            FROM live_captions GROUP BY number
        """
    connection.execute(f"CREATE OR REPLACE TABLE grouped AS {query}")


_FRAME = re.compile(
    r"^(?:(?:a|an|the|this|these|some|my|two|three|four|several|close-?up|black and white|\d+)\s+)*"
    r"(?:(?:photo(?:graph)?|picture|image|pic|view|illustration|drawing|painting|icon|pair|group|set)s?\s+of\s+)?"
    r"(?:(?:a|an|the|this|these|some|my|two|three|four|several|\d+)\s+)*"
)
_ENGLISH_WORD = re.compile(r"[a-z]+(?:['’-][a-z]+)*|[^\sa-z]")
_STOPS = re.compile(
    r"(?:of|in|on|at|by|with|without|and|or|for|from|to|into|over|under|near|is|are|was|were|has|have|had|that|which"
    r"|who|as|while|during|against|behind|beside|between|through|up|down|out|off|next|sits|stands|runs|walks|lies"
    r"|.+ing|[^a-z].*)$"
)
_MEASURE = re.compile(
    r"^[这那]?(?:[一二两三四五六七八九十几\d]+[个只条张幅位名件辆座棵朵群对双片块些头匹把杯碗盘艘架台本])"
)
_CHINESE_STOP = re.compile(r"[在正和与跟被把是有着了，。！？、,.!?:：;；\s（(]")


def head_word(caption: str, language: Language) -> str:
    """What a caption is about, by rule of thumb and in small letters: fit for counting, not for grammar.

    English: the last word of the first noun phrase, which ends at a preposition, a verb that we know or a word in -ing.
    Chinese: the last two characters before the first particle, behind the last 的. Empty where nothing is found.
    """
    return _english_head(caption.casefold()) if language == "en" else _chinese_head(caption)


def _english_head(caption: str) -> str:
    head = ""
    for word in _ENGLISH_WORD.findall(_FRAME.sub("", caption.strip(), count=1)):
        if head and _STOPS.match(word):
            break
        head = word if word[0].isalpha() else head
    return head


def _chinese_head(caption: str) -> str:
    measured = _MEASURE.sub("", caption.strip(), count=1)
    phrase = next((part for part in _CHINESE_STOP.split(measured) if part), "")
    return (phrase.rpartition("的")[2] or phrase)[-2:]


Balance = Annotated[Cap | Weights, Field(discriminator="kind")]
