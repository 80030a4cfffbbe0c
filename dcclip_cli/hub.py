"""Repositories of the Hugging Face Hub: their files in the local cache, and those on the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

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


_LOG_IN = Message("log in with: hf auth login, or set HF_TOKEN to a token that may write")
_AGAIN = Message("run the same command again: what is uploaded already is not uploaded twice")
_CHANGE = Message("change what it names, and push again")
_REFUSALS = {
    401: (Message("the hub accepts no token of yours"), _LOG_IN),
    402: (
        Message("its storage is used up"),
        Message("free some, or pay for more, in the settings of your account on the hub"),
    ),
    404: (
        Message("the hub does not have it, or not for you"),
        Message("check the name; without --pull-request it is created"),
    ),
    409: (Message("another process changes it"), _AGAIN),
    412: (Message("it was changed at the same time"), _AGAIN),
    413: (Message("a file is too large for the hub"), Message("export it in a smaller precision, or leave it out")),
    429: (
        Message("the hub allows no more requests for now"),
        Message("wait some minutes, then {}", _AGAIN),
    ),
}


@contextmanager
def uploading(repository: str) -> Iterator[None]:
    """Whatever keeps huggingface_hub from writing to a repository becomes a DcclipError."""
    from huggingface_hub.errors import HfHubHTTPError

    # The HTTP library's own errors are no OSError; RuntimeError is that of a file, ValueError that of an answer.
    try:
        yield
    except (*HfHubHTTPError.__bases__, RuntimeError, ValueError) as error:  # type: ignore[misc]
        raise _refused(repository, error) from None


def _refused(repository: str, error: Any) -> DcclipError:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    place = ""
    if type(error) is RuntimeError and error.__cause__:  # Error while uploading 'NAME' to the Hub.
        place, error = f"{str(error).split(chr(39))[1:2] or ['a file']}"[2:-2] + ": ", error.__cause__
    said = " ".join(str(getattr(error, "server_message", None) or error or type(error).__name__).split())[:300]
    if getattr(error, "response", None) is not None:
        status = int(error.response.status_code)
        fault = (Message("the hub has a fault ({})", status), Message("wait, then {}", _AGAIN))
        other = (Message("the hub refuses it ({})", status), _CHANGE)
        owner = Message(
            "log in with: hf auth login, or set HF_TOKEN to a token that may write to {}", repository.partition("/")[0]
        )
        refusals = {**_REFUSALS, 403: (Message("your token must not write there"), owner)}
        why, hint = refusals.get(status, fault if status >= 500 else other)
    elif HF_HUB_OFFLINE:
        why, said, hint = (
            Message("the hub cannot be reached"),
            Message("HF_HUB_OFFLINE is set"),
            Message("unset HF_HUB_OFFLINE"),
        )
    elif isinstance(error, ValueError):
        why, hint = Message("the hub refuses it"), _CHANGE
    else:
        why, hint = Message("the hub cannot be reached"), Message("check the network, then {}", _AGAIN)
    return DcclipError("{}: {}{}: {}", hint, repository, place, why, said)
