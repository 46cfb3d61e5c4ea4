"""Memory of CPU training: what a step frees is kept for the next step instead of going back to the system."""

from __future__ import annotations

import ctypes
import sys

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell the C library's allocator to keep freed memory, for the rest of the process; returns whether it agreed.

    By default glibc maps every tensor above 32 MB afresh and returns it when freed, so that each step pays a page
    fault, and the zeroing of a page, for every 4 KB of activations: a tenth of the processor time of a ResNet-18 was
    measured to go that way (benchmarks/memory.py). The price is that the process holds its peak, and some gaps.
    Other systems' allocators (and musl's) have no such switch: there it does nothing and returns False.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 << 20))
    agreed = [mallopt(name, value) for name, value in settings]
    return agreed == [1, 1, 1]
