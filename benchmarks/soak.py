"""A long run's memory, open files, threads and rate, and whether they stay as they were: a verdict by regression.

    python benchmarks/soak.py                       # 10,000 steps of a small run on files
    python benchmarks/soak.py --steps 100000 -- --encoder.name=resnet18 --views.size=32

`twofold pretrain` trains on a folder of labelled PNG files that one process decodes anew each time, with monitors, a
row of metrics every 50 steps, checkpoints at the default distance and the report. Meanwhile memory (the resident set,
in which shared pages count once a process), open files and threads of all its processes are read, and so is the
processor time that they have used. Behind a warm-up each is regressed on the step, over 20 stretches, as neighbouring
readings are alike; what it grows by in all the steps is told with its 95 % interval. It is flat where all of that
interval lies within what is allowed: a share of its mean, and of files and threads one. A wide interval is no
evidence: undecided. Exits with 1 if anything that is judged is not flat.

Options after `--` are those of `twofold pretrain`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from machine import describe_machine
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from step import smooth_images

STRETCHES = 20
OPTIONS = [
    *("--batch", "8", "--views.size", "16", "--encoder.name", "resnet10", "--encoder.width", "0.125"),
    *("--training.device", "cpu", "--training.precision", "fp32", "--training.threads", "1"),
    *("--training.log_every", "50", "--data.workers", "1", "--data.cache", "off"),
]
Readings = dict[str, NDArray[np.float64]]


def make_images(folder: Path, count: int) -> None:
    """Two classes of small PNG files."""
    for i, image in enumerate(smooth_images(count, 20)):
        (place := folder / f"class{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(image).save(place / f"{i}.png")


def family(process: int) -> list[int]:
    """A process and all that it started, and they."""
    result = [process]
    for each in result:
        for tasks in Path(f"/proc/{each}/task").glob("*/children"):
            result += [int(word) for word in tasks.read_text().split()]
    return result


def look(process: int) -> dict[str, float]:
    """What the system says of a process and its children together."""
    page, tick = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
    result = {"MiB": 0.0, "open files": 0.0, "threads": 0.0, "processor seconds": 0.0, "processes": 0.0}
    for each in family(process):
        place = Path(f"/proc/{each}")
        facts = (place / "stat").read_text().rpartition(")")[2].split()  # from the third field on
        result["MiB"] += int((place / "statm").read_text().split()[1]) * page / 2**20
        result["open files"] += len(list((place / "fd").iterdir()))
        result["threads"] += int(facts[17])
        result["processor seconds"] += (int(facts[11]) + int(facts[12])) / tick
        result["processes"] += 1
    return result


def last_row(metrics: Path) -> dict[str, float]:
    """The last whole row of a run; empty before the first."""
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    for line in reversed(lines[-2:]):
        try:
            return dict(json.loads(line))
        except ValueError:
            continue  # it is being written
    return {}


def watch(command: list[str], run: Path, seconds: float) -> tuple[Readings, int]:
    """Readings once a row of metrics, by their step, until the command ends; and its exit status."""
    rows: list[dict[str, float]] = []
    with (run.parent / "output.txt").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                time.sleep(seconds)
                row = last_row(run / "metrics.jsonl")
                if row and (not rows or row["step"] > rows[-1]["step"]):
                    try:
                        rows.append(look(process.pid) | {"step": row["step"], "seconds": row["seconds"]})
                    except (OSError, IndexError):
                        continue  # one of them ended while it was looked at
        finally:
            process.kill()
            process.wait()
    return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}, process.returncode


def stretches(readings: Readings) -> tuple[NDArray[np.float64], Readings]:
    """(middle step, mean or rate of each quantity) of stretches of as many readings each, but for one."""
    step = readings["step"]
    ends = np.linspace(0, len(step) - 1, STRETCHES + 1).astype(int)
    held = ("MiB", "open files", "threads")
    means = {name: np.array([readings[name][a:b].mean() for a, b in pairwise(ends)]) for name in held}
    used = {"processor": "processor seconds", "clock": "seconds"}
    rates = {name: 1e3 * np.diff(readings[which][ends]) / np.diff(step[ends]) for name, which in used.items()}
    return (step[ends[1:]] + step[ends[:-1]]) / 2, means | rates


def verdict(
    name: str, step: NDArray[np.float64], value: NDArray[np.float64], steps: int, share: float, least: float = 0.0
) -> bool:
    """Print how a quantity grows; whether it is shown to stay within a share of its mean, or `least`."""
    line, mean = stats.linregress(step, value), float(value.mean())
    grows, half = line.slope * steps, stats.t.ppf(0.975, len(step) - 2) * line.stderr * steps
    most = max(share * mean, least)
    said = "flat" if abs(grows) + half <= most else "GROWS" if grows - half > 0 else "UNDECIDED"
    print(
        f"{name}: mean {mean:.4g}, stretches {value.min():.4g} to {value.max():.4g}; grows by {grows:+.3g} ± "
        f"{half:.2g} ({100 * grows / mean:+.2f} ± {100 * half / mean:.2f} %) in {steps:,}, {most:.2g} allowed: {said}"
    )
    return said == "flat"


def main() -> None:
    """Read the options, run, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--warm-up", type=float, default=0.1, help="share of the steps that is left out")
    parser.add_argument("--every", type=float, default=0.5, help="seconds between two looks")
    parser.add_argument("--memory", type=float, default=0.02, help="share of its mean that memory may grow by")
    parser.add_argument("--rate", type=float, default=0.05, help="share of its mean that a step's time may grow by")
    parser.add_argument("--save", type=Path, help="write the readings there, as .npz")
    parser.add_argument("options", nargs="*", help="options of `twofold pretrain`, after --")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (data := Path(folder) / "images").mkdir()
        make_images(data, given.images)
        words = [*OPTIONS, *given.options]
        batch = int(words[words.index("--batch") + 1])
        epochs = str(given.steps * batch / given.images)
        command = [sys.executable, "-m", "twofold", "pretrain", str(data), "--out", str(Path(folder) / "run")]
        readings, status = watch([*command, "--epochs", epochs, *words], Path(folder) / "run", given.every)
        if status:
            raise SystemExit((Path(folder) / "output.txt").read_text()[-3000:])
        saved = len(list((Path(folder) / "run" / "checkpoints").iterdir()))
    if given.save:
        np.savez(given.save, **readings)
    late = {name: value[readings["step"] > given.warm_up * given.steps] for name, value in readings.items()}
    last, count = int(readings["step"][-1]), len(late["step"])
    if count < 2 * STRETCHES:
        raise SystemExit(f"{count} readings behind the warm-up: too few; take more steps, or look more often")
    print(f"{describe_machine()}; {' '.join(words)}")
    print(
        f"{last:,} steps of {given.steps:,} and {saved} checkpoints at the end, {readings['seconds'][-1]:.0f} s, "
        f"{count} readings behind {given.warm_up:.0%} of warm-up"
    )
    step, values = stretches(late)
    flat = [verdict("MiB", step, values["MiB"], last, given.memory)]
    flat += [verdict(name, step, values[name], last, 0, least=1) for name in ("open files", "threads")]
    flat += [verdict("ms of processor time a step", step, values["processor"], last, given.rate)]
    verdict("ms by the clock a step (not judged: others may use the machine)", step, values["clock"], last, given.rate)
    sys.exit(0 if all(flat) else 1)


if __name__ == "__main__":
    main()
