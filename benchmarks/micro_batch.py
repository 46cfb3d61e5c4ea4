"""A large batch on a small machine: time per image and memory of `--micro-batch` against a batch that fits as it is.

    python benchmarks/micro_batch.py        # ResNet-18, 32 px: 4,096 images in chunks of 256 against 256; ten minutes

Both are steps of the run that `twofold pretrain` would start, each in a process of its own, in turn. Memory is the
peak of the process's resident set, Python, torch and images included; on a GPU, of what torch allocated there.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import yaml
from children import begin, output
from machine import describe_machine
from peers import wait
from step import prepare, smooth_images


def measure(given: argparse.Namespace) -> dict[str, float]:
    """Milliseconds an image and megabytes, of steps after the first."""
    torch.set_num_threads(given.threads)
    options = {"views.size": given.size, "batch": given.batch, "epochs": 1000, "encoder.name": given.encoder}
    options |= {"encoder.stem": given.stem, "monitor.every": 0, "training.threads": given.threads}
    options["training.device"] = given.device
    if given.micro_batch:
        options["micro_batch"] = given.micro_batch
    options |= {k: yaml.safe_load(v) for k, v in (option.lstrip("-").split("=", 1) for option in given.options)}
    with tempfile.TemporaryDirectory() as folder:
        training = prepare(smooth_images(max(given.batch, 1024), given.size), options, Path(folder) / "run")
        model, optimizer = training.accelerator.prepare(training.method, training.optimizer)
        for i, batch in enumerate(training.loader.iterate(0, 1 + given.steps)):
            if i == 1:
                wait(given.device)
                begun = time.perf_counter()
            training.update(model, optimizer, batch)
            training.step += 1
        wait(given.device)
        seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if given.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    return {"ms": 1000 * seconds / (given.steps * given.batch), "mb": peak}


def main() -> None:
    """Read the options, measure in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", type=int, default=4096, help="the batch that is taken in chunks")
    parser.add_argument("--chunk", type=int, default=256, help="images of a chunk, and the batch that is compared")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--stem", choices=("cifar", "imagenet"), default="cifar")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--micro-batch", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("options", nargs="*", help="options of `twofold pretrain`, after --")
    given = parser.parse_args()
    if given.batch:
        print(json.dumps(measure(given)))
        return
    kinds = {
        "whole": ["--batch", str(given.chunk), "--steps", "8"],
        "chunks": ["--batch", str(given.large), "--micro-batch", str(given.chunk)],
    }
    names = ("size", "encoder", "stem", "device", "threads")
    common = [word for name in names for word in (f"--{name}", str(vars(given)[name]))]
    by_kind: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(given.repeats):
        for kind, words in kinds.items():
            command = [sys.executable, __file__, *words, *common, "--", *given.options]
            by_kind[kind].append(json.loads(output(command).splitlines()[-1]))
    print(f"{describe_machine()}; {given.encoder}, {given.size} px; n = {given.repeats}; {given.options}")
    for kind, runs in by_kind.items():
        times, batch = sorted(run["ms"] for run in runs), given.chunk if kind == "whole" else given.large
        spread = f"{median(times):.2f} ms an image [{times[0]:.2f}..{times[-1]:.2f}]"
        print(f"{kind:>6}, batch {batch}: {spread}, {max(run['mb'] for run in runs):.0f} MB")
    ratios = sorted(a["ms"] / b["ms"] for a, b in zip(by_kind["chunks"], by_kind["whole"], strict=True))
    print(f"chunks / whole: x{median(ratios):.2f} the time an image [{ratios[0]:.2f}..{ratios[-1]:.2f}]")


if __name__ == "__main__":
    begin(main)
