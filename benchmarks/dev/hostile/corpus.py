"""The valid inputs that cases damage, made by the program's own commands from emoji and a random
teacher.
"""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import yaml

from benchmarks.dev.hostile.run import ROOT, Case, execute

RECIPE: dict[str, Any] = yaml.safe_load("""
format: 1
name: tiny
seed: 0
teacher: {kind: altclip, model: ./teacher}
student:
  image: {timm: test_efficientnet.r160_in1k, size: 32}
  text: {layers: 1, width: 32, heads: 1, context_length: 24, vocabulary: {from: data, size: 300}}
  embed_dim: 16
data: {train: ./train.parquet, validation: ./train.parquet}
distill: &stage {batch_size: 8, warmup_steps: 1, workers: 0, threads: 1, precision: fp32, augmentations: 1, steps: 3}
align: {<<: *stage, steps: 2}
eval: {datasets: [./train.parquet], languages: [zh, en], precision: fp32}
export: {format: onnx, precision: fp32}
""")
RECIPE["distill"]["optimizer"] = {"kind": "adamw", "lr": 1e-3}
COLLECT: dict[str, Any] = yaml.safe_load("""
name: gathered
collect: {sources: [{kind: table, path: ./table.tsv}], filters: [], shard_size: 10}
""")
# Commands on the undamaged corpus, whose results cases compare with or damage.
EVAL = "eval --model model --dataset ./train.parquet --precision fp32 -q"
SEARCH = "search '红圆 red circle' pictures --model bundle --json -q"


def make_corpus(work: Path) -> None:
    """Make `work`/corpus, where cases with the same `work` run: what cases name as parts,
    `cache/NAME` for caches.
    """
    folder, inputs = work / "case", work / "case/here"
    for name in ("here", "home", "tmp", "cache"):
        (folder / name).mkdir(parents=True)
    (folder / "stdin").touch()
    _write_inputs(inputs)
    _run(folder, "run recipe.yaml")
    shutil.copytree(inputs / "runs/tiny/align/model", inputs / "model")
    shutil.copytree(inputs / "runs/tiny/export", inputs / "bundle")
    for command in (EVAL, SEARCH, "index indexed -q", "collect collect.yaml --workers 1 -q"):
        _run(folder, command)
    inputs.rename(work / "corpus")
    (folder / "cache").rename(work / "corpus/cache")


def _run(folder: Path, command: str) -> None:
    if (end := execute(Case("corpus", shlex.split(command), limit_s=300), folder)) != (0, ""):
        raise RuntimeError(f"{command} ended with {end}: {(folder / 'stderr').read_text('utf-8')}")


def _write_inputs(inputs: Path) -> None:
    """Write pairs, tables of them, pictures, recipes and a teacher."""
    import pyarrow.parquet as pq
    from PIL import Image

    from tests.tars import tar_bytes
    from tests.teachers import make
    from tests.videos import film

    table = pq.read_table(ROOT / "recipes/quickstart/validation.parquet").slice(0, 24)
    for name in ("indexed", "pictures", "folder", "classes/circle", "classes/square"):
        (inputs / name).mkdir(parents=True)
    pq.write_table(table, inputs / "train.parquet")
    pq.write_table(table.slice(0, 12), inputs / "indexed/pairs.parquet")
    members, rows = [], [("image", "zh", "en")]
    for number, pair in enumerate(table.to_pylist()):
        record = json.dumps({"zh": pair["zh"], "en": pair["en"]}).encode()
        members += [(f"{number}.png", pair["image"]), (f"{number}.json", record)]
        if number < 4:
            (inputs / f"pictures/{number}.png").write_bytes(pair["image"])
            (inputs / f"folder/{number}.png").write_bytes(pair["image"])
            (inputs / f"folder/{number}.txt").write_text(
                f"{pair['zh'][0]}\n{pair['en'][0]}\n", "utf-8"
            )
            rows.append((f"folder/{number}.png", pair["zh"][0], pair["en"][0]))
        else:
            (inputs / f"classes/{('circle', 'square')[number % 2]}/{number}.png").write_bytes(
                pair["image"]
            )
    (inputs / "pairs.tar").write_bytes(tar_bytes(members))
    for separator, suffix in (("\t", "tsv"), (",", "csv")):
        (inputs / f"table.{suffix}").write_text(
            "".join(f"{separator.join(row)}\n" for row in rows), "utf-8"
        )
    lines = [
        json.dumps(dict(zip(rows[0], row, strict=True)), ensure_ascii=False) for row in rows[1:]
    ]
    (inputs / "table.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    for name, recipe in (("recipe", RECIPE), ("collect", COLLECT)):
        (inputs / f"{name}.yaml").write_text(
            yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False), "utf-8"
        )
    (inputs / "films").mkdir()
    shapes = [Image.open(inputs / f"pictures/{number}.png").convert("RGB") for number in range(2)]
    film(str(inputs / "films/x.mp4"), shapes)
    shutil.copy(inputs / "pictures/0.png", inputs / "films")
    (inputs / "labels.txt").write_text("猫\n狗\ncat\ndog\n", "utf-8")
    make("altclip", inputs / "teacher")
