"""Repositories of the Hugging Face Hub: their files in the local cache, and those on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dcclip_cli.errors import DcclipError, Message

TIMEOUT_S = 10


def cached_folder(repository: str, file: str = "config.json") -> Path | None:
    """The folder in the local cache with the repository's files; None where `file` has not been downloaded."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, file)
    except HFValidationError:  # a path that does not exist, for example
        return None
    return Path(found).parent if isinstance(found, str) else None


def files_on_hub(repository: str, kind: Literal["model", "dataset"] = "model") -> set[str]:
    """The names of a repository's files. Raises DcclipError where the hub cannot be reached or does not have it."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    more = "" if kind == "model" else " --repo-type dataset"
    hint: str = Message(
        "download it where there is a network: hf download {}{}; or name a local directory", repository, more
    )
    try:
        api = HfApi()
        look = api.model_info if kind == "model" else api.dataset_info
        return {one.rfilename for one in look(repository, timeout=TIMEOUT_S).siblings or ()}
    except HFValidationError:
        raise DcclipError("{} is neither a directory nor a name on the hub", "write ORG/NAME", repository) from None
    # The HTTP library's own errors are no OSError.
    except (OSError, *HfHubHTTPError.__bases__) as error:  # type: ignore[misc]
        if getattr(error, "response", None) is not None:
            why, reason = Message("the hub does not have it, or not for you"), str(error).strip().splitlines()[0][:200]
            hint = Message("check the name; if its license must be accepted on the hub, log in with: hf auth login")
        else:
            why = Message("the hub cannot be reached")
            reason = Message("HF_HUB_OFFLINE is set") if HF_HUB_OFFLINE else str(error).strip().splitlines()[0][:200]
        raise DcclipError("{} is not complete in the local cache, and {}: {}", hint, repository, why, reason) from None
