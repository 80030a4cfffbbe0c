"""Which thresholds does the recipe set, to be marked in the histograms?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from dcclip_cli.curation.report.charts import Limit
from dcclip_cli.curation.report.scales import split
from dcclip_cli.curation.report.statistics import KEPT
from dcclip_cli.data.pair import LANGUAGES


def limits_of(options: Mapping[str, Any], histograms: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Limit]]:
    """The thresholds in the options of `collect` (as JSON), by the name of the histogram that shows them.

    Where a scorer keeps a fraction, the threshold is the value that this came to, to a bin's width.
    """
    found: dict[str, list[Limit]] = {}
    for rule in options.get("filters") or ():
        if rule["kind"] == "image":
            found["short_side"] = _range(rule.get("min_side"), None)
            found["long_side"] = _range(None, rule.get("max_side"))
            found["aspect"] = _range(None, rule.get("max_aspect"))
            found["bytes"] = _range(rule.get("min_bytes"), rule.get("max_bytes"))
        elif rule["kind"] == "length":
            found |= {language: _range(*rule[language]) for language in LANGUAGES if rule.get(language)}
    for scorer in options.get("scores") or ():
        stored = f"{scorer['kind']}-{scorer['name']}" if scorer.get("name") else scorer["kind"]
        for name, fates in histograms.items():
            if name.startswith("score:"):
                found.setdefault(name, []).extend(_score_limits(scorer, stored, name, fates))
    return found


def _score_limits(
    scorer: Mapping[str, Any], stored: str, name: str, fates: Mapping[str, Mapping[str, int]]
) -> Iterable[Limit]:
    scored, language = split(name)
    if scorer["kind"] == "agreement" and scored == stored:
        threshold = (scorer.get("threshold") or {}).get(language)
        if threshold is not None:
            yield Limit(threshold, "above")
        elif (scorer.get("keep") or {}).get(language) and (kept := fates.get(KEPT)):
            yield Limit(min(float(at) for at in kept), "above")
    elif scorer["kind"] == "prompts" and scored == stored:
        yield Limit(scorer["threshold"], "below")
    elif scorer["kind"] == "classifier":
        labels = (re.sub(r"[^\w]+", "-", label.lower()).strip("-") for label in scorer["reject"])
        if scored in {f"{stored}-{label}" for label in labels}:
            yield Limit(scorer["threshold"], "above" if scorer.get("below") else "below")


def _range(least: float | None, most: float | None) -> list[Limit]:
    limits = [Limit(least, "above")] if least else []
    return limits if most is None else [*limits, Limit(most, "below")]
