"""Batches from forked processes: they arrive as they were made, however little the system gives."""

import multiprocessing
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import torch

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.data.batch import Batch, Texts
from dcclip_cli.model.towers import Tokens
from dcclip_cli.train.loading import load_batches
from tests.train.jobs import ENVIRONMENT, refused


def batch(number: int) -> Batch:
    """Pixels of 1.2 MB in channels_last, a view of a larger tensor, bf16, and a tensor of nothing."""
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 255, (32, 112, 112, 3), generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)
    ids = torch.arange(64).reshape(8, 8)[:, 2:5]
    texts = Texts(torch.arange(8), ["猫", "a cat"] * 4, Tokens(ids, torch.ones(8, 3, dtype=torch.bfloat16)))
    return Batch(torch.tensor([number]), torch.zeros(0, dtype=torch.int64), pixels, (pixels[:0],), {"zh": texts})


def make(samples: list[int]) -> Batch:
    if samples[0] < 20:
        return batch(samples[0])
    raise DcclipError("{n} is too many", "ask for {n} less", n=samples[0])


@pytest.fixture
def limit() -> Iterator[Any]:
    """Sets a limit of this process and its children, until the test ends."""
    before = {kind: resource.getrlimit(kind) for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)}
    yield lambda kind, value: resource.setrlimit(kind, (value, before[kind][1]))
    for kind, values in before.items():
        resource.setrlimit(kind, values)


def tensors(one: Batch) -> list[torch.Tensor]:
    zh = one.texts["zh"]
    tensors_of = [one.sample_index, one.augmentation_index, one.pixels, *one.teacher_pixels]
    return [*tensors_of, zh.image_index, zh.tokens.ids, zh.tokens.mask]


@pytest.mark.parametrize("little", ["", "files of 1 KB", "16 descriptors"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_arrives_as_it_was_made(workers: int, little: str, limit: Any) -> None:
    if little == "files of 1 KB":
        limit(resource.RLIMIT_FSIZE, 1000)
    elif little:
        limit(resource.RLIMIT_NOFILE, max(map(int, os.listdir("/proc/self/fd"))) + 17)
    batches = load_batches(make, [[number] for number in range(21)], workers, prefetch=4)
    for number in range(20):
        target = batch(number)
        got = next(batches)
        assert got.texts["zh"].captions == target.texts["zh"].captions
        for tensor, loaded in zip(tensors(target), tensors(got), strict=True):
            assert torch.equal(tensor, loaded) and tensor.dtype == loaded.dtype and tensor.stride() == loaded.stride()
        got.pixels.add_(1)  # it may be written to
    with refused("20 is too many", "ask for 20 less"):
        next(batches)
    assert not multiprocessing.active_children()


_SMALL = """
from tests.train.test_loading import make
from dcclip_cli.train.loading import load_batches
print(sum(len(batch.pixels) for batch in load_batches(make, [[number] for number in range(8)], 2)))
"""


def test_shared_memory_smaller_than_a_batch_is_enough() -> None:
    shell = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = "mount -t tmpfs -o size=200k tmpfs /dev/shm"
    if not which("unshare") or subprocess.run([*shell, mount], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a small /dev/shm")
    root = Path(__file__).parents[2]
    shown = subprocess.run(
        [*shell, f'{mount} && exec "$0" -c "$1"', sys.executable, _SMALL],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        timeout=100,
    )
    assert shown.stdout == b"256\n", shown.stderr.decode()


_KEPT = """
from tests.train.test_loading import make
from dcclip_cli.train.loading import load_batches
kept = load_batches(make, [[number] for number in range(8)], 2)
next(kept)
"""


def test_a_program_ends_whatever_keeps_its_batches() -> None:
    subprocess.run([sys.executable, "-c", _KEPT], env=os.environ | ENVIRONMENT, check=True, timeout=100)
