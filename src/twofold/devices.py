"""What this machine has: devices and their arithmetic, cores, memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
from pathlib import Path

import torch

from twofold.errors import UserError


def choose_precision(asked: str, device: torch.device) -> str:
    """Resolve `training.precision`: "no" or "bf16" in Accelerate's words.

    bf16 on a CPU pays only where the processor multiplies it natively (AVX-512 BF16 or AMX).
    """
    if asked != "auto":
        return "bf16" if asked == "bf16" else "no"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if device.type == "cpu" and _cpu_multiplies_bf16() else "no"


def _cpu_multiplies_bf16() -> bool:
    """Whether the processor has instructions for bf16: where oneDNN must imitate them, bf16 is slower than float32."""
    if hasattr(torch.cpu, "get_capabilities"):  # newer torch
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


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


def return_freed_memory() -> bool:
    """Give what was freed back to the system, where the C library keeps it for the thread that freed it.

    Returns:
        Whether any was given back; False, too, where the C library has no such call.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    return trim is not None and bool(trim(0))


def choose_device(asked: str, option: str = "--training.device") -> torch.device:
    """The device that `option` names; auto takes a GPU where there is one. UserError if it is not there."""
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if asked == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if present[name]))
    if not present[asked]:
        raise UserError(f"{option} {asked}: torch sees no such device here; use {option} cpu")
    return torch.device(asked)


_STATUS = Path("/proc/self/status")


def peak_memory(device: str) -> int:
    """Bytes at the peak so far: of tensors on a CUDA device, else of this process with its libraries.

    Linux's own count of the process is read, as getrusage may tell that of the process that started this one.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if _STATUS.exists():
        line = next((line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if line is not None:
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_memory() -> int:
    """Bytes that can be allocated without swapping: the machine's, or the container's (cgroup v2) if that has less."""
    free = sys.maxsize
    with contextlib.suppress(OSError, ValueError, AttributeError):
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, StopIteration):  # counts what the page cache would give back
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):  # absent, or "max"
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return max(free, 0)


def usable_cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
