"""Blocks of shards: the parts of tars in object stores and of Parquet files that are kept in the block cache."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial

from dcclip_cli.data.block_cache import Block
from dcclip_cli.data.index import Index
from dcclip_cli.data.shards import group_images
from dcclip_cli.data.storage import DataFile


@dataclass(frozen=True)
class BlockPlace:
    """A block, and the offset in the shard, as its index counts, of the block's first byte."""

    block: Block
    first: int


def tar_block(index: Index, first: int, end: int) -> BlockPlace:
    """The bytes of a tar in an object store from `first` to `end`."""
    file, size = index.file, end - first
    block = Block(
        _key(index, first, end),
        size,
        str(file),
        write=partial(file.read_into, offset=first, size=size),
        read_range=lambda offset, size: file.read(first + offset, size),
    )
    return BlockPlace(block, first)


def group_block(index: Index, group: int) -> BlockPlace:
    """The images of a row group of a Parquet file, one after the other."""
    column = index.about.columns.get("image", "image")
    write = partial(_write_group, index.file, group, column)
    size = index.about.groups[group][1]
    return BlockPlace(Block(_key(index, group), size, f"{index.file}, row group {group}", write), 0)


def _key(index: Index, *part: int) -> str:
    """The key of a part of a shard, by the shard's content, wherever that is."""
    return hashlib.sha256(repr((index.about.sha256, *part)).encode()).hexdigest()[:32]


def _write_group(file: DataFile, group: int, column: str, descriptor: int) -> None:
    with open(descriptor, "wb", buffering=1 << 20, closefd=False) as target:
        for image in group_images(file, group, column):
            target.write(image or b"")
