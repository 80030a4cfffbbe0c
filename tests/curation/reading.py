"""What the tests of sources share: reading a source as `collect` does, and writing tars."""

import json
from pathlib import Path
from typing import Any

from dcclip_cli.curation.sources import SourceOptions
from dcclip_cli.curation.sources.base import Candidate
from tests.tars import tar_bytes

PIXEL = b"not an image: sources don't look inside"


def read(source: SourceOptions, size: int = 1000) -> list[Candidate]:
    """All candidates of a source, in slices that are written down and read back."""
    parts = [json.loads(json.dumps(dict(part.part))) for part in source.slices(size)]
    return [candidate for part in parts for candidate in source.read(part)]


def reasons(source: SourceOptions) -> list[str | None]:
    return [candidate.fault.reason if candidate.fault else None for candidate in read(source)]


def faults(source: SourceOptions, size: int = 1000) -> dict[str, str | None]:
    return {item.pair.key: item.fault.reason if item.fault else None for item in read(source, size)}


def tar(file: Path, members: list[tuple[str, bytes]], **header: Any) -> Path:
    file.write_bytes(tar_bytes(members, **header))
    return file
