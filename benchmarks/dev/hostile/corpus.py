"""The valid inputs that cases damage, made by the program's own commands from drawn pictures and a random teacher.

As a script it writes those that no command makes, into a folder.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

from benchmarks.dev.hostile.case import CASE, Case, request
from benchmarks.dev.hostile.server import ROOT, Server, python_environment

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
EVAL = ("eval", "--model", "model", "--dataset", "./train.parquet", "--precision", "fp32", "-q")
DISTILL_HALF = ("distill", "recipe.yaml", "--out", "stopped", "--set", "distill.steps=12", "-q")
SEARCH = ("search", "红圆 red circle", "pictures", "--model", "bundle", "--json", "-q")
SHAPES = {"circle": "圆", "square": "方块", "ring": "圆环", "bar": "横条"}
COLOURS = {"red": "红", "green": "绿", "blue": "蓝", "black": "黑", "orange": "橙", "gray": "灰"}


def make_corpus(work: Path, server: Server) -> None:
    """Make `work`/corpus: everything that cases name as their parts, `cache/NAME` for caches.

    It is made where the cases of a Runner with the same `work` run: some caches are found by the paths of files.
    """
    corpus, work = work / "corpus", work / CASE
    here = work / "here"
    for name in ("here", "home", "tmp", "cache"):
        (work / name).mkdir(parents=True)
    (work / "stdin").touch()
    command = [sys.executable, "-m", "benchmarks.dev.hostile.corpus", here]
    subprocess.run(command, check=True, cwd=ROOT, env=python_environment())
    _run(server, work, "run", "recipe.yaml")
    shutil.copytree(here / "runs/tiny/align/model", here / "model")
    shutil.copytree(here / "runs/tiny/export", here / "bundle")
    often = ("--set", "distill.checkpoint_every_steps=4")
    _stop(server, work, "stopped/distill/state/step-00000004", *DISTILL_HALF, *often)
    for arguments in (EVAL, SEARCH, ("index", "indexed", "-q"), ("collect", "collect.yaml", "--workers", "1", "-q")):
        _run(server, work, *arguments)
    here.rename(corpus)
    (work / "cache").rename(corpus / "cache")
    shutil.rmtree(work)


def _run(server: Server, work: Path, *arguments: str) -> None:
    if code := server.run(request(Case("corpus", arguments, limit_s=300), work)).code:
        raise RuntimeError(f"{arguments} ended with {code}: {(work / 'stderr').read_text('utf-8')}")


def _stop(server: Server, work: Path, path: str, *arguments: str) -> None:
    """A run killed as soon as a path exists, or at the second or third try where it was over too soon."""
    for _ in range(3):
        if server.run(replace(request(Case("corpus", arguments, limit_s=300), work), kill_at=path)).code == -9:
            return
        shutil.rmtree(work / "here" / Path(path).parts[0], ignore_errors=True)
    raise RuntimeError(f"{arguments} came to its end: {(work / 'stderr').read_text('utf-8')}")


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a file of this format."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _draw(shape: str, colour: str) -> bytes:
    image = Image.new("RGB", (48, 48), "white")
    draw = ImageDraw.Draw(image)
    if shape in ("circle", "ring"):
        draw.ellipse((8, 8, 40, 40), fill=colour if shape == "circle" else None, outline=colour, width=6)
    else:
        draw.rectangle((10, 10, 38, 38) if shape == "square" else (4, 20, 44, 28), fill=colour)
    return encode(image)


def _write(here: Path) -> None:
    """Data, pictures, recipes and a teacher."""
    from dcclip_cli.data.dataset import write_parquet
    from dcclip_cli.data.pair import Pair

    pairs = [
        Pair(f"{colour}-{shape}", _draw(shape, colour), (f"{zh_colour}色的{zh}", zh), (f"{colour} {shape}", shape))
        for shape, zh in SHAPES.items()
        for colour, zh_colour in COLOURS.items()
    ]
    for name in ("indexed", "pictures", "folder", "classes"):
        (here / name).mkdir()
    write_parquet(here / "train.parquet", pairs)
    write_parquet(here / "indexed/pairs.parquet", pairs[:12])
    _save_teacher(here / "teacher")
    for pair in pairs[::6]:
        (here / f"pictures/{pair.key}.png").write_bytes(pair.image)
        (here / f"folder/{pair.key}.png").write_bytes(pair.image)
        (here / f"folder/{pair.key}.txt").write_text(f"{pair.zh[0]}\n{pair.en[0]}\n", "utf-8")
    for pair in pairs[:9]:
        colour, _, shape = pair.key.partition("-")
        (here / "classes" / shape).mkdir(exist_ok=True)
        (here / f"classes/{shape}/{colour}.png").write_bytes(pair.image)
    for file in (here / "pairs.tar", here / "indexed/pairs.tar"):
        members = {
            f"{pair.key}.{suffix}": content
            for pair in pairs[:10]
            for suffix, content in (("png", pair.image), ("json", json.dumps({"zh": pair.zh, "en": pair.en}).encode()))
        }
        file.write_bytes(tar(members))
    rows = [(f"folder/{pair.key}.png", pair.zh[0], pair.en[0]) for pair in pairs[::6]]
    columns = ("image", "zh", "en")
    for separator, suffix in (("\t", "tsv"), (",", "csv")):
        lines = [separator.join(row) for row in (columns, *rows)]
        (here / f"table.{suffix}").write_text("\n".join(lines) + "\n", "utf-8")
    lines = [json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in rows]
    (here / "table.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    for name, recipe in (("recipe", RECIPE), ("collect", COLLECT)):
        (here / f"{name}.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False), "utf-8")
    (here / "labels.txt").write_text("猫\n狗\ncat\ndog\n", "utf-8")


def tar(members: dict[str, bytes], pax: dict[str, str] | None = None, **header: Any) -> bytes:
    """A tar of members, with odd headers."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.pax_headers = pax or {}
            for key, value in header.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def _save_teacher(folder: Path) -> None:
    """A tiny random AltCLIP as `save_pretrained` writes it."""
    import torch
    from transformers import AltCLIPConfig, AltCLIPModel, CLIPImageProcessor, XLMRobertaTokenizer

    characters = dict.fromkeys("abcdefghijklmnopqrstuvwxyz▁色的猫狗" + "".join((*COLOURS.values(), *SHAPES.values())))
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *characters, *(f"▁{word}" for word in (*COLOURS, *SHAPES)), "<mask>"]
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(pieces), "max_position_embeddings": 40, "type_vocab_size": 1, "project_dim": 16}
    text |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    image = {**tower, "image_size": 32, "patch_size": 8, "projection_dim": 16, "hidden_act": "quick_gelu"}
    torch.manual_seed(7)
    AltCLIPModel(AltCLIPConfig(text_config=text, vision_config=image, projection_dim=16)).save_pretrained(folder)
    vocabulary = [(piece, 0.0 if piece[0] == "<" else -8.0 + len(piece)) for piece in pieces]
    XLMRobertaTokenizer(vocab=vocabulary, model_max_length=38).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)


if __name__ == "__main__":
    _write(Path(sys.argv[1]))
