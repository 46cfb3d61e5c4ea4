"""What a measurement ran on, in one line."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def describe_machine() -> str:
    """Processor or GPU, cores and threads, and the versions that matter."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else names[0] if names else platform.machine()
    return (
        f"{device}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s); "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )
