"""What does a finished collection hold, by its manifest?"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcclip_cli.data.pair import LANGUAGES, Language
from dcclip_cli.errors import DcclipError

MANIFEST, REPORT = "manifest.json", "report.html"
MAKER, FORMAT = "dcclip collect", 1


@dataclass(frozen=True)
class Count:
    """How many were read and kept, and how many dropped for which reason: read = kept + all dropped."""

    read: int
    kept: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class CollectResult:
    """What a finished output folder holds; `seconds` is this call's time, next to nothing if it was finished before."""

    folder: Path
    already_finished: bool
    pairs: Count
    captions: dict[Language, Count]
    shards: int
    seconds: float


def finished_manifest(out: Path) -> dict[str, Any] | None:
    """The manifest of a finished output; None where there is nothing yet."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        if manifest["made_by"] == MAKER and manifest["format"] == FORMAT:
            return dict(manifest)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DcclipError(f"{out} exists and is no output of collect", "move it away, or name another folder with --out")


def result_of(out: Path, manifest: dict[str, Any], already_finished: bool, seconds: float) -> CollectResult:
    """What a manifest says."""
    pairs = Count(**manifest["pairs"])
    captions = {language: Count(**manifest["captions"][language]) for language in LANGUAGES}
    return CollectResult(out, already_finished, pairs, captions, len(manifest["shards"]), seconds)


def reasons_of(dropped: dict[str, int]) -> str:
    """Counts in words, the largest first."""
    return ", ".join(f"{number} {reason}" for reason, number in Counter(dropped).most_common())
