"""Who gives memory to arrays and pictures that are made and freed all the time: the process, or the kernel anew?"""

from __future__ import annotations

import sys

# malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD.
_KEEP_MEMORY = {-4: 0, -1: 2**31 - 1, -2: 256 * 2**20}


def keep_freed_memory() -> None:
    """Let this process keep what it frees, where the C library is glibc: its numbers stay the same.

    glibc gives large blocks back and asks for them again, page by page, at every step of training and for every picture
    of a folder. Keeping them makes a step of EfficientNet-Lite0 a third faster, and saves 600 pages for each picture of
    640 x 480.
    """
    if sys.platform != "linux":
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for parameter, value in _KEEP_MEMORY.items():
            mallopt(parameter, value)
