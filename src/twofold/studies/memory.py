"""How much memory a process has needed at most."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

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
