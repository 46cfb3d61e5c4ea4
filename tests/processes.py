"""Run a function in several processes that form a gloo process group."""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_processes(function: Callable[..., Any], world: int, *args: Any, timeout: float = 120.0) -> list[Any]:
    """Call `function(rank, *args)` in `world` spawned processes and give what each returned, by rank.

    Args:
        function: of a module's top level (it is pickled by name); `torch.distributed` is initialised around it.
        world: number of processes.
        args: picklable; tensors are copied.
        timeout: seconds for all of it, after which the processes are killed.

    Returns:
        What the ranks returned (anything that torch.save takes).

    Raises:
        RuntimeError: a process failed (with its traceback) or the time is over.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("spawn")
        processes = [
            context.Process(target=_enter, args=(rank, world, folder, function, args), daemon=True)
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        try:
            _wait(processes, Path(folder), time.monotonic() + timeout)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
        return [torch.load(Path(folder) / f"result{rank}.pt", weights_only=False) for rank in range(world)]


def _wait(processes: list[Any], folder: Path, deadline: float) -> None:
    while any(process.is_alive() for process in processes):
        failed = [rank for rank, process in enumerate(processes) if process.exitcode not in (None, 0)]
        if failed:  # the others wait for it in a collective: do not wait for them
            break
        if time.monotonic() > deadline:
            raise RuntimeError("the processes did not end in time: a collective that not all ranks joined?")
        time.sleep(0.02)
    # A rank that dies fails the others' collectives within moments: tell all tracebacks, the cause is among them.
    grace = time.monotonic() + 2
    while any(process.exitcode != 0 for process in processes) and time.monotonic() < grace:
        if all(process.exitcode is not None for process in processes):
            break
        time.sleep(0.02)
    errors = [(rank, folder / f"error{rank}.txt") for rank in range(len(processes))]
    told = [f"rank {rank} failed:\n{error.read_text()}" for rank, error in errors if error.exists()]
    if told:
        raise RuntimeError("\n".join(told))
    for rank, process in enumerate(processes):
        if process.exitcode not in (None, 0):
            raise RuntimeError(f"rank {rank} ended with exit code {process.exitcode}")


def _enter(rank: int, world: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world)
        result = function(rank, *args)
        dist.barrier()
        dist.destroy_process_group()
        torch.save(result, Path(folder) / f"result{rank}.pt")
    except BaseException:
        (Path(folder) / f"error{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)
