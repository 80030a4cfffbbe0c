"""Which results compare with those of other models on the same data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dcclip_cli.data import prompts
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval import registry
from dcclip_cli.eval.result import EvalResult, sha256_of

if TYPE_CHECKING:
    from dcclip_cli.eval.evaluate import EvalOptions


def check_options(options: EvalOptions, name: str, why: str) -> None:
    """Raise DcclipError where no result of these options would compare, for `why`, in the format `name`."""
    for flag, other in (
        (f"--task {options.task}", options.task != "zero-shot"),
        (f"--limit {options.limit}", options.limit is not None),
        (f"--partial {options.partial}", options.partial != "no"),
        (f"--templates {options.templates}", options.templates != "own"),
    ):
        if other:
            raise DcclipError("--format {} with {}: {}", "omit {}", name, flag, why, flag.split()[0])


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
