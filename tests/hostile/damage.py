"""Damage to bytes, JSON and files, drawn at random: each function says in a few words what it did."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

Change = Callable[[Path], object]
Named = tuple[str, Change]  # what a change does, and the change
_WORDS = ("", " ", "猫", "a" * 5000, "../../etc/passwd", "\x1b[2Jx", "nan", "1e400", "\ud800", "{}", "%s", "hf-hub:a/b")
_NUMBERS = (-1, 0, 1, 3, 2**31, 2**63, 10**30, -0.5, 0.1, 1e300, float("nan"), float("inf"), -float("inf"))


def deep(levels: int) -> Any:
    """A list in a list, and so on."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def hostile_value(random: Random) -> Any:
    """A value of any JSON type that few keys can take."""
    kind = random.choice(("word", "number", "number", "none", "bool", "list", "dict", "deep"))
    if kind == "word":
        return random.choice(_WORDS)
    if kind == "number":
        return random.choice(_NUMBERS)
    if kind == "list":
        return [random.choice((*_NUMBERS, *_WORDS)) for _ in range(random.randrange(4))]
    if kind == "dict":
        return {random.choice(_WORDS) or "x": random.choice(_NUMBERS)}
    return {"none": None, "bool": random.random() < 0.5, "deep": deep(200)}[kind]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything in a JSON value, by keys and numbers."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list) and len(value) <= 40:
        inner = list(enumerate(value))
    return [place for key, one in inner for place in ((*path, key), *places(one, (*path, key)))]


def at(value: Any, place: Sequence[Any]) -> Any:
    """What is in a JSON value at a place."""
    for key in place:
        value = value[key]
    return value


def damaged_json(random: Random, value: Any) -> tuple[str, Any]:
    """A JSON value with one thing in it changed."""
    value = json.loads(json.dumps(value))
    found = places(value)
    place = random.choice(found)
    holder, name = at(value, place[:-1]), ".".join(map(str, place))
    kind = random.choice(("value", "value", "value", "value", "delete", "rename", "nest"))
    if kind == "delete":
        del holder[place[-1]]
        return f"without {name}", value
    if kind == "rename" and isinstance(holder, dict):
        holder["无"] = holder.pop(place[-1])
        return f"{name} renamed", value
    if kind == "nest":
        holder[place[-1]] = {"a": holder[place[-1]]}
        return f"{name} in an object", value
    new = hostile_value(random)
    holder[place[-1]] = new
    return f"{name} = {short(new)}", value


def short(value: Any) -> str:
    """A value in a few characters."""
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:30]}... ({len(text)})"


def damaged_bytes(random: Random, content: bytes) -> tuple[str, bytes]:
    """Bytes of which some are flipped, cut, doubled, zeroed, moved or something else."""
    size = len(content)
    kind = random.choice(
        ("flip", "flip", "flip", "cut", "cut", "zeros", "grow", "swap", "empty", "text", "head", "noise")
    )
    if size < 16:
        kind = random.choice(("empty", "text", "noise"))
    place = random.randrange(max(1, size))
    if kind == "flip":
        number = 1 << random.randrange(4)
        changed = bytearray(content)
        for _ in range(number):
            changed[random.randrange(size)] ^= 1 << random.randrange(8)
        return f"{number} bits flipped ({random.randrange(10**6)})", bytes(changed)
    if kind == "cut":
        return f"cut at {place} of {size}", content[:place]
    if kind == "head":
        return f"without the first {place} of {size}", content[place:]
    if kind == "zeros":
        length = random.choice((1, 16, 512, size))
        return f"{length} zeros at {place}", (content[:place] + bytes(length) + content[place + length :])[:size]
    if kind == "grow":
        return f"{place} more", content + content[:place]
    if kind == "swap":
        half = size // 2
        return "halves swapped", content[half:] + content[:half]
    other = {"empty": b"", "text": "这不是。\n".encode(), "noise": random.randbytes(random.choice((1, 100, 5000)))}
    return kind, other[kind]


def damage_file(random: Random, name: str, also_gone: bool = True) -> Named:
    """A change of the file or files that a glob finds: its bytes, or what is in its place."""
    seed = random.randrange(2**32)
    kinds = ("missing", "folder", "loop", "dangling") if also_gone and random.random() < 0.3 else ("bytes",)
    kind, rng = random.choice(kinds), Random(seed)
    if kind == "bytes":

        def spoil(here: Path) -> str:
            file = rng.choice(_found(here, name))
            what, content = damaged_bytes(Random(seed), file.read_bytes())
            file.write_bytes(content)
            return f"{file.name}: {what}"

        return f"{name}: bytes ({seed:08x})", spoil

    def replace(here: Path) -> None:
        file = rng.choice(_found(here, name))
        file.unlink()
        if kind == "folder":
            file.mkdir()
        elif kind == "loop":
            file.symlink_to(file.name)
        elif kind == "dangling":
            file.symlink_to("nowhere")

    return f"{name}: {kind}", replace


def damage_json(random: Random, name: str, prepare: Callable[[Any], Any] = lambda value: value) -> Named:
    """A change of one thing in a JSON file, after `prepare`."""
    seed = random.randrange(2**32)

    def spoil(here: Path) -> str:
        file = here / name
        what, value = damaged_json(Random(seed), prepare(json.loads(file.read_text("utf-8"))))
        file.write_text(json.dumps(value), "utf-8")
        return what

    return f"{name}: one thing changed ({seed:08x})", spoil


def write(name: str, content: bytes | str) -> Change:
    """A change that writes a file."""

    def change(here: Path) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)

    return change


def fifo(name: str) -> Change:
    return lambda here: os.mkfifo(here / name)


def both(*changes: Change) -> Change:
    """Changes one after the other."""

    def change(here: Path) -> str:
        return ", ".join(said for one in changes if isinstance(said := one(here), str))

    return change


def emptied(name: str) -> Change:
    """A change that removes the files in a folder."""

    def change(here: Path) -> None:
        for file in (here / name).iterdir():
            file.unlink()

    return change


def file_for(name: str) -> Change:
    """A change that puts an empty file in a folder's place."""

    def change(here: Path) -> None:
        shutil.rmtree(here / name)
        (here / name).touch()

    return change


def swap_for(name: str, other: str) -> Change:
    """A change that puts a copy of another file in a file's place."""
    return lambda here: shutil.copyfile(here / other, here / name)


def _found(here: Path, pattern: str) -> list[Path]:
    root = here.parent if pattern.startswith("cache/") else here
    found = sorted(path for path in root.glob(pattern) if path.is_file())
    assert found, f"{pattern} is not there"
    return found
