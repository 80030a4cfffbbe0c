"""How is a data set of the Hugging Face hub opened, or one that `save_to_disk` left in a folder?"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from dcclip_cli.errors import DcclipError

if TYPE_CHECKING:
    from datasets import Dataset


@functools.lru_cache(maxsize=2)  # one task after the other asks for it; the rows themselves stay on disk
def load_hub(path: str, config: str | None, split: str, revision: str | None = None) -> Dataset:
    """One split, its rows on disk. No code of the data set's is run. Raises DcclipError where it can't be had."""
    import datasets

    try:
        if os.path.isdir(path) and is_saved(path):
            found = datasets.load_from_disk(path)
            if isinstance(found, datasets.DatasetDict):
                if split not in found:
                    raise DcclipError(f"{path} has no split {split} (found: {', '.join(found)})", "name one as `split`")
                found = found[split]
            return found
        if path.startswith(("/", ".")) and not os.path.isdir(path):
            raise DcclipError(
                f"{path} is not a folder", "check the path; in a recipe it is relative to the recipe's folder"
            )
        return datasets.load_dataset(path, config, split=split, revision=revision)
    # What `datasets` raises for a wrong name, configuration or split, and where the hub can't be reached.
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        said = " ".join(str(error).split())[:300]
        hint = "check the name, `config` and `split`, and that the hub can be reached; or name a folder of save_to_disk"
        raise DcclipError(f"{path} can't be loaded: {said}", hint) from None


def is_saved(path: str) -> bool:
    """Whether `save_to_disk` left the folder."""
    return any(os.path.isfile(os.path.join(path, name)) for name in ("dataset_dict.json", "state.json"))
