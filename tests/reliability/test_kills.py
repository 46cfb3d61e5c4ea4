"""kill -9 at any moment: the same command goes on, and ends in the same weights and rows, bit for bit."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import twofold

OPTIONS = [
    *("--epochs", "12", "--batch", "8", "--views.size", "16", "--encoder.name", "resnet10", "--encoder.width", "0.125"),
    *("--training.device", "cpu", "--training.precision", "fp32", "--training.threads", "1", "--training.keep", "2"),
    *("--training.checkpoint_every", "3", "--training.log_every", "2", "--data.workers", "1", "--data.cache", "off"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (20 + i % 3, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def start(photos: Path, out: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "twofold", "pretrain", str(photos), "--out", str(out), "--resume", *OPTIONS]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def learned(out: Path) -> tuple[str, list[dict[str, float]]]:
    state = twofold.load(out).state_dict()
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in state.values())).hexdigest()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return digest, [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.timeout(7200)  # beside other work a start takes half a minute
@pytest.mark.parametrize("kills", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_kills_change_nothing(photos: Path, tmp_path: Path, kills: int) -> None:
    """Some fall before the first checkpoint, some in saves, some after the end of training."""
    begun = time.monotonic()
    whole = start(photos, tmp_path / "whole")
    assert whole.wait(600) == 0, whole.communicate()[0]
    seconds, wanted = time.monotonic() - begun, learned(tmp_path / "whole")
    moments, finished = random.Random(0), 0
    out = tmp_path / "run0"
    for kill in range(kills):
        process = start(photos, out)
        try:
            process.wait(moments.uniform(0.3, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.wait(60)
        if process.returncode == 0:
            assert learned(out) == wanted, f"after {kill + 1} kills"
            finished += 1
            out = tmp_path / f"run{finished}"
    last = start(photos, out)
    assert last.wait(600) == 0, last.communicate()[0]
    assert learned(out) == wanted
