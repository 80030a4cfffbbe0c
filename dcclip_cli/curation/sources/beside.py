"""What do the files beside an image say? The same in a folder as in a tar: a record in JSON, captions in texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dcclip_cli.curation.sources.base import TOLD, Told, by_language
from dcclip_cli.data.files.reading import Fault, plain, texts_of

Beside = Mapping[str, bytes]  # suffix (of BESIDE), without its dot -> the file's bytes
BESIDE: dict[str, Told | None] = {"json": None, "zh.txt": "zh", "en.txt": "en", "txt": "caption"}


def captions_beside(files: Beside) -> dict[str, Any]:
    """A Pair's `zh`, `en` and `meta`. Fault: `captions-unreadable`, `captions-bytes`.

    In the texts each line is a caption, unless the record's `caption` is the whole of it, as img2dataset has it.
    """
    record = _record(files["json"]) if "json" in files else {}
    captions: list[tuple[Told, str]] = []
    for told in TOLD:
        captions += [(told, text) for text in texts_of(record.pop(told, None), f"{told} in the .json file")]
    known = {text.strip() for _, text in captions}
    for suffix, language in BESIDE.items():
        if language and suffix in files:
            text = _text(files[suffix], suffix)
            if text.strip() not in known:
                captions += [(language, line) for line in text.split("\n")]
    return {**by_language(captions), "meta": plain(record)}


def _text(content: bytes, suffix: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Fault("captions-unreadable", f"the .{suffix} file: {error.reason} at byte {error.start}") from None


def _record(content: bytes) -> dict[str, Any]:
    try:
        record = json.loads(_text(content, "json"))
    except (ValueError, RecursionError) as error:
        raise Fault("captions-unreadable", f"the .json file: {str(error)[:200]}") from None
    if not isinstance(record, dict):
        raise Fault("captions-unreadable", "the .json file does not hold a JSON object")
    return record
