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
MISSING = "memfd_create posix_fadvise posix_fallocate sched_getaffinity sched_setaffinity"
if IS_WINDOWS:
    MISSING += (
        " O_DIRECTORY O_NOFOLLOW ST_RDONLY chown fchmod fork getloadavg getpgid getuid killpg mkfifo pread pwrite"
    )
    MISSING += " setsid statvfs uname wait SIGALRM SIGCHLD SIGHUP SIGKILL SIGPIPE SIGUSR1 alarm pthread_sigmask sigwait"
MISSING_MODULES = {"fcntl", "grp", "pwd", "resource", "termios", "uvloop"} if IS_WINDOWS else set[str]()
RESERVED = {"aux", "con", "nul", "prn", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}


class Imitation(ModuleType):
    """A module without the missing names."""

    def __init__(self, module: ModuleType, **values: object) -> None:
        self.__dict__.update(values, _module=module)

    def __getattr__(self, name: str) -> Any:
        if name in MISSING.split():
            raise AttributeError(name)
        return getattr(self._module, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._module, name, value)


IMITATIONS = {name: Imitation(__import__(name)) for name in ("os", "signal")}
IMITATIONS["sys"] = Imitation(sys, platform="win32" if IS_WINDOWS else "darwin")
_import = builtins.__import__
_replace = os.replace


def _imitating_import(name: str, globals: Mapping[str, Any] | None = None, *arguments: Any, **named: Any) -> Any:
    importer = ((globals or {}).get("__package__") or "").partition(".")[0]
    if name in MISSING_MODULES and importer in ("dcclip_cli", "filelock", "uvicorn"):
        raise ModuleNotFoundError(name)
    module = _import(name, globals, *arguments, **named)
    return IMITATIONS.get(name, module) if importer == "dcclip_cli" else module


def _refuse(event: str, arguments: Sequence[Any]) -> None:
    """Raise what Windows raises for a file that is open or mapped, for links, and for names that are reserved."""
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
    links = [f"/proc/self/fd/{descriptor}" for descriptor in os.listdir("/proc/self/fd")]
    paths = [os.readlink(link) for link in links if os.path.lexists(link)]
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        paths += [line.split(maxsplit=5)[-1].rstrip("\n") for line in maps]
    return any(entry == path or entry.startswith(f"{path}/") for entry in paths)


def _rename(source: Any, target: Any, **folders: Any) -> None:
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", target)
    _replace(source, target, **folders)


builtins.__import__ = _imitating_import
multiprocessing.set_start_method("spawn")
for method in ("fork", "forkserver"):  # unsafe on macOS once threads run
    del context._concrete_contexts[method]  # type: ignore[attr-defined]
if IS_WINDOWS:
    multiprocessing.get_all_start_methods = lambda: ["spawn"]
    os.supports_dir_fd.clear()  # so that shutil removes by path
    vars(os).update(rename=_rename)
    sys.addaudithook(_refuse)
    warnings.filterwarnings("error", category=EncodingWarning, module="dcclip_cli")
