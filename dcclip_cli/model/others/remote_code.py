"""Python code in a model's repository or directory: finding it, and running it where the user has allowed that."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.model.weights import require_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_CLASS = re.compile(r"([A-Za-z_]\w*)\.([A-Za-z_]\w*)", re.ASCII)  # MODULE.CLASS; `ORG/NAME--` before it: elsewhere
_CONFIG, _MODEL = "AutoConfig", ("AutoModel", "AutoModelForCausalLM")  # keys of auto_map; FG-CLIP2 has the last
_AGAIN = Message("copy the whole model directory again")


@dataclass(frozen=True)
class RemoteCode:
    """The code that builds a model, found but not run. `config` and `model` are its classes, each MODULE.CLASS."""

    name: str  # of the repository, or its directory
    config: str
    model: str

    @property
    def modules(self) -> list[str]:
        return list(dict.fromkeys(one.partition(".")[0] for one in (self.config, self.model)))

    def refuse(self) -> None:
        """Raise DcclipError, which says what would run and how to allow it."""
        files = ", ".join(f"{module}.py" for module in self.modules)
        what = Message("{} is built by its own code ({}), which is not run unless you allow it", self.name, files)
        raise DcclipError(
            what,
            "read these files; then add --trust-remote-code, which dcclip eval and trim have, "
            "or teacher: {{kind: fgclip2, trust_remote_code: true}} in a recipe",
        )

    def open(self, folder: Path) -> AllowedCode:
        """The code with all files that it imports, next to config.json in `folder`; they are downloaded, not run."""
        return AllowedCode(self, folder, tuple(_files(self, folder)))


@dataclass(frozen=True)
class AllowedCode:
    """Code that the user has allowed to run in this process, by its `files`, all of them in `folder`."""

    code: RemoteCode
    folder: Path
    files: tuple[Path, ...]

    @property
    def sha256(self) -> str:
        """A hash over the names and the contents of all files."""
        parts = [f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in sorted(self.files)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def __str__(self) -> str:
        is_revision = self.folder.parent.name == "snapshots"  # in the hub's cache
        version = f"revision {self.folder.name}" if is_revision else f"sha256 {self.sha256[:16]}"
        return f"{self.code.name} ({version}): {', '.join(file.name for file in self.files)}"

    def model_class(self) -> Any:
        """The class of the model, with that of its configuration as `config_class`.

        transformers copies the configuration's code once for itself and once for the model: of two classes.
        """
        return self._run(self.code.model)

    def _run(self, name: str) -> Any:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        _put_back_attention_masks()
        try:
            return get_class_from_dynamic_module(name, str(self.folder), local_files_only=True)
        except (ImportError, SyntaxError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            hint = Message(
                "install the packages that it names, or use the revision of the model that fits your transformers"
            )
            raise DcclipError("the code of {} cannot be run: {}", hint, self.code.name, reason) from None


def remote_code(model: str, config: Mapping[str, Any], file: Path) -> RemoteCode:
    """The code that the config.json in `file` names in its `auto_map`.

    Raises DcclipError if there is none, or it is in another repository.
    """
    named = config.get("auto_map")
    named = named if isinstance(named, dict) else {}
    found = {key: named[key] for key in (_CONFIG, *_MODEL) if key in named}
    model_key = next((key for key in _MODEL if key in found), None)
    if _CONFIG not in found or model_key is None:
        what = Message(
            "{}: auto_map names no {}, and transformers has none", file, _CONFIG if _CONFIG not in found else _MODEL[0]
        )
        raise DcclipError("{} for model_type {}", _AGAIN, what, config.get("model_type"))
    for key, name in found.items():
        if not isinstance(name, str) or not _CLASS.fullmatch(name):
            what = Message("{}: auto_map: {}: {!r:.100} is not MODULE.CLASS of a file next to it", file, key, name)
            raise DcclipError(what, "use a model whose code is in its own repository")
    return RemoteCode(model, found[_CONFIG], found[model_key])


def _files(code: RemoteCode, folder: Path) -> Iterator[Path]:
    """The files of the code and of what they import from files next to them, in the order in which they are found."""
    from transformers.dynamic_module_utils import get_relative_imports

    modules, seen = code.modules, set[str]()
    while modules:
        module = modules.pop(0)
        if module in seen:
            continue
        seen.add(module)
        if not module.isidentifier():
            raise DcclipError("the code of {} imports .{}, which is not a file next to it", _AGAIN, code.name, module)
        file = require_file(code.name, f"{module}.py")
        if file.parent != folder:
            raise DcclipError("{} was changed while it was loaded", "run the command again", code.name)
        yield file
        modules += get_relative_imports(file)


def _put_back_attention_masks() -> None:
    """Register the module of transformers whose one function FG-CLIP2's code imports, where it has been removed.

    transformers 5.20 has it, 5.24 does not.
    """
    name = "transformers.modeling_attn_mask_utils"
    if name in sys.modules or find_spec(name) is not None:
        return
    module = ModuleType(name)
    module._prepare_4d_attention_mask = _prepare_4d_attention_mask  # type: ignore[attr-defined]
    sys.modules[name] = module


def _prepare_4d_attention_mask(mask: Tensor, dtype: torch.dtype, tgt_len: int | None = None) -> Tensor:
    """(B, 1, T, S) of a mask (B, S): 0 where it is 1, else the least number; as transformers 5.20 has it."""
    import torch

    dropped = (mask == 0)[:, None, None].expand(-1, 1, tgt_len or mask.shape[1], -1)
    return torch.zeros_like(dropped, dtype=dtype).masked_fill(dropped, torch.finfo(dtype).min)
