"""Who gives memory to arrays and pictures that are made and freed all the time: the process, or the kernel anew?"""

from __future__ import annotations

import sys

# malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD.
_KEEP_MEMORY = {-4: 0, -1: 2**31 - 1, -2: 256 * 2**20}


def keep_freed_memory() -> None:
    """Let this process keep what it frees, where the C library is glibc: its numbers stay the same.

    glibc gives large blocks back and asks for them again, page by page: at every step of training (without it, one of
    EfficientNet-Lite0 takes two thirds of the time), and at every picture of a folder, 600 pages for 640 x 480 pixels.
    """
    if sys.platform != "linux":
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for parameter, value in _KEEP_MEMORY.items():
            mallopt(parameter, value)
