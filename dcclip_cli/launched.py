"""A process of several that `--processes` started: it reports errors to the command, which prints them once."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # anything else is imported where signals end the command
if TYPE_CHECKING:
    from pathlib import Path

REPORTS = "DCCLIP_REPORTS"  # the environment variable that names the folder for reports
_LOOKS_S = 0.5


def is_launched() -> bool:
    """Whether `dcclip --processes` started this process."""
    return REPORTS in os.environ


def report(**content: str) -> None:
    """Leave a report for the command: `what` and `hint`, `traceback` or `kept`. Only the first one counts."""
    import json
    import time
    from pathlib import Path

    file = Path(os.environ[REPORTS], f"{os.environ['RANK']}.json")
    if file.exists() or not file.parent.is_dir():  # nobody reads it any more
        return
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({**content, "rank": os.environ["RANK"], "time": time.time()}), "utf-8")
    partial.replace(file)


def reports(folder: Path) -> list[dict[str, str]]:
    """The reports in a folder, in the order of time."""
    import json

    found = [json.loads(file.read_text("utf-8")) for file in folder.glob("*.json")]
    return sorted(found, key=lambda one: float(one["time"]))


def end_with_command() -> None:
    """Let this process end as with SIGTERM, with its state saved, when the command that started it is killed."""
    import shutil
    import signal
    import threading
    import time

    command = os.getppid()

    def watch() -> None:
        while os.getppid() == command:
            time.sleep(_LOOKS_S)
        shutil.rmtree(os.environ[REPORTS], ignore_errors=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
