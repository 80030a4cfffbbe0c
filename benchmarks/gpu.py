"""Training on one GPU, in numbers: images per second, MFU, memory, waiting for data and host syncs.

    python benchmarks/gpu.py [--out FOLDER] [--device cuda|cpu] [--tiny] [--minutes 8]

Prints a table and writes gpu.json and gpu.md to FOLDER. Weights are random, in AltCLIP's shape (ViT-L/14 at 224 px,
XLM-RoBERTa large) and in those of the students; nothing is downloaded. `--tiny` takes small networks and batches, to
see that the script runs: `--device cpu --tiny` takes minutes, most of them for compiling. What the time does not
suffice for is listed as left out, and what the memory does not as such.

  forward     AltCLIP's image and text tower, in bf16, channels last, eager and compiled
  student     forward and backward of image towers, eager and compiled
  step        a stage's whole step as the Trainer runs it (loss, clipping, AdamW): stage 1 with the teacher live and
              from its cache, stage 2 of 2,048 pairs in eight parts with gradient caching; read by dcclip's reader
              from a tar of JPEGs, so that waiting for data is part of it
  reader      images per second of the loading processes alone, from 256 x 256 and 1024 x 768
  processes   the live step on two devices, by DDP, if there are two

MFU is of the GPU's dense bf16 peak. Syncs are the warnings of torch.cuda.set_sync_debug_mode in a step.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from statistics import median_low as median
from typing import Any

import numpy as np
import torch
from PIL import Image

from dcclip_cli.data.collator import Collator
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.options import Augment, CaptionOptions, DataOptions
from dcclip_cli.data.pixels import training_preprocess
from dcclip_cli.data.samplers import EpochBatchSampler, MixedBatchSampler
from dcclip_cli.machine import cpu_name, keep_freed_memory
from dcclip_cli.model.blank import blank_student
from dcclip_cli.model.students import StudentOptions
from dcclip_cli.model.teachers import AltClipTeacher
from dcclip_cli.model.towers import Tokens, Towers
from dcclip_cli.run_dir import RunDir
from dcclip_cli.train.align import AlignOptions
from dcclip_cli.train.distill import DistillOptions
from dcclip_cli.train.loading import load_batches
from dcclip_cli.train.speed import forward_flops, peak_flops, training_flops
from dcclip_cli.train.stage import Stage
from dcclip_cli.train.trainer import Trainer

CAPTIONS = {"zh": "公园里有一只棕色的小狗在草地上奔跑", "en": "a small brown dog runs over the grass of a park"}
STUDENTS = {
    "RN50": {"preset": "RN50"},
    "ViT-S/16": {"image": {"timm": "vit_small_patch16_224"}},
    "S": {"preset": "S"},
    "M": {"preset": "M"},
}


@dataclass
class Row:
    """One measurement; None where it does not apply or is not known on this device."""

    what: str
    per_second: float | None = None
    mfu: float | None = None
    peak_memory_gb: float | None = None
    data_wait: float | None = None  # share of the time
    syncs: int | None = None
    note: str = ""


@dataclass
class Sizes:
    """How large the networks, batches and data are."""

    teacher_batch: int = 256
    text_batch: int = 1024
    student_batch: int = 512
    live_batch: int = 512
    align_batch: int = 2048
    parts: int = 8
    pairs: int = 4096
    steps: int = 24
    tiny: bool = False


TINY = Sizes(2, 4, 2, 4, 8, 2, 32, 3, True)


class Bench:
    """Measures on a device, until the time is over."""

    def __init__(self, device: str, sizes: Sizes, work: Path, minutes: float) -> None:
        self.device, self.sizes, self.work = torch.device(device), sizes, work
        self.rows: list[Row] = []
        self._end = time.monotonic() + 60 * minutes
        self.peak = peak_flops(self.device)

    def measure(self, what: str, action: Callable[[str], Row]) -> None:
        """Add a row, or one that says why there is none."""
        if time.monotonic() > self._end:
            row = Row(what, note="left out: no time")
        else:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            try:
                row = action(what)
            except torch.OutOfMemoryError:
                row = Row(what, note="out of memory")
        self.rows.append(row)
        print(line(row), file=sys.stderr, flush=True)

    def passes(self, what: str, run: Callable[[], object], count: int, flops: float) -> Row:
        """The speed of passes of `count` samples with so many operations: the median of ten, of two on a CPU."""
        run()
        times, rounds = [], 10 if self.device.type == "cuda" else 2
        for _ in range(rounds):
            self.wait()
            began = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - began)
        seconds = sorted(times)[rounds // 2]
        mfu = flops / seconds / self.peak if self.peak else None
        return Row(what, count / seconds, mfu, self.memory())

    def memory(self) -> float | None:
        return torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else None

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


# ---- towers


def altclip(folder: Path, tiny: bool) -> Path:
    """A directory with an AltCLIP of random weights and a tokenizer of single characters."""
    from transformers import AltCLIPConfig, AltCLIPModel, CLIPImageProcessor, XLMRobertaTokenizer

    characters = dict.fromkeys("▁abcdefghijklmnopqrstuvwxyz" + CAPTIONS["zh"])
    count = 100 if tiny else 250_002
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *characters]
    pieces += [*(f"<{number}>" for number in range(count - len(pieces) - 1)), "<mask>"]
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    text = {"vocab_size": count, "max_position_embeddings": 514, "type_vocab_size": 1, "project_dim": 768}
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    side, patch = (32, 16) if tiny else (224, 14)
    config = AltCLIPConfig(
        text_config=(small if tiny else large) | text | ids,
        vision_config=(small if tiny else large)
        | {"image_size": side, "patch_size": patch, "projection_dim": 768, "hidden_act": "quick_gelu"},
        projection_dim=768,
    )
    torch.manual_seed(0)
    AltCLIPModel(config).save_pretrained(folder)
    XLMRobertaTokenizer(vocab=[(piece, -1.0) for piece in pieces], model_max_length=77).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(folder)
    return folder


def student_options(name: str, tiny: bool) -> StudentOptions:
    """A student whose vocabulary is made of the captions."""
    text = {"vocabulary": {"from": "data", "size": 300}}
    if tiny:
        text |= {"layers": 1, "width": 32}
        return StudentOptions.model_validate({"image": {"timm": "test_resnet", "size": 64}, "text": text})
    settings = STUDENTS[name]
    return StudentOptions.model_validate({**settings, "text": text})


def with_weights(towers: Any, device: torch.device) -> Any:
    """Blank towers with random weights."""
    towers = towers.to_empty(device=device)
    with torch.no_grad():
        for parameter in towers.parameters():
            parameter.normal_(std=0.02) if parameter.ndim > 1 else parameter.fill_(1)
        for name, buffer in towers.named_buffers():
            buffer.fill_(1 if name.endswith("running_var") else 0)
    towers.model.visual.to(memory_format=torch.channels_last)
    return towers


def pixels_for(count: int, side: int, device: torch.device) -> torch.Tensor:
    return torch.rand(count, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)


def teachers(bench: Bench, folder: Path, way: str) -> None:
    """Forward passes of AltCLIP, eager or compiled."""
    sizes, device = bench.sizes, bench.device
    teacher: Towers = AltClipTeacher(kind="altclip", model=str(folder), precision="bf16").load(str(device))
    teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = pixels_for(sizes.teacher_batch, teacher.preprocessing.size, device)  # type: ignore[union-attr]
    captions: list[str] = [CAPTIONS["zh"], CAPTIONS["en"]] * (sizes.text_batch // 2)
    tokens = teacher.tokenize(captions).to(device)
    flops = forward_flops(teacher, images, [tokens])
    wrap: Any = torch.compile if way == "compiled" else lambda function, **_options: function
    image, text = wrap(teacher.image_features, dynamic=False), wrap(teacher.text_features, dynamic=False)
    for part, run, count, seconds in (
        ("image tower", lambda image=image: image(images), sizes.teacher_batch, flops.image),
        ("text tower", lambda text=text: text(tokens), len(captions), flops.text),
    ):

        def passes(what: str, run: Any = run, count: int = count, each: float = seconds) -> Row:
            with teacher.as_teacher():
                return bench.passes(what, run, count, each)

        bench.measure(f"forward AltCLIP {part}, {way}", passes)


def students(bench: Bench, way: str) -> None:
    """Forward and backward passes of the students' image towers, in bf16, eager or compiled."""
    sizes, device = bench.sizes, bench.device
    for name in list(STUDENTS)[:1] if sizes.tiny else STUDENTS:
        towers = with_weights(blank_student(student_options(name, sizes.tiny), 768), device).train()
        images = pixels_for(sizes.student_batch, towers.preprocessing.size, device)
        flops = training_flops(towers, images, [])
        features = torch.compile(towers.image_features, dynamic=False) if way == "compiled" else towers.image_features

        def run(features: Any = features, towers: Any = towers, images: torch.Tensor = images) -> None:
            with torch.autocast(device.type, torch.bfloat16):
                output = features(images)
                total = output.embedding.float().square().mean() + output.map.float().square().mean()
            total.backward()
            towers.zero_grad()

        bench.measure(
            f"student {name}, forward and backward, {way}",
            lambda what, run=run, flops=flops: bench.passes(what, run, sizes.student_batch, flops),
        )


