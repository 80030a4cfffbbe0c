"""The valid inputs that cases damage, made by the program's own commands from drawn pictures and a random teacher.

As a script it writes those that no command makes, into a folder.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from tests.hostile.case import CASE, Case, request
from tests.hostile.server import Outcome, Server, quiet_libraries

STAGE: dict[str, Any] = {
    "batch_size": 8,
    "warmup_steps": 1,
    "workers": 0,
    "threads": 1,
    "precision": "fp32",
    "augmentations": 1,
}
RECIPE: dict[str, Any] = {
    "format": 1,
    "name": "tiny",
    "seed": 0,
    "teacher": {"kind": "altclip", "model": "./teacher"},
    "student": {
        "image": {"timm": "test_efficientnet.r160_in1k", "size": 32},
        "text": {
            "layers": 1,
            "width": 32,
            "heads": 1,
            "context_length": 24,
            "vocabulary": {"from": "data", "size": 300},
        },
        "embed_dim": 16,
    },
    "data": {"train": "./train.parquet", "validation": "./train.parquet"},
    "distill": {**STAGE, "steps": 3, "optimizer": {"kind": "adamw", "lr": 1e-3}},
    "align": {**STAGE, "steps": 2},
    "eval": {"datasets": ["./train.parquet"], "languages": ["zh", "en"], "precision": "fp32"},
    "export": {"format": "onnx", "precision": "fp32"},
}
COLLECT: dict[str, Any] = {
    "name": "gathered",
    "collect": {"sources": [{"kind": "table", "path": "./table.tsv"}], "filters": [], "shard_size": 10},
}
# Commands on the undamaged corpus, whose results cases compare with or damage.
EVAL = ("eval", "--model", "model", "--dataset", "./train.parquet", "--precision", "fp32", "-q")
DISTILL_HALF = ("distill", "recipe.yaml", "--out", "stopped", "--set", "distill.steps=12", "-q")
COLLECT_HALF = ("collect", "collect.yaml", "--out", "half", "--workers", "1", "-q", "--set", "collect.shard_size=2")
PICKLED = ("predict", "pictures/red-circle.png", "--labels", "猫,dog", "--model", "pickled", "--json", "-q")
SEARCH = ("search", "红圆 red circle", "pictures", "--model", "bundle", "--json", "-q")


def make_corpus(work: Path, server: Server) -> Path:
    """Make `work`/corpus: everything that cases name as their parts, `cache/NAME` for caches.

    It is made where the cases of a Runner with the same `work` run: some caches are found by the paths of files.
    """
    corpus, work = work / "corpus", work / CASE
    here = work / "here"
    for name in ("here", "home", "tmp", "cache"):
        (work / name).mkdir(parents=True)
    (work / "stdin").touch()
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "tests.hostile.corpus", str(here)]
    subprocess.run(command, check=True, cwd=root, env=os.environ | {"PYTHONPATH": root, **quiet_libraries()})
    _run(server, work, "run", "recipe.yaml")
    shutil.copytree(here / "runs/tiny/align/model", here / "model")
    shutil.copytree(here / "runs/tiny/export", here / "bundle")
    shutil.copytree(here / "runs/tiny/eval", here / "results")
    often = ("--set", "distill.checkpoint_every_steps=4")
    _stop(server, work, "stopped/distill/state/step-00000004", *DISTILL_HALF, *often)
    _stop(server, work, "half/.collect.partial/dedup", *COLLECT_HALF)
    _run(server, work, *EVAL)
    _run(server, work, *SEARCH)
    _run(server, work, "index", "indexed", "-q")
    _run(server, work, *PICKLED)
    _run(server, work, "collect", "collect.yaml", "--workers", "1", "-q")
    here.rename(corpus)
    (work / "cache").rename(corpus / "cache")
    shutil.rmtree(work)
    return corpus


def _run(server: Server, work: Path, *arguments: str) -> Outcome:
    outcome = server.run(request(Case("corpus", arguments, limit_s=300), work))
    if outcome.code:
        raise RuntimeError(f"{arguments} ended with {outcome.code}: {(work / 'stderr').read_text('utf-8')}")
    return outcome


def _stop(server: Server, work: Path, path: str, *arguments: str) -> None:
    """A run killed as soon as a path exists, or at the second or third try where it was over too soon."""
    for _ in range(3):
        outcome = server.run(replace(request(Case("corpus", arguments, limit_s=300), work), kill_at=path))
        if outcome.code == -9:
            return
        shutil.rmtree(work / "here" / Path(path).parts[0], ignore_errors=True)
    raise RuntimeError(f"{arguments} came to its end: {(work / 'stderr').read_text('utf-8')}")


def _write(here: Path) -> None:
    """Data, pictures, recipes and a teacher."""
    import torch
    from safetensors.torch import load_file

    from dcclip_cli.data.dataset import write_parquet
    from tests.conftest import drawn_pairs, save_altclip

    pairs = drawn_pairs()
    write_parquet(here / "train.parquet", pairs)
    (here / "indexed").mkdir()
    write_parquet(here / "indexed/pairs.parquet", pairs[:12])
    save_altclip(here / "teacher")
    shutil.copytree(here / "teacher", here / "pickled")
    torch.save(load_file(here / "pickled/model.safetensors"), here / "pickled/pytorch_model.bin")
    (here / "pickled/model.safetensors").unlink()
    for name in ("pictures", "folder", "classes"):
        (here / name).mkdir()
    for pair in pairs[::8]:
        (here / f"pictures/{pair.key}.png").write_bytes(pair.image)
        (here / f"folder/{pair.key}.png").write_bytes(pair.image)
        (here / f"folder/{pair.key}.txt").write_text(f"{pair.zh[0]}\n{pair.en[0]}\n", "utf-8")
    for pair in pairs[:9]:
        colour, _, shape = pair.key.partition("-")
        (here / "classes" / shape).mkdir(exist_ok=True)
        (here / f"classes/{shape}/{colour}.png").write_bytes(pair.image)
    for file in (here / "pairs.tar", here / "indexed/pairs.tar"):
        with tarfile.open(file, "w") as archive:
            for pair in pairs[:10]:
                about = {"zh": list(pair.zh), "en": list(pair.en)}
                for suffix, content in (("png", pair.image), ("json", json.dumps(about, ensure_ascii=False).encode())):
                    member = tarfile.TarInfo(f"{pair.key}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    rows = [(f"folder/{pair.key}.png", pair.zh[0], pair.en[0]) for pair in pairs[::8]]
    columns = ("image", "zh", "en")
    for separator, suffix in (("\t", "tsv"), (",", "csv")):
        lines = [separator.join(row) for row in (columns, *rows)]
        (here / f"table.{suffix}").write_text("\n".join(lines) + "\n", "utf-8")
    lines = [json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in rows]
    (here / "table.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    for name, recipe in (("recipe", RECIPE), ("collect", COLLECT)):
        (here / f"{name}.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False), "utf-8")
    (here / "labels.txt").write_text("猫\n狗\ncat\ndog\n", "utf-8")


if __name__ == "__main__":
    _write(Path(sys.argv[1]))
