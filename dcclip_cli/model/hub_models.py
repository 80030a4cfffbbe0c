"""Models of open_clip and transformers on a hub or in a directory, judged by their files before
one is built.

Every file that is needed is there, nothing leads out of a directory or runs code, and no number is
beyond all bounds. The rest is the libraries' to judge: `library_errors` turns what they raise into
an error that names the model.
"""

import errno
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import read_json
from dcclip_cli.core.hub import OPEN_CLIP_SCHEME, cached_folder, files_on_hub
from dcclip_cli.model.preprocess import Preprocessing
from dcclip_cli.model.weights import CONFIG, TRANSFORMERS_WEIGHTS

TRANSFORMERS_CONFIG = "config.json"
IMAGE_PROCESSOR = "preprocessor_config.json"
SENTENCEPIECE = ("sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
COPY_AGAIN = Message("copy the whole model directory again")
_TOKENIZER_ARGUMENTS = {
    "additional_special_tokens",
    "clean",
    "language",
    "reduction_mask",
    "strip_sep_token",
}
_PREPROCESSING = {
    "size",
    "mode",
    "mean",
    "std",
    "interpolation",
    "resize_mode",
    "fill_color",
    "crop",
}
CHECK_NAME = Message("check the name and the network connection, or give the path of a directory")
ELSEWHERE = Message("use the name of a timm network, and keep the weights in the directory")
# of any number in a configuration, and of layers
_MAX_NUMBER = 4_000_000
_MAX_LAYERS = 512


@contextmanager
def library_errors(problem: str, hint: str) -> Iterator[None]:
    """What another library raises for a configuration that it cannot use becomes a DcclipError
    after `problem`.
    """
    from huggingface_hub.errors import EntryNotFoundError, StrictDataclassError

    unusable = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError)
    try:
        yield
    except (
        *unusable,
        RuntimeError,
        TypeError,
        ValueError,
        EntryNotFoundError,
        StrictDataclassError,
    ) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = " ".join(
            str(error.args[0] if isinstance(error, KeyError) and error.args else error).split()
        )
        if not reason and (frames := traceback.extract_tb(error.__traceback__)):
            reason = frames[-1].line or ""  # of an assertion without words, what it asserts
        if type(error) not in (OSError, RuntimeError, ValueError):
            reason = f"{type(error).__name__}: {reason}"
        raise DcclipError("{}: {}", hint, problem, reason[:300]) from None


def checked_json(file: Path, hint: str = COPY_AGAIN, limit: int = _MAX_NUMBER) -> dict[str, Any]:
    """The JSON object in a configuration. Raises DcclipError for sizes over `limit` or 512 layers,
    to save minutes.
    """
    content = read_json(file, hint)
    for key, value in _numbers(content):
        if abs(value) > (_MAX_LAYERS if key.endswith("layers") else limit):
            raise DcclipError(
                "{}: {} is {}, which is out of range", hint, file, key, str(value)[:60]
            )
    return content


