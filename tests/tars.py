"""Tar files for tests."""

import io
import json
import tarfile
from collections.abc import Iterable
from typing import Any

from dcclip_cli.data.pair import Pair


def tar_bytes(members: Iterable[tuple[str, bytes]], **header: Any) -> bytes:
    """A tar with these files, `header` set in each one's."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in header.items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def tar_of(pairs: Iterable[Pair], suffix: str = ".png") -> bytes:
    """A shard of pairs, an image and a record of each."""
    members = []
    for pair in pairs:
        record = json.dumps({"zh": pair.zh, "en": pair.en, **pair.meta}, ensure_ascii=False).encode()
        members += [(f"{pair.key}{suffix}", pair.image), (f"{pair.key}.json", record)]
    return tar_bytes(members)
