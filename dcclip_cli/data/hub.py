"""Data sets of the Hugging Face hub, and folders written by `save_to_disk`, opened with `datasets`."""

from __future__ import annotations

import functools
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dcclip_cli.errors import DcclipError, Message

if TYPE_CHECKING:
    from datasets import Dataset


@functools.lru_cache(maxsize=2)  # one task after the other asks for it; the rows themselves stay on disk
def load_hub(
    path: str, config: str | None, split: str, revision: str | None = None, files: str | None = None
) -> Dataset:
    """One split, its rows on disk. The data set's own code is never run. Raises DcclipError if it cannot be loaded.

    `files` is the pattern of the split's files, if known: no other split's files are downloaded then.
    """
    import datasets

    with _errors(path):
        if os.path.isdir(path) and is_saved(path):
            found = datasets.load_from_disk(path)
            if isinstance(found, datasets.DatasetDict):
                if split not in found:
                    raise DcclipError(
                        "{} has no split {} (found: {})", "name one as `split`", path, split, ", ".join(found)
                    )
                found = found[split]
            return found
        if path.startswith(("/", ".")) and not os.path.isdir(path):
            hint = Message("check the path; in a recipe it is relative to the recipe's folder")
            raise DcclipError("{} is not a folder", hint, path)
        data_files = {split: files} if files else None
        return datasets.load_dataset(path, config, split=split, revision=revision, data_files=data_files)


def splits_of(path: str) -> list[str]:
    """The names of the splits in a folder with a copy of a hub repository. Raises DcclipError as `load_hub`."""
    import datasets

    with _errors(path):
        return list(datasets.get_dataset_split_names(path))


def is_repository(path: str) -> bool:
    """Whether a folder contains Parquet files in the layout of hub repositories."""
    return any(any(Path(path).glob(pattern)) for pattern in ("*.parquet", "data/*.parquet"))


def is_cached(path: str) -> bool:
    """Whether `datasets` has prepared a data set of the hub in its cache, so that the hub is not needed."""
    import datasets

    return any(Path(datasets.config.HF_DATASETS_CACHE, path.replace("/", "___")).glob("*/*/*/dataset_info.json"))


def is_saved(path: str) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any(os.path.isfile(os.path.join(path, name)) for name in ("dataset_dict.json", "state.json"))


@contextmanager
def _errors(path: str) -> Iterator[None]:
    """What `datasets` raises for a wrong name, half a file or an unreachable hub becomes a DcclipError."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (OSError, ValueError, RuntimeError, EOFError, tarfile.TarError, DatasetsError) as error:
        reason = " ".join(str(error).split())[:300]
        hint = Message(
            "check the name, `config` and `split`, and that the hub is reachable; or name a folder of save_to_disk"
        )
        raise DcclipError("{} cannot be loaded: {}", hint, path, reason) from None
