"""Training on GPUs, in numbers: images per second, MFU, memory, waiting for data and host syncs.

    python benchmarks/gpu.py [--out FOLDER] [--device cuda|cpu] [--tiny] [--minutes 20] [--rows REGEX]

Prints a table and writes gpu.json and gpu.md to FOLDER, after each row. Weights are random, in the
shape of AltCLIP (ViT-L/14 at 224 px, XLM-RoBERTa large) and of the students; nothing is
downloaded. `--tiny` takes small networks and batches, to see that the script runs: `--device cpu
--tiny` takes minutes. Rows run in processes of their own; the table says why one failed, or that
it took longer than `--row-seconds`, and has the others.

  step        a stage's steps as the Trainer runs them, read by dcclip's reader from a tar of JPEGs, so that waiting for
              data is part of them. Stage 1 is as in recipes/dc-clip.yaml, but with the teacher live: batch 1,024,
              gradient checkpointing, deterministic. Other rows change what their names say; `validation` and
              `checkpoints` have the seconds of one. Stage 2: 2,048 pairs in eight parts with gradient caching
  reader      images per second of the loading processes alone, from 256 x 256 and 1024 x 768 to 224 px
  forward     AltCLIP's towers in bf16, channels last; `student`: forward and backward of image towers; also compiled

MFU is of the GPU's dense bf16 peak, of passes alone. Memory is the peak that PyTorch allocated,
and in parentheses reserved. Syncs are the warnings of torch.cuda.set_sync_debug_mode in a step.
"""

import argparse
import json
import os
import re
import signal
import socket
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from dcclip_cli.core.machine import cpu_name, keep_freed_memory, set_library_defaults
from dcclip_cli.core.run_dir import RunDir
from dcclip_cli.data.collator import Collator
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.options import Augment, CaptionOptions, DataOptions
from dcclip_cli.data.pixels import training_preprocess
from dcclip_cli.data.samplers import EpochBatchSampler, MixedBatchSampler
from dcclip_cli.model.blank import blank_student
from dcclip_cli.model.students import StudentOptions
from dcclip_cli.model.teachers import AltClipTeacher
from dcclip_cli.model.towers import Tokens, Towers
from dcclip_cli.train.loading import load_batches
from dcclip_cli.train.options import AlignOptions, DistillOptions
from dcclip_cli.train.speed import forward_flops
from dcclip_cli.train.stage import Stage
from dcclip_cli.train.trainer import Trainer

PEAKS = {
    "B200": 2250,
    "H200": 989,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "RTX 4090": 165,
}
CAPTIONS = {
    "zh": "公园里有一只棕色的小狗在草地上奔跑",
    "en": "a small brown dog runs over the grass of a park",
}
STUDENTS = {
    "RN50": {"preset": "RN50"},
    "ViT-S/16": {"image": {"timm": "vit_small_patch16_224"}},
    "S": {"preset": "S"},
    "M": {"preset": "M"},
}
PROCESSES = get_context(
    "forkserver"
)  # a process that is forked after the parent asked for its GPUs could not use any
QUICK_START = Path(__file__).parents[1] / "recipes/quickstart/train.parquet"


@dataclass
class Row:
    """One measurement; None where it does not apply or is not known on this device."""

    label: str
    per_second: float | None = None
    mfu: float | None = None
    peak_memory_gb: float | None = None
    reserved_memory_gb: float | None = None
    data_wait: float | None = None  # share of the time
    syncs: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Sizes:
    """How large the networks, batches and data are."""

    teacher_batch: int = 256
    text_batch: int = 1024
    student_batch: int = 512
    distill_batch: int = 1024
    align_batch: int = 2048
    parts: int = 8
    pairs: int = 4096
    steps: int = 24
    tiny: bool = False


TINY = Sizes(2, 4, 2, 4, 8, 2, 32, 4, True)


