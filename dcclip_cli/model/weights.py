"""Weight files of models: finding them on disk or on the hub, safetensors copies of pickled ones,
and their digests.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import atomic_folder, cache_folder, file_sha256, lock, read_json, remove
from dcclip_cli.core.progress import Progress, Silent

if TYPE_CHECKING:
    from torch import Tensor, nn

CONFIG = "open_clip_config.json"  # of a directory with weights of open_clip
SAFETENSORS = "model.safetensors"
TRANSFORMERS_WEIGHTS = (SAFETENSORS, "pytorch_model.bin")  # the first that exists is read
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_AGAIN = Message("copy the whole model directory again")
_FILE_AGAIN = Message("copy or download the file again")
_FLOATS = ("F64", "F32", "F16", "BF16")
LARGE_BYTES = 300_000_000  # loading so much takes seconds


def find_weights(model: str, names: Sequence[str]) -> list[Path]:
    """The files of a model's weights, by the first of `names` that exists, downloaded from a hub
    if missing.
    """
    for name in names:
        if file := find_file(model, name):
            return [file]
        if index := find_file(model, f"{name}.index.json"):
            listed = read_json(index, _AGAIN).get("weight_map")
            if not isinstance(listed, dict) or not listed:
                raise DcclipError("{} lists no weights (weight_map)", _AGAIN, index)
            for shard in listed.values():
                if not isinstance(shard, str) or Path(shard).name != shard:
                    message = Message(
                        "{}: weight_map: {!r:.100} is not the name of a file in the same folder",
                        index,
                        shard,
                    )
                    raise DcclipError(message, _AGAIN)
            files = {shard: find_file(model, shard) for shard in sorted(set(listed.values()))}
            if missing := [shard for shard, file in files.items() if file is None]:
                raise DcclipError(
                    "{} lacks {}, which {} lists",
                    "copy the model again",
                    model,
                    missing[0],
                    index.name,
                )
            return [file for file in files.values() if file is not None]
    raise DcclipError(
        "{} has no {}", "copy or download the whole model again", model, " or ".join(names)
    )


def find_file(model: str, name: str) -> Path | None:
    """A file of a model; None if there is none. Offline, what is not in the hub's cache does not
    exist.
    """
    from huggingface_hub.errors import EntryNotFoundError

    if Path(model).is_dir():
        file = Path(model) / name
        return file if file.is_file() else None
    try:
        return require_file(model, name)
    except EntryNotFoundError:
        return None


def require_file(model: str, name: str) -> Path:
    """As `find_file`, but raises DcclipError, or EntryNotFoundError with the hub's reason, if
    there is none.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RepositoryNotFoundError

    if Path(model).is_dir():
        if file := find_file(model, name):
            return file
        raise DcclipError("{} has no {}", _AGAIN, model, name)
    try:
        return Path(hf_hub_download(model, name))
    except RepositoryNotFoundError:
        raise OSError(f"the Hugging Face Hub has no public model {model}") from None


def weights_digest(files: Sequence[Path]) -> str:
    """A sha256 of the content of weight files. Files in the hub's cache are named by theirs, and
    need not be read.
    """
    digests = []
    for file in files:
        blob = file.resolve()
        is_blob = blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name)
        digests.append(blob.name if is_blob else file_sha256(file))
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def as_safetensors(
    files: list[Path], name: str, digest: str = "", progress: Progress | None = None
) -> list[Path]:
    """The `files` of weights, or in place of pickled ones their copy as model.safetensors in the
    cache folder.

    It is made once, for all processes; `digest` is that of `files`, if it is known. Only tensors
    are unpickled: raises DcclipError for a file that contains anything else.
    """
    say = (progress or Silent()).say
    if files[0].suffix != ".safetensors":
        from safetensors.torch import save_file

        folder = cache_folder() / "weights" / (digest or weights_digest(files))[:32]
        copy = folder / SAFETENSORS
        if not _is_whole(copy, say):
            with lock(folder.with_suffix(".lock")):
                if not _is_whole(copy, say):
                    message = Message(
                        "{} has only pickled weights ({}): reading only tensors, and "
                        "saving a safetensors copy in {}",
                        *(name, files[0].name, folder),
                    )
                    say(message)
                    with atomic_folder(folder) as temporary:
                        weights = {
                            key: value for file in files for key, value in unpickled(file).items()
                        }
                        save_file(_apart(weights), temporary / SAFETENSORS, {"format": "pt"})
        files = [copy]
    if (size := sum(file.stat().st_size for file in files)) >= LARGE_BYTES:
        say(Message("loading {}: {:,.0f} MB of weights", name, size / 1e6))
    return files


