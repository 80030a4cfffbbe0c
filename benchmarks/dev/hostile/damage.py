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
    word, number = random.choice(_WORDS), random.choice(_NUMBERS)
    some = [random.choice((*_NUMBERS, *_WORDS)) for _ in range(random.randrange(4))]
    return random.choice((word, number, number, None, random.random() < 0.5, some, {word or "x": number}, deep(200)))


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


def short(value: Any) -> str:
    """A value in a few characters."""
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:30]}... ({len(text)})"


def damaged_bytes(random: Random, content: bytes) -> tuple[str, bytes]:
    """Bytes of which some are flipped, cut, doubled, zeroed, moved or something else."""
    size, half = len(content), len(content) // 2
    place, length = random.randrange(max(1, size)), random.choice((1, 16, 512, size))
    kinds = ("flip", "flip", "flip", "cut", "cut", "zeros", "grow", "swap", "head") if size >= 16 else ()
    match kind := random.choice((*kinds, "empty", "text", "noise")):
        case "flip":
            changed = bytearray(content)
            for _ in range(number := 1 << random.randrange(4)):
                changed[random.randrange(size)] ^= 1 << random.randrange(8)
            return f"{number} bits flipped ({random.randrange(10**6)})", bytes(changed)
        case "cut":
            return f"cut at {place} of {size}", content[:place]
        case "head":
            return f"without the first {place} of {size}", content[place:]
        case "zeros":
            return f"{length} zeros at {place}", (content[:place] + bytes(length) + content[place + length :])[:size]
        case "grow":
            return f"{place} more", content + content[:place]
        case "swap":
            return "halves swapped", content[half:] + content[:half]
    other = {"empty": b"", "text": "这不是。\n".encode(), "noise": random.randbytes(random.choice((1, 100, 5000)))}
    return kind, other[kind]


ANYHOW = (*["bytes"] * 8, "missing", "folder", "loop", "dangling")
NO_FIT = ("cut", "cut", "missing", "folder")  # what the size alone tells


def damage_file(random: Random, name: str, kinds: Sequence[str] = ANYHOW) -> Named:
    """A change of the file or files that a glob finds: its bytes, or what is in its place."""
    seed, kind = random.randrange(2**32), random.choice(kinds)

    def spoil(here: Path) -> str:
        found, chance = files_of(here, name), Random(seed)
        if not found:
            return "there is none"
        file, what = (one := chance.choice(found)), f"{one.name}: {kind}"
        content = file.read_bytes()
        file.unlink()
        match kind:
            case "bytes":
                what, content = damaged_bytes(chance, content)
                file.write_bytes(content)
            case "cut":
                file.write_bytes(content[: chance.randrange(len(content) or 1)])
            case "folder":
                file.mkdir()
            case "loop":
                file.symlink_to(file.name)
            case "dangling":
                file.symlink_to("nowhere")
        return what

    return f"{name}: {kind} ({seed:08x})", spoil


def damage_json(random: Random, name: str) -> Named:
    """A change of one thing in a JSON file."""
    seed = random.randrange(2**32)

    def spoil(here: Path) -> str:
        chance, value = Random(seed), json.loads((here / name).read_text("utf-8"))
        place = chance.choice(places(value))
        holder, key, new = at(value, place[:-1]), place[-1], hostile_value(chance)
        kind = chance.choice(("value", "value", "value", "value", "without", "renamed", "in an object"))
        old = holder.pop(key) if kind in ("without", "renamed") else holder[key]
        if kind == "renamed" and isinstance(holder, dict):
            holder["无"] = old
        elif kind in ("value", "in an object"):
            holder[key] = new if kind == "value" else {"a": old}
        (here / name).write_text(json.dumps(value), "utf-8")
        return f"{'.'.join(map(str, place))} {f'= {short(new)}' if kind == 'value' else kind}"

    return f"{name}: one thing changed ({seed:08x})", spoil


def write(name: str, content: bytes | str) -> Change:
    """A change that writes a file."""

    def change(here: Path) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)

    return change


def nothing(here: Path) -> None:
    """No change."""


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


def files_of(here: Path, pattern: str) -> list[Path]:
    """The files that a glob finds, in the cache where it begins with that."""
    root = here.parent if pattern.startswith("cache/") else here
    return sorted(path for path in root.glob(pattern) if path.is_file())