def peak_flops(device: torch.device) -> float | None:
    """A GPU's dense bf16 operations per second, by data sheets; None for a CPU or another GPU."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak * 1e12 for words, peak in PEAKS.items() if words in name), None)


@dataclass(frozen=True)
class Setup:
    """What the processes of rows measure on, and with: the folder has the teacher, the data and
    the cache.
    """

    device: torch.device
    sizes: Sizes
    work: Path

    def passes(self, label: str, run: Callable[[], object], count: int, flops: float) -> Row:
        """The speed of passes of `count` samples with so many operations: the median of ten, of
        two on a CPU.
        """
        wait = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None
        run()
        times, rounds = [], 10 if self.device.type == "cuda" else 2
        for _ in range(rounds):
            wait()
            began = time.perf_counter()
            run()
            wait()
            times.append(time.perf_counter() - began)
        seconds, peak = sorted(times)[rounds // 2], peak_flops(self.device)
        return Row(label, count / seconds, flops / seconds / peak if peak else None)


@dataclass
class Table:
    """Measures rows until the time of the arguments is over, and writes them."""

    setup: Setup
    arguments: argparse.Namespace
    end: float  # of time.monotonic
    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def measure(
        self, label: str, action: Callable[[str], Row], processes: int = 1, cores: int | None = None
    ) -> None:
        """Add the row that `action` returns in processes of its own, or one that says why there is
        none.
        """
        if not re.search(self.arguments.rows, label):
            return
        seconds = min(self.arguments.row_seconds, self.end - time.monotonic())
        row = Row(label, note="left out: no time")
        self.rows.append(self.run(label, action, seconds, processes, cores) if seconds > 0 else row)
        print(line(self.rows[-1]), file=sys.stderr, flush=True)
        results = {**self.facts, "rows": list(map(asdict, self.rows))}
        (self.arguments.out / "gpu.json").write_text(json.dumps(results, indent=2))
        title = f"{self.facts['device']}, torch {self.facts['torch']}\n"
        (self.arguments.out / "gpu.md").write_text(
            "\n".join([title, HEADER, *map(line, self.rows)]) + "\n"
        )

    def run(
        self,
        label: str,
        action: Callable[[str], Row],
        seconds: float,
        processes: int,
        cores: int | None,
    ) -> Row:
        """The row that the first of the processes writes; one with a note if a process fails or
        the time is over.
        """
        end, work = time.monotonic() + seconds, self.setup.work
        (work / "log").write_bytes(b"")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        targets = [
            partial(write_row, work, rank, processes, port, cores) for rank in range(processes)
        ]
        ranks = [PROCESSES.Process(target=target, args=(action, label)) for target in targets]
        for process in ranks:
            process.start()
        codes: list[int | None] = [None]
        try:
            while None in codes and not any(codes) and time.monotonic() < end:
                time.sleep(0.1)
                codes = [process.exitcode for process in ranks]
        finally:
            for process in ranks:
                process.kill()
                with suppress(ProcessLookupError):
                    os.killpg(
                        process.pid, signal.SIGKILL
                    )  # the loading and compiling processes that it started
                process.join()
        if codes == [0] * processes:
            return Row(**json.loads((work / "row.json").read_text()))
        log = (work / "log").read_text(errors="replace")
        print(log, file=sys.stderr)
        errors = re.findall(r"^(?:\w+\.)*(\w+(?:Error|Exception): .+)$", log, re.M)
        exits = f"exit codes {codes}" if any(codes) else f"not finished in {seconds:.0f} s"
        return Row(
            label,
            note=f"failed: "
            f"{errors[-1].replace('|', '/')[:200] if any(codes) and errors else exits}",
        )


def write_row(
    work: Path,
    rank: int,
    processes: int,
    port: int,
    cores: int | None,
    action: Callable[[str], Row],
    label: str,
) -> None:
    """Write the row of an action; in a process of its own, or in one of several that train
    together.
    """
    os.setsid()
    with (work / "log").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    if processes > 1:
        counts = {
            "WORLD_SIZE": processes,
            "LOCAL_WORLD_SIZE": processes,
            "RANK": rank,
            "LOCAL_RANK": rank,
        }
        os.environ |= {name: str(count) for name, count in counts.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    keep_freed_memory()
    row = action(label)
    if torch.cuda.is_initialized():
        row.peak_memory_gb = torch.cuda.max_memory_allocated() / 1e9
        row.reserved_memory_gb = torch.cuda.max_memory_reserved() / 1e9
    if rank == 0:
        (work / "row.json").write_text(json.dumps(asdict(row)))


# ---- towers


def altclip(folder: Path, tiny: bool) -> None:
    """Write a directory with an AltCLIP of random weights and a tokenizer of single characters."""
    from transformers import AltCLIPConfig, AltCLIPModel, CLIPImageProcessor, XLMRobertaTokenizer

    characters = dict.fromkeys("▁abcdefghijklmnopqrstuvwxyz" + CAPTIONS["zh"])
    count = 100 if tiny else 250_002
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *characters]
    pieces += [*(f"<{number}>" for number in range(count - len(pieces) - 1)), "<mask>"]
    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    large = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    }
    text = {
        "vocab_size": count,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "project_dim": 768,
    }
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    side, patch = (32, 16) if tiny else (224, 14)
    config = AltCLIPConfig(
        text_config=(small if tiny else large) | text | ids,
        vision_config=(small if tiny else large)
        | {
            "image_size": side,
            "patch_size": patch,
            "projection_dim": 768,
            "hidden_act": "quick_gelu",
        },
        projection_dim=768,
    )
    torch.manual_seed(0)
    AltCLIPModel(config).save_pretrained(folder)
    XLMRobertaTokenizer(
        vocab=[(piece, -1.0) for piece in pieces], model_max_length=77
    ).save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    ).save_pretrained(folder)


def student_options(name: str, tiny: bool) -> StudentOptions:
    """A student whose vocabulary is made of the captions."""
    text = {"vocabulary": {"from": "data", "size": 300}}
    if tiny:
        text |= {"layers": 1, "width": 32}
        return StudentOptions.model_validate(
            {"image": {"timm": "test_resnet", "size": 64}, "text": text}
        )
    return StudentOptions.model_validate({**STUDENTS[name], "text": text})


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
    return torch.rand(count, 3, side, side, device=device).contiguous(
        memory_format=torch.channels_last
    )


def teacher_row(setup: Setup, tower: str, way: str, label: str) -> Row:
    """Forward passes of a tower of AltCLIP, eager or compiled."""
    sizes, device = setup.sizes, setup.device
    teacher: Towers = AltClipTeacher(
        kind="altclip", model=str(setup.work / "altclip"), precision="bf16"
    ).load(str(device))
    teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = pixels_for(sizes.teacher_batch, teacher.preprocessing.size, device)  # type: ignore[union-attr]
    captions: list[str] = [CAPTIONS["zh"], CAPTIONS["en"]] * (sizes.text_batch // 2)
    tokens = teacher.tokenize(captions).to(device)
    flops = forward_flops(teacher, images, [tokens])
    inputs, function = (
        (images, teacher.image_features) if tower == "image" else (tokens, teacher.text_features)
    )
    features: Any = torch.compile(function, dynamic=False) if way == "compiled" else function
    count = len(images) if tower == "image" else len(captions)
    with teacher.as_teacher():
        return setup.passes(label, lambda: features(inputs), count, getattr(flops, tower))


def student_row(setup: Setup, name: str, way: str, label: str) -> Row:
    """Forward and backward passes of a student's image tower, in bf16, eager or compiled."""
    sizes, device = setup.sizes, setup.device
    towers = with_weights(blank_student(student_options(name, sizes.tiny), 768), device).train()
    images = pixels_for(sizes.student_batch, towers.preprocessing.size, device)
    features = (
        torch.compile(towers.image_features, dynamic=False)
        if way == "compiled"
        else towers.image_features
    )

    def run() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            output = features(images)
            total = output.embedding.float().square().mean() + output.map.float().square().mean()
        total.backward()
        towers.zero_grad()

    return setup.passes(
        label, run, sizes.student_batch, 3 * forward_flops(towers, images, []).image
    )


