"""What a GPU is asked for, in one script of at most six minutes that installs nothing: `make bench-gpu`.

    python benchmarks/gpu.py                # on a GPU: all of it, at full size
    python benchmarks/gpu.py --dry-run      # anywhere: the same parts at a size that a processor does in minutes

The parts come in the order of what is known least: the tests that need a GPU; the race against lightly with ResNet-50
at 224 px, both in turn in one call; the share of the limit, as it comes and compiled; JPEG files decoded on the GPU and
on the cores; 4,096 images a batch in chunks. Each is a script of its own with a limit of its own time; what does not
fit into the rest of the six minutes is said and left out, and so is what another package is missing for. All that is
printed goes to `--out`, too. Exits with 1 if a part failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from children import begin, started
from machine import describe_machine

ROOT = Path(__file__).resolve().parents[1]
HERE = "benchmarks/"
TESTS = [
    "tests/test_cuda.py", "tests/losses/test_loss_kernels.py", "tests/views/test_color_kernels.py",
    "tests/views/test_wave_views.py", "tests/encoders/test_filterbank.py",
]  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A command, its limit in seconds, and a package that it needs besides."""

    name: str
    command: str
    dry: str
    seconds: float
    needs: str | None = None


def parts(cores: int) -> list[Part]:
    """All that is measured, at full size and for a dry run."""
    large = "--encoder resnet50 --size 224 --batch 512"
    small = "--encoder resnet10 --size 32 --batch 16"
    return [
        Part("tests", f"-m pytest -q -rs {' '.join(TESTS)}", f"-m pytest -q --collect-only {TESTS[0]}", 120, "pytest"),
        Part(
            "race against lightly",
            f"{HERE}peers.py {large} --stem imagenet --cores {cores} --device cuda --steps 4 --repeats 2",
            f"{HERE}peers.py {small} --stem cifar --cores 1 --steps 1 --repeats 1",
            120, "lightly",
        ),
        Part(
            "share of the limit", f"{HERE}step.py {large} --steps 20 --group 5",
            f"{HERE}step.py {small} --steps 2 -- --encoder.width=0.125 --training.device=cpu", 60,
        ),
        Part(
            "share of the limit, compiled", f"{HERE}step.py {large} --steps 20 --group 5 -- --training.compile=true",
            f"{HERE}step.py {small} --steps 1 -- --encoder.width=0.125 --training.device=cpu --training.compile=true",
            120,
        ),
        Part(
            "JPEG files", f"{HERE}jpeg_gpu.py --count 2048 --cores {cores}",
            f"{HERE}jpeg_gpu.py --count 64 --cores 1 --repeats 1", 60,
        ),
        Part(
            "4,096 images in chunks",
            f"{HERE}micro_batch.py --encoder resnet50 --size 224 --stem imagenet --device cuda --chunk 512 --repeats 1",
            f"{HERE}micro_batch.py --encoder resnet10 --large 64 --chunk 16 --repeats 1 -- --encoder.width=0.125", 90,
        ),
    ]  # fmt: skip


def run(part: Part, dry: bool, seconds: float, log: Path) -> str:
    """Run one part, print what it prints as it comes; what became of it."""
    if part.needs and importlib.util.find_spec(part.needs) is None:
        return f"not run: {part.needs} is not installed"
    words = [sys.executable, *(part.dry if dry else part.command).split()]
    print(f"\n== {part.name}: {' '.join(words[1:])}", flush=True)
    options = {"cwd": ROOT, "env": {"PYTHONUNBUFFERED": "1"}, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with started(words, **options) as process:
        try:
            said, late = process.communicate(timeout=seconds)[0], False
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # and the processes that it started, which hold the GPU's memory
            said, late = process.communicate()[0], True
    print(said[-6000:], flush=True)
    with log.open("a") as file:
        file.write(f"\n== {part.name}: {' '.join(words[1:])}\n{said}")
    if late:
        return f"not finished within {seconds:.0f} s"
    return "done" if process.returncode == 0 else f"FAILED with {process.returncode}"


def main() -> None:
    """Read the options, run the parts, tell what became of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="small, on the processor: does every part run?")
    parser.add_argument("--minutes", type=float, default=6, help="of all parts together, on a GPU")
    parser.add_argument("--only", default="", help="parts whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("bench-gpu.txt"))
    given = parser.parse_args()
    if not given.dry_run and not torch.cuda.is_available():
        sys.exit("no GPU here: --dry-run runs all parts small, on the processor")
    machine = f"{describe_machine()}; " + (torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")
    given.out.write_text(machine + "\n")
    print(machine)
    end, outcomes = time.monotonic() + 60 * given.minutes, {}
    for part in parts(os.cpu_count() or 1):
        if given.only not in part.name:
            continue
        begun, left = time.monotonic(), 1200 if given.dry_run else end - time.monotonic()
        if left < 10:
            outcomes[part.name] = "not run: no time is left"
            continue
        outcome = run(part, given.dry_run, left if given.dry_run else min(left, part.seconds), given.out)
        outcomes[part.name] = f"{outcome} ({time.monotonic() - begun:.0f} s)"
    summary = "\n".join(f"{name}: {outcome}" for name, outcome in outcomes.items())
    print(f"\n{summary}")
    with given.out.open("a") as file:
        file.write(f"\n{summary}\n")
    sys.exit(1 if any("FAILED" in outcome or "not finished" in outcome for outcome in outcomes.values()) else 0)


if __name__ == "__main__":
    begin(main)
