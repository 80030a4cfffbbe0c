"""Damage to a file, as disks and people do it."""

import os
import random
from pathlib import Path

KINDS = ("cut", "emptied", "folder", "pipe", "loop")  # which header and size tell


def damage(path: Path, kind: str, seed: object = 0) -> None:
    """Flip a bit anywhere in a file, cut it anywhere, or put something else in its place."""
    content = path.read_bytes()
    chance = random.Random(f"{kind} {seed}")
    flipped = bytearray(content)
    flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    contents = {"flipped": bytes(flipped), "cut": content[: chance.randrange(len(content))], "emptied": b""}
    status = path.stat()
    path.unlink()
    match kind:
        case "folder":
            (path / "below").mkdir(parents=True)
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)
        case _:
            path.write_bytes(contents[kind])
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
