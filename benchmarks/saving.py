"""What checkpoints cost of a run's time at the default frequency, and what of it the look for infinities costs.

    python benchmarks/saving.py                                  # ResNet-18, 32 px, batch 256, epochs of 8 steps
    python benchmarks/saving.py --images 512 --encoder resnet10 --batch 32 -- --encoder.width=0.125   # short epochs
    python benchmarks/saving.py --encoder resnet50 --size 224 --batch 512 --images 51200         # on a GPU

A run of `--seconds` is trained as `twofold pretrain` trains it, but for monitors, and the time in saves is divided by
the time in all. Then so many saves alone, one after another, tell what one costs, and what of that the look at weights
and optimiser state takes. Options after `--` are those of `twofold pretrain`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from machine import describe_machine
from step import make_data, prepare, timed

from twofold.options import merge
from twofold.training.loop import Training


class Timed:
    """A function that notes how long each call took.

    Args:
        work: what is called.
    """

    def __init__(self, work: Callable[..., Any]) -> None:
        self.work, self.seconds = work, list[float]()

    def __call__(self, *given: Any) -> Any:
        """Call it with the same arguments."""
        begun = time.perf_counter()
        try:
            return self.work(*given)
        finally:
            self.seconds.append(time.perf_counter() - begun)


def train(training: Training[Any, Any], seconds: float) -> tuple[float, list[float], list[float]]:
    """(seconds of the run, of each of its saves, of each look within them), stopped after so many by SIGTERM's way.

    The save at the end is among them: every run has one.
    """
    saves, looks = Timed(training.save), Timed(training.soundness.check_state)
    begun = time.perf_counter()
    training.save = saves  # type: ignore[method-assign]
    training.soundness.check_state = looks  # type: ignore[method-assign]
    training.agree = lambda number: number or 15 * (time.perf_counter() - begun > seconds)  # type: ignore[method-assign]
    training.fit()
    return time.perf_counter() - begun, list(saves.seconds), list(looks.seconds)


def spread(values: list[float]) -> str:
    """The median in ms, and the extremes."""
    return f"{1e3 * median(values):.0f} ms [{1e3 * min(values):.0f}..{1e3 * max(values):.0f}]"


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=32, help="side of a view in pixels")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=100, help="of the run")
    parser.add_argument("--saves", type=int, default=5, help="that are made one after another behind it")
    parser.add_argument("options", nargs="*", help="options of `twofold pretrain`, after --")
    given = parser.parse_args()
    own = {"views.size": given.size, "batch": given.batch, "encoder.name": given.encoder, "epochs": 10_000}
    extra = dict(option.lstrip("-").split("=", 1) for option in given.options)
    options = merge(own, {name: yaml.safe_load(value) for name, value in extra.items()})
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        run = Path(folder) / "run"
        training = prepare(make_data("arrays", given.size, given.images, Path(folder)), options, run)
        whole, saves, looks = train(training, given.seconds)
        alone = [timed(training.accelerator.device, training.save) for _ in range(given.saves)]
        newest = training.run.latest()
        size = 0 if newest is None else newest.stat().st_size
        training.loader.close()
    steps, epochs = training.step, training.step / training.steps_per_epoch
    print(
        f"{describe_machine()}; {given.encoder}, {given.size} px, batch {given.batch}, {given.images} images "
        f"{given.options}"
    )
    print(f"run: {whole:.1f} s, {steps} steps of {1e3 * (whole - sum(saves)) / steps:.0f} ms, {epochs:.1f} epochs")
    print(
        f"saves: {len(saves)} of {size / 2**20:.1f} MiB, {spread(saves)} each: {100 * sum(saves) / whole:.2f} % of the "
        f"run's time; without the last {100 * sum(saves[:-1]) / whole:.2f} %"
    )
    print(f"the look for infinities: {spread(looks)} each: {100 * sum(looks) / whole:.3f} % of the run's time")
    print(f"saves one after another: {spread(alone)}, n = {len(alone)}")


if __name__ == "__main__":
    main()
