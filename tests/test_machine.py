"""What a process frees, it keeps, once asked to."""

import subprocess
import sys

import pytest

COUNT_NEW_PAGES = """
import resource
from dcclip_cli.machine import keep_freed_memory
{}
block = b"x" * 40_000_000
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    del block
    block = b"x" * 40_000_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def new_pages(first: str) -> int:
    code = COUNT_NEW_PAGES.format(first)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="it is about the C library of Linux")
def test_a_block_that_was_freed_and_asked_for_again_brings_no_new_pages() -> None:
    assert new_pages("keep_freed_memory()") < 100 <= new_pages("")
