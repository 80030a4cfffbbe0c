"""The commands on Windows and macOS, as far as a process on Linux can imitate them: tests/systems."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from dcclip_cli.data.pair import Pair
from tests import installed
from tests.images import encode
from tests.tars import tar_of

ROOT = Path(__file__).parents[1]
COMMANDS = """
import importlib, json, pkgutil, sys, dcclip_cli
if sys.argv[1] == "windows":  # which lacks all that macOS lacks
    for module in pkgutil.walk_packages(dcclip_cli.__path__, "dcclip_cli."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
from dcclip_cli.cli.app import app
from dcclip_cli.core.machine import cores, loading_processes
assert cores() >= 1 and loading_processes(2) == 0
for command in json.load(sys.stdin):
    assert not app(command, standalone_mode=False), command
"""
SHARED_FILE = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from dcclip_cli.core.files import read_at
open(sys.argv[1], "wb").write(b"".join(b"%04d" % place for place in range(500)))
descriptor = os.open(sys.argv[1], os.O_RDONLY)
with ThreadPoolExecutor(8) as pool:
    parts = list(pool.map(lambda place: read_at(descriptor, 4, 4 * place), range(500)))
assert parts == [b"%04d" % place for place in range(500)], parts
"""


def environment(system: str, encoding: str = "utf-8") -> dict[str, str]:
    """Variables of a process that imitates a system, with its streams in this encoding."""
    folders = os.pathsep.join(map(str, (ROOT / "tests/systems", ROOT)))
    settings = {"IMITATED_SYSTEM": system, "PYTHONIOENCODING": encoding, "PYTHONPATH": folders}
    return os.environ | settings | {"PYTHONWARNDEFAULTENCODING": "1", "PYTHONWARNINGS": "ignore"}


@pytest.mark.parametrize("system", ["windows", "macos"])
def test_the_commands_work(system: str, tmp_path: Path, whole_recipe: dict[str, Any], pairs: list[Pair]) -> None:
    folder = tmp_path / "图 pictures"
    folder.mkdir()
    for pair in pairs[:30]:
        (folder / f"{pair.key}.png").write_bytes(pair.image)
        (folder / f"{pair.key}.json").write_text(json.dumps({"zh": pair.zh, "en": pair.en}), "utf-8")
    near_duplicate = Image.open(io.BytesIO(pairs[0].image)).convert("RGB")
    (folder / "near.jpg").write_bytes(encode(near_duplicate, "JPEG", quality=60))
    (folder / "near.zh.txt").write_text("红色的圆\n", "utf-8")
    (tmp_path / "rest.tar").write_bytes(tar_of(pairs[30:]))
    sources = [{"kind": "folder", "path": str(folder)}, {"kind": "tars", "path": str(tmp_path / "rest.tar")}]
    collected = {"collect": {"sources": sources, "filters": [{"kind": "image"}], "shard_size": 20}}
    recipe = whole_recipe | collected | {"data": {"train": "collect"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), "utf-8")
    commands = [["collect", "recipe.yaml", "--workers", "2", "-q"]]
    bundle = ["--model", "runs/一生/export", "-q"]
    if system == "windows":  # training needs no process on either; the first export, which is replaced, traces nothing
        commands += [
            ["run", "recipe.yaml", "--set", "export.format=open_clip"],
            *([command, "recipe.yaml", "--fresh", "-q"] for command in ("align", "export")),
            ["predict", str(folder / "red-circle.png"), "--labels", "红色的圆,green moon", *bundle],
            *([["search", "红色的圆", str(folder), "--json", *bundle]] * 2),
            ["embed", str(folder), "--out", "rows.npy", *bundle],
        ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, system],
        cwd=tmp_path,
        env=environment(system),
        input=json.dumps(commands),
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("encoding", ["cp936", "cp1252"])
def test_chinese_is_printed_in_an_encoding_of_windows(encoding: str) -> None:
    command = ["predict", "docs/images/cat.png", "--labels", "猫,dog", "--model", "starter", "--json", "-q"]
    done = subprocess.run(
        [sys.executable, "-m", "dcclip_cli", *command], cwd=ROOT, env=environment("windows", encoding), check=True,
        capture_output=True,
    )  # fmt: skip
    assert json.loads(done.stdout.decode(encoding))[0]["labels"][0]["label"] == "猫"


@pytest.mark.parametrize("system", ["windows", "docker", "dcclip", "immich", "systemd"])
def test_the_server_answers_as_the_files_of_the_repository_start_it(system: str, tmp_path: Path) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    nas = ROOT / "integrations/nas"
    [extras] = re.findall(r"pip install .*/src\[([\w,]+)\]", dockerfile)
    settings = environment(system) if system == "windows" else installed.environment(extras.split(","))
    command = json.loads(re.findall("^ENTRYPOINT (.+)", dockerfile, re.M)[0])
    if service := yaml.safe_load((nas / "compose.yaml").read_text("utf-8"))["services"].get(system):
        command += service["command"]
    elif system == "systemd":
        unit = ConfigParser(interpolation=None)
        unit.read(nas / "dcclip.service", "utf-8")
        command = shlex.split(unit["Service"]["ExecStart"])
    Image.new("RGB", (40, 30), "red").save(tmp_path / "红.png")
    values = {"8000": "0", "/photos": str(tmp_path), "/srv/photos": str(tmp_path)}
    program, *arguments = (values.get(word, word) for word in command)
    assert Path(program).name == "dcclip"
    headers = {"Content-Type": "application/json"}
    if system in ("dcclip", "systemd"):  # which show photographs
        settings |= {"DCCLIP_TOKEN": "secret"}
        headers["Authorization"] = "Bearer secret"
    command = [sys.executable, "-m", "dcclip_cli", *arguments, "-q"]
    with subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, encoding="utf-8") as server:
        assert server.stdout
        url = server.stdout.readline().strip()
        request = urllib.request.Request(f"{url}v1/embeddings", json.dumps({"input": "一只猫"}).encode(), headers)
        assert len(json.load(urllib.request.urlopen(request))["data"]) == 1
        folders = urllib.request.urlopen(urllib.request.Request(f"{url}folders", headers=headers)).read().decode()
        assert ("红.png" in folders) == ("Authorization" in headers)
        server.terminate()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = (ROOT / "integrations/nas/dcclip.service").read_text("utf-8")
    file = tmp_path / "dcclip.service"
    file.write_text(unit.replace("/opt/dcclip/bin/dcclip", sys.executable), "utf-8")
    done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")


def test_files_are_shared_by_threads_and_damaged_ones_removed_on_windows(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", SHARED_FILE, tmp_path / "a"], env=environment("windows"), check=True)
    tests = ["tests/core/test_store.py", "-k", "is_no_block", "-q", "--noconftest", "-p", "no:cacheprovider"]
    tests += ["--basetemp", str(tmp_path / "tests")]  # else pytest removes folders of earlier runs, which is slow here
    subprocess.run([sys.executable, "-m", "pytest", *tests], cwd=ROOT, env=environment("windows"), check=True)
