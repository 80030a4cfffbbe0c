"""The Hugging Face Hub and ModelScope: files of repositories; data sets, also in folders of
`save_to_disk`.
"""

from __future__ import annotations

import functools
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dcclip_cli.core.errors import DcclipError, Message

if TYPE_CHECKING:
    from datasets import Dataset

TIMEOUT_S = 10
OPEN_CLIP_SCHEME = (
    "hf-hub"  # of hub repositories in open_clip's format, in open_clip's own names of models too
)


def cached_folder(repository: str, file: str = "config.json") -> Path | None:
    """The folder in the local cache with the repository's files; None where `file` has not been
    downloaded.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(repository, file)
    except HFValidationError:  # a path that does not exist, for example
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def files_on_hub(repository: str, kind: Literal["model", "dataset"] = "model") -> set[str]:
    """The names of a repository's files. Raises DcclipError where the hub cannot be reached or
    does not have it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    option = "" if kind == "model" else " --repo-type dataset"
    hint: str = Message(
        "download it on a machine with a network: hf download {}{}; or give a local directory",
        repository,
        option,
    )
    try:
        api = HfApi()
        look = api.model_info if kind == "model" else api.dataset_info
        return {file.rfilename for file in look(repository, timeout=TIMEOUT_S).siblings or ()}
    except HFValidationError:
        raise DcclipError(
            "{} is neither a directory nor the name of a hub repository",
            "write the name as ORG/NAME",
            repository,
        ) from None
    # The HTTP library's own errors are no OSError.
    except (OSError, *HfHubHTTPError.__bases__) as error:  # type: ignore[misc]
        reason = (
            Message("HF_HUB_OFFLINE is set")
            if HF_HUB_OFFLINE
            else str(error).strip().splitlines()[0][:200]
        )
        why = Message("the hub cannot be reached")
        if getattr(error, "response", None) is not None:
            why = Message("the hub does not have it, or you have no access")
            hint = Message(
                "check the name; if its license must be accepted on the hub, log in "
                "with: hf auth login"
            )
        raise DcclipError(
            "{} is not complete in the local cache, and {}: {}", hint, repository, why, reason
        ) from None


@functools.cache  # it asks ModelScope for the files each time
def modelscope_folder(reference: str) -> Path:
    """The folder in ModelScope's cache with the files of ms:ORG/NAME[@REVISION], downloaded if it
    may be.
    """
    from modelscope_hub.compat import snapshot_download
    from modelscope_hub.errors import HubError

    repository, _, revision = reference.partition(":")[2].partition("@")
    from huggingface_hub.constants import (
        HF_HUB_OFFLINE,
    )  # after the package that says which extra is missing

    # No folders: they are of other libraries, and names with `..` lead out of the cache.
    ignored = ["*/*", "*.h5", "*.msgpack", "*.ot", "*.gguf"]
    try:
        folder = snapshot_download(
            repository,
            revision=revision or None,
            ignore_patterns=ignored,
            local_files_only=HF_HUB_OFFLINE,
        )
    except (HubError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        hint = Message(
            "check the name and the network; with HF_HUB_OFFLINE, dcclip uses only "
            "ModelScope's cache"
        )
        raise DcclipError("{} cannot be loaded: {}", hint, reference, reason) from None
    return Path(folder)


@functools.lru_cache(
    maxsize=2
)  # one task after the other asks for it; the rows themselves stay on disk
def load_hub(
    path: str, config: str | None, split: str, revision: str | None = None, files: str | None = None
) -> Dataset:
    """One split, its rows on disk, without running code of the data set; `files` restricts what is
    downloaded.
    """
    import datasets

    with _errors(path):
        if os.path.isdir(path) and is_saved(path):
            dataset = datasets.load_from_disk(path)
            if isinstance(dataset, datasets.DatasetDict) and split not in dataset:
                raise DcclipError(
                    "{} has no split {} (found: {})",
                    "choose a split with `split`",
                    path,
                    split,
                    ", ".join(dataset),
                )
            return dataset[split] if isinstance(dataset, datasets.DatasetDict) else dataset
        if path.startswith(("/", ".")) and not os.path.isdir(path):
            hint = Message("check the path; in a recipe it is relative to the recipe's folder")
            raise DcclipError("{} is not a folder", hint, path)
        data_files = {split: files} if files else None
        return datasets.load_dataset(
            path, config, split=split, revision=revision, data_files=data_files
        )


def splits_of(path: str) -> list[str]:
    """The names of the splits in a folder with a copy of a hub repository. Raises DcclipError as
    `load_hub`.
    """
    import datasets

    with _errors(path):
        return list(datasets.get_dataset_split_names(path))


def is_repository(path: str) -> bool:
    """Whether a folder contains Parquet files in the layout of hub repositories."""
    return any(any(Path(path).glob(pattern)) for pattern in ("*.parquet", "data/*.parquet"))


def is_cached(path: str) -> bool:
    """Whether `datasets` has prepared a data set of the hub in its cache, so that the hub is not
    needed.
    """
    import datasets

    return any(
        Path(datasets.config.HF_DATASETS_CACHE, path.replace("/", "___")).glob(
            "*/*/*/dataset_info.json"
        )
    )


def is_saved(path: str) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any(
        os.path.isfile(os.path.join(path, name)) for name in ("dataset_dict.json", "state.json")
    )


@contextmanager
def _errors(path: str) -> Iterator[None]:
    """What `datasets` raises for a wrong name, half a file or an unreachable hub becomes a
    DcclipError.
    """
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (OSError, ValueError, RuntimeError, EOFError, tarfile.TarError, DatasetsError) as error:
        reason = " ".join(str(error).split())[:300]
        hint = Message(
            "check the name, `config`, `split` and the connection; or give a folder "
            "written by save_to_disk"
        )
        raise DcclipError("{} cannot be loaded: {}", hint, path, reason) from None
