"""An export that is stopped leaves nothing behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_export_removes_its_temporary_folders(
    number: signal.Signals, code: int, model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "exports/out"
    command = [sys.executable, "-m", "dcclip_cli", "export", "--model", str(model_folder), "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(out.parent.glob(".out.graphs.*.partial/*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert said.startswith("stopped: ") or "\nstopped: " in said
    assert list(out.parent.iterdir()) == []
