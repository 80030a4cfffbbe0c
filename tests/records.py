"""Changes to directories that dcclip wrote, made as if dcclip had written them: their record fits again."""

import json
from pathlib import Path

from dcclip_cli.core.checksums import write_record


def rewrite(folder: Path, record: str = "dcclip.json", /, **changes: object) -> None:
    """Set keys of a record, and write it anew with the checksums of the files as they are; other JSON is left."""
    file = folder / record
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    if isinstance(content, dict):
        write_record(file, content | changes)
