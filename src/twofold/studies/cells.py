"""Cells of a study that are runs of their own, each trained and scored in a process, several at a time where asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from twofold.devices import usable_cores
from twofold.errors import Stopped, UserError
from twofold.interrupts import StopRequest

_POLL = 0.1  # seconds between two looks at the cells' processes


class Cell(NamedTuple):
    """A cell to be done: its folder, and what `twofold.commands.study_cell` is told, in JSON's types."""

    place: Path
    work: dict[str, Any]


_Work = tuple[Cell, "subprocess.Popen[bytes]"]


def run_cells(cells: Sequence[Cell], jobs: int = 1) -> None:
    """Train and score cells, each in a process of its own; a signal ends those at work, too.

    Should this process end without that, as by SIGKILL, they end with it, as by SIGTERM: with a checkpoint.

    Args:
        cells: what is to be done, in this order.
        jobs: how many at a time. On a machine with GPUs they take them in turn; on CPUs they share the cores.

    Raises:
        Stopped: a signal ended them early.
        UserError: a cell failed; those that were at work beside it are done first.
    """
    waiting, working, failed = list(cells), dict[int, _Work](), list[tuple[Cell, int]]()
    with StopRequest() as stop:
        try:
            while (waiting and not failed) or working:
                for slot in range(jobs):
                    if slot not in working and waiting and not failed and stop.signal is None:
                        cell = waiting.pop(0)
                        working[slot] = cell, _begin(cell, slot, jobs)
                time.sleep(_POLL)
                if stop.signal is not None:
                    for _, process in working.values():
                        process.terminate()  # one that still loads PyTorch would answer Ctrl-C by a traceback
                    for _, process in working.values():
                        process.wait()
                    break
                for slot, (cell, process) in list(working.items()):
                    if process.poll() is not None:
                        del working[slot]
                        failed += [(cell, process.returncode)] if process.returncode else []
        finally:
            for _, process in working.values():
                if process.poll() is None:
                    process.kill()
                    process.wait()
    if stop.signal is not None:
        places = [cell.place for cell, _ in working.values()] or [cell.place for cell in cells[:1]]
        raise Stopped.at(f"in {places[0]}", stop.signal)
    if failed:
        cell, status = failed[0]
        raise UserError(f"the cell {cell.place.name} failed (status {status}); its own message is above")


def _begin(cell: Cell, slot: int, jobs: int) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "twofold.commands.study_cell", str(cell.place), json.dumps(cell.work)]
    environment = os.environ | _share(slot, jobs)
    # Ctrl-C is to reach it once. The pipe is for `end_with_writer`: nothing is written, and its end is ours.
    return subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True, env=environment)


def _share(slot: int, jobs: int) -> dict[str, str]:
    """What of the machine the process in a slot may use, as environment variables; nothing where it is alone."""
    if jobs == 1:
        return {}
    devices = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    devices = devices or [str(i) for i in range(torch.cuda.device_count())]
    if devices:
        return {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]}
    return {"OMP_NUM_THREADS": str(max(1, usable_cores() // jobs))}
