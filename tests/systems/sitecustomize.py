"""What Windows or macOS, named in $IMITATED_SYSTEM, lacks and refuses, in a process on Linux.

dcclip's code does not get what is missing there; libraries, which go by os.name, do. Rules about files are for all.
"""

import builtins
import errno
import multiprocessing
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing import context
from types import ModuleType
from typing import Any

IS_WINDOWS = os.environ["IMITATED_SYSTEM"] == "windows"
MISSING = {"os": "memfd_create posix_fadvise posix_fallocate sched_getaffinity sched_setaffinity", "signal": ""}
if IS_WINDOWS:
    MISSING["os"] += " O_DIRECTORY O_NOFOLLOW ST_RDONLY chown fchmod fork getloadavg getpgid getuid killpg mkfifo"
    MISSING["os"] += " pread preadv pwrite pwritev setsid statvfs uname wait"
    MISSING["signal"] = "SIGALRM SIGCHLD SIGHUP SIGKILL SIGPIPE SIGUSR1 alarm pthread_sigmask setitimer sigwait"
MISSING_MODULES = {"fcntl", "grp", "pwd", "resource", "termios", "tty", "uvloop"} if IS_WINDOWS else set[str]()
RESERVED = {"aux", "con", "nul", "prn", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}


class Imitation(ModuleType):
    """A module without some names."""

    def __init__(self, module: ModuleType, missing: str = "", **values: object) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(values, _module=module, _missing=missing.split())

    def __getattr__(self, name: str) -> Any:
        if name in self._missing:
            raise AttributeError(f"module {self.__name__} has no attribute {name}")
        return getattr(self._module, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._module, name, value)


IMITATIONS = {name: Imitation(__import__(name), missing) for name, missing in MISSING.items()}
IMITATIONS["sys"] = Imitation(sys, platform="win32" if IS_WINDOWS else "darwin")
_import = builtins.__import__


def _imitating_import(name: str, globals: Mapping[str, Any] | None = None, *arguments: Any, **named: Any) -> Any:
    importer = ((globals or {}).get("__package__") or "").partition(".")[0]
    if name in MISSING_MODULES and importer in ("dcclip_cli", "filelock", "uvicorn"):
        raise ModuleNotFoundError(name)
    module = _import(name, globals, *arguments, **named)
    return IMITATIONS.get(name, module) if importer == "dcclip_cli" else module


builtins.__import__ = _imitating_import
multiprocessing.set_start_method("spawn")
for method in ("fork", "forkserver"):  # unsafe on macOS once threads run
    del context._concrete_contexts[method]  # type: ignore[attr-defined]
if IS_WINDOWS:
    multiprocessing.get_all_start_methods = lambda: ["spawn"]

# ---- Windows' rules about files, and its encodings: every text file needs a named one


def _refuse(event: str, arguments: Sequence[Any]) -> None:
    if event in ("os.rename", "os.remove"):
        for path in arguments[: 1 + (event == "os.rename")]:
            if _is_open(os.path.realpath(os.fsdecode(path))):
                raise PermissionError(errno.EACCES, "The file is being used by another process", path)
    elif event == "os.symlink":
        raise OSError(errno.EPERM, "A required privilege is not held by the client", arguments[1])
    elif event == "os.mkdir" or (event == "open" and arguments[2] & os.O_CREAT):
        name = os.path.basename(os.fsdecode(arguments[0])) if not isinstance(arguments[0], int) else ""
        if name.partition(".")[0].lower() in RESERVED or set('<>:"|?*\\') & set(name) or name.endswith((" ", ".")):
            raise OSError(errno.EINVAL, "The filename, directory name, or volume label syntax is incorrect", name)


def _is_open(path: str) -> bool:
    """Whether this process has a file, or one in a folder, open or mapped."""
    paths = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            paths.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:  # of the listing itself
            continue
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        paths += [fields[5].rstrip("\n") for fields in (line.split(maxsplit=5) for line in maps) if len(fields) == 6]
    return any(entry == path or entry.startswith(f"{path}/") for entry in paths)


def _rename(source: Any, target: Any, **folders: Any) -> None:
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", target)
    _replace(source, target, **folders)


def _replace_file(source: Any, target: Any, **folders: Any) -> None:
    if os.path.isdir(target):
        raise PermissionError(errno.EACCES, "Access is denied", target)
    _replace(source, target, **folders)


if IS_WINDOWS:
    os.supports_dir_fd.clear()  # so that shutil removes by path
    _replace = os.replace
    vars(os).update(rename=_rename, replace=_replace_file)
    sys.addaudithook(_refuse)
    warnings.filterwarnings("error", category=EncodingWarning, module="dcclip_cli")
