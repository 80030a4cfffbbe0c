"""Results in a model's card: the `model-index` of README.md, which the Hugging Face hub shows next
to the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import atomic_write
from dcclip_cli.core.text import read_text
from dcclip_cli.eval import registry
from dcclip_cli.eval.result import METRIC_NAMES, EvalResult

if TYPE_CHECKING:
    from huggingface_hub import EvalResult as CardEntry
    from huggingface_hub import ModelCard

CARD = "README.md"
_MOST_BYTES = 10_000_000
_TASKS = {
    "zero-shot classification": "zero-shot-image-classification",
    "retrieval": "image-text-retrieval",
}


def update_card(folder: Path, results: Sequence[EvalResult]) -> None:
    """Put results into the card of the model in `folder`, see `add_results`. A folder without a
    card stays so.
    """
    file = folder / CARD
    if any(_entries(results)) and file.is_file():
        card = read_card(file)
        add_results(card, results)
        atomic_write(file, str(card))


def read_card(file: Path) -> ModelCard:
    """The card in a file. Raises DcclipError for one whose header is not YAML."""
    from huggingface_hub import ModelCard

    hint = Message("fix the part between the --- lines of {}, or delete the file", file)
    try:
        text = read_text(file, _MOST_BYTES, hint)
        return ModelCard(text if text.startswith("---") else f"---\n{{}}\n---\n{text}")
    except (yaml.YAMLError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DcclipError("the header of {} cannot be read: {}", hint, file, reason) from None


def add_results(card: ModelCard, results: Sequence[EvalResult]) -> None:
    """Put results into a card, in place of earlier ones on the same data; samples, parts and
    probes are left out.
    """
    from huggingface_hub import ModelCardData

    if not (new := list(_entries(results))):
        return
    assert isinstance(card.data, ModelCardData)
    before = card.data.eval_results or []
    unchanged = [
        entry
        for entry in before
        if not any(entry.is_equal_except_value(new_entry) for new_entry in new)
    ]
    card.data.model_name = card.data.model_name or results[0].model
    card.data.eval_results = [*unchanged, *new]


def _entries(results: Sequence[EvalResult]) -> Iterator[CardEntry]:
    """The main metric of each whole result, in per cent."""
    from huggingface_hub import EvalResult as CardEntry

    for result in results:
        if result.task not in _TASKS or result.limit or result.partial or result.corrupt:
            continue
        named = registry.find(result.dataset)
        yield CardEntry(
            task_type=_TASKS[result.task],
            task_name=result.task,
            dataset_type=f"clip-benchmark/wds_{named[0].hub}"
            if named and named[0].hub
            else result.dataset,
            dataset_name=result.dataset,
            dataset_config=result.language,
            dataset_split=result.split or None,
            metric_type="accuracy" if result.metric == "top1" else result.metric,
            metric_name=f"{METRIC_NAMES.get(result.metric, result.metric)}, per cent",
            metric_value=round(100 * result.value, 2),
        )
