"""An export that is stopped leaves nothing behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path


def test_a_stopped_export_removes_its_temporary_folders(model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "exports/out"
    command = [sys.executable, "-m", "dcclip_cli", "export", "--model", str(model_folder), "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(out.parent.glob(".out.graphs.*.partial/*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "stopped: run the same command again"
    assert list(out.parent.iterdir()) == []