def _is_whole(copy: Path, say: Callable[[str], None]) -> bool:
    """Whether there is a copy of weights. One whose header does not fit its size is removed, after
    a warning.
    """
    if not copy.parent.exists():
        return False
    try:
        stored_tensors([copy])
    except DcclipError as error:
        say(Message("warning: {}: creating it again", error.what))
        remove(copy.parent)
        return False
    return True


class StoredTensor(NamedTuple):
    """A tensor in a safetensors file: the type of its numbers, as in `F32`, and its shape."""

    dtype: str
    shape: tuple[int, ...]


def stored_tensors(files: Sequence[Path]) -> dict[str, StoredTensor]:
    """The tensors in safetensors files by name, from the files' headers. Raises DcclipError for a
    damaged file.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, StoredTensor] = {}
    for file in files:
        try:
            with file.open("rb"), safe_open(file, "pt") as content:
                for name in content.keys():  # noqa: SIM118  # it is no mapping
                    tensor = content.get_slice(name)
                    tensors[name] = StoredTensor(str(tensor.get_dtype()), tuple(tensor.get_shape()))
        except (SafetensorError, OSError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise DcclipError(
                "{} is not a readable safetensors file: {}", _FILE_AGAIN, file, reason
            ) from None
    return tensors


def check_fit(
    model: nn.Module,
    files: Sequence[Path],
    config: str,
    ignored: Collection[str] = (),
    exact: bool = True,
) -> None:
    """Raise DcclipError unless weights fit a model by their headers; if `exact`, with none but
    these and `ignored`.
    """
    stored = stored_tensors(files)
    expected = model.state_dict()
    where = files[0] if len(files) == 1 else files[0].parent
    hint = Message(
        "copy the whole model again: {} and the weights are from different models", config
    )
    for name, weight in expected.items():
        if name not in stored:
            continue
        dtype, shape = stored[name]
        if shape != tuple(weight.shape):
            raise DcclipError(
                "{}: {} has the shape {}; {} requires {}",
                hint,
                where,
                name,
                shape,
                config,
                tuple(weight.shape),
            )
        if weight.is_floating_point() and dtype not in _FLOATS:
            message = Message(
                "{}: {} has the data type {} instead of {}", where, name, dtype, ", ".join(_FLOATS)
            )
            raise DcclipError(message, "use weights without quantization")
    if exact and (missing := sorted(expected.keys() - stored.keys())):
        raise DcclipError("{} lacks {} ({} missing in all)", hint, where, missing[0], len(missing))
    if exact and (unknown := sorted(stored.keys() - expected.keys() - set(ignored))):
        message = Message(
            "{} contains {}, which is not part of the model ({} such weights)",
            where,
            unknown[0],
            len(unknown),
        )
        raise DcclipError(message, hint)


def unpickled(file: Path) -> dict[str, Tensor]:
    """The tensors in a checkpoint of torch.save, by name, read by torch's restricted unpickler.

    A training checkpoint's `state_dict` is taken out of it, and `module.` off its names. Raises
    DcclipError if the file contains code or no tensors, or is damaged.
    """
    import torch

    try:
        checkpoint: Any = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except pickle.UnpicklingError as error:
        if foreign := re.search(
            r"GLOBAL (\S+)", str(error)
        ):  # torch's advice to turn the check off is left out
            message = Message(
                "{} is rejected: it refers to {} besides weights, and could run code",
                file,
                foreign[1],
            )
        else:
            message = Message(
                "{} is rejected: torch.save did not write it, or it contains more than weights",
                file,
            )
        raise DcclipError(message, "use a model with safetensors weights") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DcclipError("{} cannot be read: {}", _FILE_AGAIN, file, reason) from None
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get("state_dict"), dict):
        checkpoint = checkpoint["state_dict"]
    named = checkpoint.items() if isinstance(checkpoint, dict) else ()
    tensors = {
        str(key).removeprefix("module."): value
        for key, value in named
        if isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise DcclipError(
            "{} contains no named tensors", "use a model with safetensors weights", file
        )
    return tensors


def _apart(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as contiguous tensors that share no memory, as safetensors needs them."""
    storages: set[int] = set()
    apart = {}
    for name, value in weights.items():
        place = value.untyped_storage().data_ptr()
        apart[name] = value.clone().contiguous() if place in storages else value.contiguous()
        storages.add(place)
    return apart