def _numbers(content: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    """The numbers in JSON, each with its key: `text_config.hidden_size`, without those of a tower
    for sound.
    """
    if isinstance(content, dict | list):
        for name, value in content.items() if isinstance(content, dict) else enumerate(content):
            if name != "audio_config":
                yield from _numbers(value, f"{key}.{name}" if key else str(name))
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield key, content


def open_clip_config(folder: Path, on_hub: bool = False) -> dict[str, Any]:
    """The open_clip_config.json of a directory or repository. Raises DcclipError for what leads
    out or runs code.
    """
    file = folder / CONFIG
    content = checked_json(file, Message("make a model with: dcclip run recipes/quickstart.yaml"))
    model: Any = content.get("model_cfg")
    for name in ("text_cfg", "vision_cfg"):
        if not isinstance(model, dict) or not isinstance(model.get(name), dict):
            raise DcclipError(
                "{}: {} is missing or is not a JSON object", COPY_AGAIN, file, f"model_cfg.{name}"
            )
    text = model["text_cfg"]
    network = model["vision_cfg"].get("timm_model_name")
    if unknown := {*(text.get("tokenizer_kwargs") or ())} - _TOKENIZER_ARGUMENTS:
        where = f"{file}: model_cfg.text_cfg.tokenizer_kwargs: {min(unknown)}"
        raise DcclipError(
            "{} is not allowed: it could run code or read other files", "remove it", where
        )
    if text.get("pool_type") == "eos" and text.get("eos_id", 2) not in range(_MAX_NUMBER):
        where = f"{file}: model_cfg.text_cfg.eos_id"
        raise DcclipError("{} is not a token id: {}", COPY_AGAIN, where, str(text["eos_id"])[:60])
    with library_errors(f"{file}: preprocess_cfg", COPY_AGAIN):
        settings = dict(content.get("preprocess_cfg") or {})
        if unknown := settings.keys() - _PREPROCESSING:
            raise ValueError(Message("{}: unknown key", min(unknown)))
        Preprocessing.from_config(settings)
    if network is not None and not (on_hub and str(network).startswith(f"{OPEN_CLIP_SCHEME}:")):
        check_timm_name(str(network), f"{file}: model_cfg.vision_cfg.timm_model_name", ELSEWHERE)
    return content


def check_timm_name(network: str, where: str, hint: str | None = None) -> None:
    """Raise DcclipError, with the nearest right name, unless timm has a network of that name."""
    import difflib

    import timm

    if ":" in network:
        message = Message("{}: {} refers to a hub or another directory", where, network)
        raise DcclipError(message, hint or Message("choose the name of a timm network"))
    name = network.partition(".")[0]
    if timm.is_model(name):
        with suppress(RuntimeError):  # it has no such tag
            timm.get_pretrained_cfg(network, allow_unregistered=True)
            return
    networks = timm.list_pretrained(name) if timm.is_model(name) else timm.list_models()
    near = ", ".join(difflib.get_close_matches(network, networks, 3, 0.5))
    advice = (
        Message("did you mean {}?", near)
        if near
        else Message("list timm's networks in Python: timm.list_models()")
    )
    raise DcclipError("{}: timm has no network '{}'", advice, where, network)


def check_directory(folder: Path) -> None:
    """Raise DcclipError where a file leads out of a model directory; links of the hub's cache lead
    to its `blobs`.
    """
    inside = [folder.resolve()]
    if inside[0].parent.name == "snapshots":
        inside.append(inside[0].parents[1] / "blobs")
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink():
            try:
                target = entry.resolve(strict=True)
            except (OSError, RuntimeError):  # a loop
                raise DcclipError("{} is a broken link", COPY_AGAIN, entry) from None
            if not any(target.is_relative_to(root) for root in inside):
                raise DcclipError(
                    "{} is a link to {}, which is outside the model directory",
                    "copy the linked file into the directory",
                    entry,
                    target,
                )
    if (folder / "adapter_config.json").exists():
        message = Message("{} is an adapter for another model (adapter_config.json)", folder)
        raise DcclipError(message, "merge it into that model with peft, and save the merged model")


def check_timm(network: str) -> None:
    """Raise DcclipError unless timm's weights of a network are in the local cache or on a hub that
    can be reached.
    """
    import timm

    config = timm.get_pretrained_cfg(network, allow_unregistered=True)
    if config is None or not config.has_weights:
        raise DcclipError(
            "timm has no pretrained weights for {}",
            "use another network, or a .safetensors file",
            network,
        )
    check_repository((config.hf_hub_id or "").partition("@")[0], TRANSFORMERS_WEIGHTS)


def check_repository(name: str, weights: Collection[str]) -> None:
    """Raise DcclipError unless a repository's weights, one of these files, are in the local cache
    or can be reached.
    """
    if name and not any(cached_folder(name, file) for file in weights):
        files_on_hub(name)