# ---- steps and reading


def shard(folder: Path, count: int, width: int, height: int) -> Path:
    """A tar of JPEGs with captions in both languages."""
    random = np.random.default_rng(0)
    contents = []
    for _ in range(min(count, 64)):
        coarse = Image.fromarray(random.integers(0, 256, (height // 16, width // 16, 3), np.uint8))
        buffer = BytesIO()
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        contents.append(buffer.getvalue())
    path = folder / f"{width}.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            # Captions differ, or all pairs but one would be false negatives.
            words = {language: f"{text} {number}" for language, text in CAPTIONS.items()}
            content = contents[number % len(contents)] + b"\0" * (number // len(contents))  # nor are images the same
            record = json.dumps({name: [text] for name, text in words.items()}, ensure_ascii=False).encode()
            for ending, data in (("jpg", content), ("json", record)):
                entry = tarfile.TarInfo(f"{number:06}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, BytesIO(data))
    return path


def stage(bench: Bench, what: str, teacher: Path | None, options: dict[str, Any], data: Path) -> Row:
    """A stage's steps after its first five, by its own log."""
    sizes, device = bench.sizes, bench.device
    few = {"steps": sizes.steps, "warmup_steps": 1, "log_every_steps": max(1, sizes.steps // 4), "deterministic": False}
    run = RunDir(bench.work / "".join(char if char.isalnum() else "-" for char in what))
    common: dict[str, Any] = {
        "student_options": student_options("RN50", sizes.tiny),
        "device": str(device),
        "teacher": AltClipTeacher(kind="altclip", model=str(teacher), precision="bf16") if teacher else None,
    }
    precision = {} if device.type == "cuda" else {"precision": "fp32"}
    final = few | precision | options
    chosen = (
        DistillOptions.model_validate(final) if teacher else AlignOptions.model_validate({"start": "scratch", **final})
    )
    stage = Stage(chosen, run, DataOptions.model_validate({"train": str(data)}), **common)
    stage.prepare()
    trainer = Trainer(stage)
    with counted_syncs(trainer) as syncs:
        trainer.run()
    trainer.close()
    lines = [json.loads(text) for text in (stage.folder / "metrics.jsonl").read_text().splitlines()]
    later = [entry for entry in lines if "images_per_second" in entry][1:]
    speed = sorted(later, key=lambda one: one["images_per_second"])[len(later) // 2]
    step_s = chosen.batch_size / speed["images_per_second"]
    rate, memory = speed["images_per_second"], speed["peak_memory_gb"]
    return Row(what, rate, speed.get("mfu"), memory, speed["data_wait_s"] / step_s, median(syncs) if syncs else None)


@contextmanager
def counted_syncs(trainer: Any) -> Iterator[list[int]]:
    """The number of times that each step waits for the GPU; none on a CPU."""
    counts: list[int] = []
    if trainer.device.type != "cuda":
        yield counts
        return
    step = trainer.train_step

    def counting(batch: Any) -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                return step(batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                counts.append(sum("synchroniz" in str(warning.message) for warning in caught))

    trainer.train_step = counting
    yield counts


def stages(bench: Bench, teacher: Path, data: Path) -> None:
    sizes = bench.sizes
    live = {"batch_size": sizes.live_batch}
    for label, options in (
        ("step, stage 1, teacher live", live | {"teacher_cache": False}),
        ("step, stage 1, from the cache", live | {"augmentations": 1}),
    ):
        bench.measure(label, lambda what, options=options: stage(bench, what, teacher, options, data))
    cached = {"batch_size": sizes.align_batch, "accumulate": sizes.parts, "gradient_cache": True}
    bench.measure("step, stage 2, gradient caching", lambda what: stage(bench, what, None, cached, data))


def compiled(bench: Bench, teacher: Path, data: Path) -> None:
    """What compiling changes; last, for it takes minutes."""
    teachers(bench, teacher, "compiled")
    students(bench, "compiled")
    options = {"batch_size": bench.sizes.live_batch, "teacher_cache": False, "compile": "auto"}
    bench.measure("step, stage 1, teacher live, compiled", lambda what: stage(bench, what, teacher, options, data))


def readers(bench: Bench, files: dict[str, Path]) -> None:
    """The reader alone, in as many processes as there are cores, up to 16."""
    workers = min(16, len(os.sched_getaffinity(0)))
    side = 64 if bench.sizes.tiny else 224
    towers = blank_student(student_options("RN50", bench.sizes.tiny), 768)

    def tokenize(texts: list[str]) -> Tokens:
        return Tokens(torch.ones(len(texts), 8, dtype=torch.int64), torch.ones(len(texts), 8, dtype=torch.int64))

    for name, path in files.items():

        def read(what: str, path: Path = path) -> Row:
            dataset = open_pairs(path)
            collator = Collator(dataset, 0, Augment(crop=0.6), CaptionOptions(), training_preprocess(towers), tokenize)
            batch = min(64, len(dataset) // 4)
            sampler = MixedBatchSampler((EpochBatchSampler(dataset, batch, seed=0),))
            steps = (4 if bench.sizes.tiny else 40) + workers
            batches = load_batches(collator, sampler(0, steps), workers, 2)
            next(batches)
            began = time.perf_counter()
            images_read = sum(len(loaded.pixels) for loaded in batches)
            return Row(what, images_read / (time.perf_counter() - began), note=f"{workers} processes, to {side} px")

        bench.measure(f"reader, {name}", read)


def two_processes(bench: Bench, arguments: list[str]) -> None:
    """The live step by DDP, in processes of their own."""
    script = [str(Path(__file__).resolve()), *arguments, "--only-live"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *script]

    def ddp(what: str) -> Row:
        with tempfile.TemporaryDirectory() as out:
            subprocess.run([*launch, "--out", out], check=True, timeout=300)
            return Row(**{**json.loads((Path(out) / "gpu.json").read_text())["rows"][0], "what": what})

    bench.measure("step, stage 1, teacher live, two devices", ddp)


# ---- the table

HEADER = "| what | images or texts/s | MFU | memory, GB | waiting for data | syncs a step |\n|---|---|---|---|---|---|"


def line(row: Row) -> str:
    """A row of the table."""

    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    cells = [shown(row.per_second, ",.0f"), shown(row.mfu, ".1%"), shown(row.peak_memory_gb, ".1f")]
    cells += [shown(row.data_wait, ".1%"), shown(row.syncs, "d")]
    return f"| {row.what}{': ' if row.note else ''}{row.note} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--only-live", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    keep_freed_memory()
    sizes = TINY if parsed.tiny else Sizes()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["DCCLIP_CACHE"] = str(work / "cache")
        bench = Bench(parsed.device, sizes, work, parsed.minutes)
        teacher = altclip(work / "altclip", sizes.tiny)
        small = shard(work, sizes.pairs, 256, 256)
        if parsed.only_live:
            options = {"batch_size": 2 * sizes.live_batch, "teacher_cache": False}
            bench.measure("live", lambda what: stage(bench, what, teacher, options, small))
        else:
            teachers(bench, teacher, "eager")
            students(bench, "eager")
            stages(bench, teacher, small)
            readers(bench, {"256 x 256": small, "1024 x 768": shard(work, min(1024, sizes.pairs), 1024, 768)})
            if bench.device.type == "cuda" and torch.cuda.device_count() > 1:
                two_processes(bench, ["--tiny"] if parsed.tiny else [])
            compiled(bench, teacher, small)
    if int(os.environ.get("RANK", "0")):
        return
    name = torch.cuda.get_device_name() if bench.device.type == "cuda" else cpu_name()
    facts = {"device": name, "torch": torch.__version__, "sizes": asdict(sizes), "peak_flops": bench.peak}
    table = "\n".join([f"{name}, torch {torch.__version__}\n", HEADER, *map(line, bench.rows)])
    parsed.out.mkdir(parents=True, exist_ok=True)
    (parsed.out / "gpu.json").write_text(json.dumps({**facts, "rows": [asdict(row) for row in bench.rows]}, indent=2))
    (parsed.out / "gpu.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
