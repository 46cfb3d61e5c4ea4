"""Runs of a few steps, each with a fault at another of its changes of files; prints what came of each as JSON.

    LD_PRELOAD=faults.so python fault_runs.py FOLDER DATA MODE EVERY

One process forks a child for each run, so that libraries load once. After each fault the folder has to hold what was
there before or what was to be written, and the same call without a fault has to end in the weights of a whole run.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import twofold
import twofold.commands.pretrain  # what a run loads, loaded once
import twofold.report.run
from twofold.errors import UserError
from twofold.training.checkpoint import checkpoints, load_checkpoint

OPTIONS: dict[str, Any] = {
    "epochs": 2, "batch": 8, "views.size": 16, "data.workers": 0, "report": True,
    "training": {"device": "cpu", "precision": "fp32", "keep": 1, "checkpoint_every": 2, "log_every": 2, "threads": 1},
    "encoder": {"name": "resnet10", "width": 0.125, "stem": "cifar"}, "monitor.every": 1,
}  # fmt: skip
FAULTS = ctypes.CDLL(None)
FAULTS.faults_seen.restype = ctypes.c_long


def child(out: Path, data: str, result: Path, n: int = -1, mode: int = 0) -> int:
    """Run in a process of its own; its exit status: 0, 2 for an error in words, 3 for a traceback."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    status, words = 0, ""
    with contextlib.redirect_stdout(io.StringIO()) as told:
        FAULTS.faults_arm(str(out).encode(), ctypes.c_long(n if n >= 0 else 1 << 60), mode)
        try:
            twofold.pretrain(data, out, resume=True, **OPTIONS)
        except UserError as error:
            status, words = 2, str(error)
        except BaseException:
            status, words = 3, traceback.format_exc()
        seen = FAULTS.faults_seen()
    FAULTS.faults_arm(b"", ctypes.c_long(-1), 0)
    result.write_text(json.dumps({"seen": seen, "words": words, "told": told.getvalue()}))
    os._exit(status)


def weights(out: Path) -> str:
    return hashlib.sha256((out / "encoder.safetensors").read_bytes()).hexdigest()


def learned(out: Path) -> str:
    """The encoder's tensors, and the rows but for the seconds: the header holds how long it took."""
    state = twofold.load(out).state_dict()
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in state.values()))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    digest.update(json.dumps([{k: v for k, v in row.items() if k != "seconds"} for row in rows]).encode())
    return digest.hexdigest()


def check_sound(out: Path) -> None:
    """Whatever lies in the folder under its own name is whole."""
    for path in checkpoints(out):
        load_checkpoint(path)
    if (out / "encoder.safetensors").exists():
        twofold.load(out)


def main(folder: str, data: str, mode: str, every: str) -> None:
    base, result = Path(folder), Path(folder) / "result.json"
    assert child(base / "whole", data, result) == 0, result.read_text()
    total, wanted = json.loads(result.read_text())["seen"], learned(base / "whole")
    print(json.dumps({"changes": total}), flush=True)
    for n in range(0, total, int(every)):
        out = base / f"run{n}"
        result.unlink(missing_ok=True)
        status = child(out, data, result, n, int(mode))
        words = json.loads(result.read_text())["words"] if result.exists() else ""
        problem = ""
        try:
            check_sound(out)
            again = child(out, data, result)
            if again != 0:
                problem = f"it cannot go on: {json.loads(result.read_text())['words']}"
            elif learned(out) != wanted:
                problem = "it ends in other weights or rows"
        except BaseException:
            problem = traceback.format_exc()
        print(json.dumps({"n": n, "status": status, "words": words, "problem": problem}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
