"""Which results compare with those of other models on the same data set."""

from __future__ import annotations

from dcclip_cli.data import prompts
from dcclip_cli.eval import registry
from dcclip_cli.eval.result import EvalResult, sha256_of


def unfit(result: EvalResult) -> str:
    """Why a result is on no leaderboard: it is not of a whole named data set with its own prompts; empty if it is."""
    found = registry.find(result.dataset)
    if found is None or found[1] != result.language:
        return "is no named data set"
    if result.partial or result.limit:
        return "was not measured in full"
    known, language = found
    if known.classes:
        own = prompts.read(registry.prompts_of(known))
        if result.task != "zero-shot classification":
            return f"is a {result.task}"
        asked = sha256_of(own.names[language]), sha256_of(own.templates[language])
        if (result.class_names_sha256, result.templates_sha256) != asked:
            return "was measured with other class names or prompts than this version's own"
    return ""