# ---- steps and reading


def shard(path: Path, count: int, width: int, height: int, captions: list[dict[str, str]]) -> None:
    """Write a tar of JPEGs with captions in both languages."""
    random = np.random.default_rng(0)
    contents = []
    for _ in range(min(count, 64)):
        coarse = Image.fromarray(random.integers(0, 256, (height // 16, width // 16, 3), np.uint8))
        buffer = BytesIO()
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        contents.append(buffer.getvalue())
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            # Captions differ, or all pairs but one would be false negatives.
            texts = {
                code: [f"{text} {number}"]
                for code, text in captions[number % len(captions)].items()
            }
            record = json.dumps(texts, ensure_ascii=False)
            content = contents[number % len(contents)] + b"\0" * (
                number // len(contents)
            )  # nor are images the same
            for ending, data in (("jpg", content), ("json", record.encode())):
                entry = tarfile.TarInfo(f"{number:06}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, BytesIO(data))


def prepare(setup: Setup, label: str) -> Row:
    """Write the teacher and the data that rows use, and the facts about the device."""
    sizes, work = setup.sizes, setup.work
    altclip(work / "altclip", sizes.tiny)
    quick_start = pq.read_table(QUICK_START, columns=list(CAPTIONS)).to_pylist()
    captions = [
        {code: (text * 9)[: len(pair[code][0])] for code, text in CAPTIONS.items()}
        for pair in quick_start
    ]
    np.random.default_rng(0).shuffle(captions)
    shard(work / "256.tar", sizes.pairs, 256, 256, [CAPTIONS])
    shard(work / "lengths.tar", sizes.pairs, 256, 256, captions)
    shard(work / "1024.tar", min(1024, sizes.pairs), 1024, 768, [CAPTIONS])
    name = torch.cuda.get_device_name() if setup.device.type == "cuda" else cpu_name()
    facts = {
        "device": name,
        "torch": torch.__version__,
        "sizes": asdict(sizes),
        "peak_flops": peak_flops(setup.device),
    }
    (work / "facts.json").write_text(json.dumps(facts))
    return Row(label)


def step_row(
    setup: Setup,
    kind: Any,
    options: dict[str, Any],
    label: str,
    data: str = "256.tar",
    student: str = "RN50",
) -> Row:
    """The steps of a stage after its first log entry, by the median entry; of a single epoch, all
    of its time.
    """
    sizes, device = setup.sizes, setup.device
    defaults: dict[str, Any] = {"warmup_steps": 1, "log_every_steps": max(1, sizes.steps // 4)}
    defaults |= {} if "epochs" in options else {"steps": sizes.steps}
    pairs = str(setup.work / data)
    teacher = AltClipTeacher(kind="altclip", model=str(setup.work / "altclip"), precision="bf16")
    stage = Stage(
        kind.model_validate(defaults | options),
        RunDir(setup.work / re.sub(r"\W", "-", label)),
        DataOptions.model_validate({"train": pairs, "validation": pairs}),
        teacher=teacher if kind is DistillOptions else None,
        student_options=student_options(student, sizes.tiny),
        device=str(device),
    )
    stage.prepare()
    trainer: Any = Trainer(stage)
    pauses, syncs = list[float](), list[int]()
    trainer.evaluate, trainer.save = timed(trainer.evaluate, pauses), timed(trainer.save, pauses)
    if device.type == "cuda":
        trainer.train_step = with_syncs_counted(trainer.train_step, syncs)
    trainer.run()
    trainer.close()
    batch_size, sync_count = stage.options.batch_size, median_low(syncs) if syncs else None
    if "epochs" in options:
        return Row(label, stage.steps * batch_size / trainer.seconds, syncs=sync_count)
    entries = [
        json.loads(text) for text in (stage.folder / "metrics.jsonl").read_text().splitlines()
    ]
    later = [entry for entry in entries if "images_per_second" in entry][1:]
    speed = sorted(later, key=lambda entry: entry["images_per_second"])[len(later) // 2]
    rate, note = speed["images_per_second"], f"{median_low(pauses):.2f} s each" if pauses else ""
    return Row(
        label, rate, data_wait=speed["data_wait_s"] * rate / batch_size, syncs=sync_count, note=note
    )


def timed(function: Callable[[], Any], durations: list[float]) -> Callable[[], Any]:
    """The function, which notes how long its calls take."""

    def call() -> Any:
        began = time.perf_counter()
        result = function()
        durations.append(time.perf_counter() - began)
        return result

    return call


def with_syncs_counted(step: Callable[[Any], Any], counts: list[int]) -> Callable[[Any], Any]:
    """The step, which notes how many times the host waits for the GPU in it."""

    def call(batch: Any) -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            result = step(batch)
            torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchroniz" in str(warning.message) for warning in caught))
        return result

    return call


def steps(table: Table) -> None:
    """Steps of both stages: as recipes/dc-clip.yaml has them, and with other options."""
    sizes, row = table.setup.sizes, partial(partial, step_row, table.setup)
    recipe: dict[str, Any] = {
        "batch_size": sizes.distill_batch,
        "teacher_cache": False,
        "augment": {"crop": 0.6},
    }
    recipe["gradient_checkpointing"] = True
    changes: dict[str, dict[str, Any]] = {
        "": {},
        ", deterministic: false": {"deterministic": False},
        ", no gradient checkpointing": {"gradient_checkpointing": False},
        ", no gradient checkpointing, accumulate: 4": {
            "gradient_checkpointing": False,
            "accumulate": 4,
        },
        ", filling the cache": {"teacher_cache": True, "augmentations": 1, "epochs": 1},
        ", second epoch, from the cache": {"teacher_cache": True, "augmentations": 1},
        ", Muon": {"optimizer": {"kind": "muon", "lr": 0.01}},
        ", EMA": {"ema": 0.999},
        ", fp16": {"precision": "fp16"},
        ", validation": {"validate_every_steps": sizes.steps // 2},
        ", checkpoints": {"checkpoint_every_steps": sizes.steps // 2},
        ", compile": {"compile": True},
    }
    for change, options in changes.items():
        table.measure(f"step, stage 1{change}", row(DistillOptions, recipe | options))
    table.measure(
        "step, stage 1, captions of real lengths", row(DistillOptions, recipe, data="lengths.tar")
    )
    table.measure("step, stage 1, at most 12 cores", row(DistillOptions, recipe), cores=12)
    for student in ("S", "M"):
        table.measure(
            f"step, stage 1, student {student}", row(DistillOptions, recipe, student=student)
        )
    align = {
        "batch_size": sizes.align_batch,
        "accumulate": sizes.parts,
        "gradient_cache": True,
        "start": "scratch",
    }
    table.measure("step, stage 2, gradient caching", row(AlignOptions, align))
    devices = torch.cuda.device_count() if table.setup.device.type == "cuda" else 2
    for count in sorted({2, devices}) if devices > 1 else ():
        options = recipe | {"batch_size": count * sizes.distill_batch}
        table.measure(
            f"step, stage 1, {count} processes", row(DistillOptions, options), processes=count
        )


def reader_row(setup: Setup, data: str, label: str) -> Row:
    """The reader alone, in as many processes as there are cores, up to 16."""
    workers, is_tiny = min(16, len(os.sched_getaffinity(0))), setup.sizes.tiny
    towers = blank_student(student_options("RN50", is_tiny), 768)

    def tokenize(texts: list[str]) -> Tokens:
        return Tokens(
            torch.ones(len(texts), 8, dtype=torch.int64),
            torch.ones(len(texts), 8, dtype=torch.int64),
        )

    dataset = open_pairs(setup.work / data)
    collator = Collator(
        dataset, 0, Augment(crop=0.6), CaptionOptions(), training_preprocess(towers), tokenize
    )
    sampler = MixedBatchSampler((EpochBatchSampler(dataset, min(64, len(dataset) // 4), seed=0),))
    batches = load_batches(collator.batch, sampler(0, (4 if is_tiny else 40) + workers), workers, 2)
    next(batches)
    began = time.perf_counter()
    count = sum(len(batch.pixels) for batch in batches)
    return Row(label, count / (time.perf_counter() - began), note=f"{workers} processes")


# ---- the table

HEADER = (
    "| row | images or texts/s | MFU | memory, GB | waiting for data | syncs a step "
    "|\n|---|---|---|---|---|---|"
)


def line(row: Row) -> str:
    """A row of the table."""

    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    reserved = f" ({row.reserved_memory_gb:.1f})" if row.reserved_memory_gb is not None else ""
    cells = [
        shown(row.per_second, ",.0f"),
        shown(row.mfu, ".1%"),
        shown(row.peak_memory_gb, ".1f") + reserved,
    ]
    cells += [shown(row.data_wait, ".1%"), shown(row.syncs, "d")]
    return f"| {row.label}{': ' if row.note else ''}{row.note} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--minutes", type=float, default=20, help="end after this time")
    parser.add_argument(
        "--row-seconds", type=float, default=300, help="end a row that takes longer"
    )
    parser.add_argument(
        "--rows", default="", metavar="REGEX", help="measure the rows whose names contain it"
    )
    parsed = parser.parse_args()
    set_library_defaults()
    parsed.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DCCLIP_CACHE"] = str(Path(folder, "cache"))
        PROCESSES.set_forkserver_preload(["dcclip_cli.train.trainer", "dcclip_cli.model.teachers"])
        setup = Setup(torch.device(parsed.device), TINY if parsed.tiny else Sizes(), Path(folder))
        table = Table(setup, parsed, end=time.monotonic() + 60 * parsed.minutes)
        if problem := table.run("preparing", partial(prepare, setup), 600, 1, None).note:
            raise SystemExit(problem)
        table.facts = json.loads((setup.work / "facts.json").read_text())
        steps(table)
        for size in ("256 x 256", "1024 x 768"):
            action = partial(reader_row, setup, f"{size.split()[0]}.tar")
            table.measure(f"reader, {size}", action)
            table.measure(f"reader, {size}, at most 12 cores", action, cores=12)
        for way in ("eager", "compiled"):  # which takes minutes
            for tower in ("image", "text"):
                table.measure(
                    f"forward AltCLIP {tower} tower, {way}", partial(teacher_row, setup, tower, way)
                )
            for name in ["RN50"] if parsed.tiny else STUDENTS:
                table.measure(
                    f"student {name}, forward and backward, {way}",
                    partial(student_row, setup, name, way),
                )
    print("\n".join([HEADER, *map(line, table.rows)]))


if __name__ == "__main__":
    main()
