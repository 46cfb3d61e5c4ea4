"""A long run's memory, open files, threads and rate, and whether they stay as they were: a verdict by regression.

    python benchmarks/soak.py                       # 10,000 steps of a small run on files
    python benchmarks/soak.py --steps 100000 -- --encoder.name=resnet18 --views.size=32

`twofold pretrain` trains on a folder of labelled PNG files that one process decodes anew each time, with monitors, a
row of metrics every 50 steps, checkpoints at the default distance and the report. Meanwhile memory (the resident set,
in which shared pages count once a process), open files and threads of all its processes are read. Behind a warm-up
each is regressed on the step, over 20 stretches, as neighbouring readings are alike; what it grows by in all the steps
is told with its 95 % interval.

A machine does not keep its pace for minutes, so the time of a step is not compared with that of minutes ago: when the
run has come to its last two fifths, a fresh one of the same command starts beside it, and the two take turns of some
250 steps, one held while the other goes on. The processor time of a late step over that of a fresh one is told as the
mean over the pairs of turns with its 95 % interval.

What is judged is flat where all of its interval lies within what is allowed: a share of its mean, and of files and
threads one. A wide interval is no evidence: undecided. Exits with 1 if anything that is judged is not flat.

Options after `--` are those of `twofold pretrain`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from children import begin
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
    if not metrics.exists():
        return {}
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    for line in reversed(lines[-2:]):
        try:
            return dict(json.loads(line))
        except ValueError:
            continue  # it is being written
    return {}


class Run:
    """A `twofold pretrain` in its own process, which can be held."""

    def __init__(self, command: list[str], folder: Path) -> None:
        """Start it; `folder` is its run's folder, beside which its output goes."""
        self.folder = folder
        with folder.with_suffix(".txt").open("w") as output:
            words = [*command, "--out", str(folder)]
            self.process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT)

    def row(self) -> dict[str, float]:
        """The last row of its metrics."""
        return last_row(self.folder / "metrics.jsonl")

    def hold(self, held: bool) -> None:
        """Stop all of its processes where they are, or let them go on."""
        for each in family(self.process.pid):
            os.kill(each, signal.SIGSTOP if held else signal.SIGCONT)

    def next_row(self) -> tuple[float, float]:
        """(step, processor seconds) when a further row is written; (0, 0) if the run ends instead."""
        before = self.row().get("step", 0)
        while self.process.poll() is None:
            if (step := self.row().get("step", 0)) > before:
                return step, look(self.process.pid)["processor seconds"]
            time.sleep(0.01)
        return 0.0, 0.0

    def turn(self, steps: int) -> float:
        """Milliseconds of processor time a step over about so many steps, held before and after; nan at its end."""
        self.hold(False)
        first, begun = self.next_row()
        last, ended = self.next_row()
        while last and last - first < steps:
            last, ended = self.next_row()
        if not last or self.process.poll() is not None:
            return float("nan")
        self.hold(True)
        return 1e3 * (ended - begun) / (last - first)


def watch(run: Run, seconds: float, until: float) -> Readings:
    """Readings once a row of metrics, by their step, up to this step."""
    rows: list[dict[str, float]] = []
    while run.process.poll() is None and not (rows and rows[-1]["step"] >= until):
        time.sleep(seconds)
        row = run.row()
        if row and (not rows or row["step"] > rows[-1]["step"]):
            try:
                rows.append(look(run.process.pid) | {"step": row["step"], "seconds": row["seconds"]})
            except (OSError, IndexError):
                continue  # one of them ended while it was looked at
    return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}


def in_turns(late: Run, fresh: Run, steps: int, warm_up: int) -> NDArray[np.float64]:
    """[pairs, 2] milliseconds of processor time a step of both, until the late run has ended."""
    while fresh.row().get("step", 0) < warm_up and fresh.process.poll() is None:
        fresh.next_row()
    fresh.hold(True)
    pairs = []
    while True:
        pair = late.turn(steps), fresh.turn(steps)
        if any(map(np.isnan, pair)):
            return np.array(pairs)
        pairs.append(pair)


def stretches(readings: Readings) -> tuple[NDArray[np.float64], Readings]:
    """(middle step, mean of each quantity) of stretches of as many readings each, but for one."""
    step = readings["step"]
    ends = np.linspace(0, len(step) - 1, STRETCHES + 1).astype(int)
    held = ("MiB", "open files", "threads")
    means = {name: np.array([readings[name][a:b].mean() for a, b in pairwise(ends)]) for name in held}
    return (step[ends[1:]] + step[ends[:-1]]) / 2, means


def verdict(
    name: str, step: NDArray[np.float64], value: NDArray[np.float64], steps: int, share: float, least: float = 0.0
) -> bool:
    """Print how a quantity grows; whether it is shown to stay within a share of its mean, or `least`."""
    line, mean = stats.linregress(step, value), float(value.mean())
    grows, half = line.slope * steps, stats.t.ppf(0.975, len(step) - 2) * line.stderr * steps
    if np.ptp(value) == 0:
        half = 0.0  # the same in every stretch, of which the regression knows no error
    most = max(share * mean, least)
    said = "flat" if abs(grows) + half <= most else "GROWS" if grows - half > 0 else "UNDECIDED"
    print(
        f"{name}: mean {mean:.4g}, stretches {value.min():.4g} to {value.max():.4g}; grows by {grows:+.3g} ± "
        f"{half:.2g} ({100 * grows / mean:+.2f} ± {100 * half / mean:.2f} %) in {steps:,}, {most:.2g} allowed: {said}"
    )
    return said == "flat"


def verdict_of_time(pairs: NDArray[np.float64], share: float) -> bool:
    """Print how much longer a late step takes than a fresh one; whether it is shown to stay within this share."""
    ratios = pairs[:, 0] / pairs[:, 1] - 1
    grows, half = ratios.mean(), stats.t.ppf(0.975, len(ratios) - 1) * stats.sem(ratios)
    said = "flat" if abs(grows) + half <= share else "GROWS" if grows - half > 0 else "UNDECIDED"
    late, fresh = np.median(pairs, axis=0)
    print(
        f"ms of processor time a step: late {late:.2f}, fresh {fresh:.2f} (medians of {len(pairs)} turns each); "
        f"grows by {100 * grows:+.2f} ± {100 * half:.2f} %, {100 * share:.0f} % allowed: {said}"
    )
    return bool(said == "flat")


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--warm-up", type=float, default=0.1, help="share of the steps that is left out")
    parser.add_argument("--every", type=float, default=0.5, help="seconds between two looks")
    parser.add_argument("--memory", type=float, default=0.02, help="share of its mean that memory may grow by")
    parser.add_argument("--rate", type=float, default=0.05, help="share of its mean that a step's time may grow by")
    parser.add_argument("--save", type=Path, help="write the readings there, as .npz")
    parser.add_argument("options", nargs="*", help="options of `twofold pretrain`, after --")
    return parser


def measure(given: argparse.Namespace, words: list[str]) -> tuple[Readings, NDArray[np.float64], int]:
    """Readings of the run, its late steps against fresh ones, and how many checkpoints it left."""
    with tempfile.TemporaryDirectory() as folder:
        (data := Path(folder) / "images").mkdir()
        make_images(data, given.images)
        batch = int(words[words.index("--batch") + 1])
        epochs = str(given.steps * batch / given.images)
        command = [sys.executable, "-m", "twofold", "pretrain", str(data), "--epochs", epochs, *words]
        runs = [Run(command, Path(folder) / "late")]
        try:
            readings = watch(runs[0], given.every, 0.6 * given.steps)
            runs[0].hold(True)
            runs.append(Run(command, Path(folder) / "fresh"))
            pairs = in_turns(*runs, steps=250, warm_up=int(given.warm_up * given.steps))
            runs[0].process.wait()
        finally:
            for run in runs:
                run.process.kill()
                run.process.wait()
        if runs[0].process.returncode or len(pairs) < 3:
            raise SystemExit(runs[0].folder.with_suffix(".txt").read_text()[-3000:] or "too few turns: take more steps")
        saved = len(list((runs[0].folder / "checkpoints").iterdir()))
    return readings, pairs, saved


def main() -> None:
    """Read the options, run, judge."""
    given = parser().parse_args()
    words = [*OPTIONS, *given.options]
    readings, pairs, saved = measure(given, words)
    if given.save:
        np.savez(given.save, pairs=pairs, **readings)
    late = {name: value[readings["step"] > given.warm_up * given.steps] for name, value in readings.items()}
    last, count = int(readings["step"][-1]), len(late["step"])
    if count < 2 * STRETCHES:
        raise SystemExit(f"{count} readings behind the warm-up: too few; take more steps, or look more often")
    print(f"{describe_machine()}; {' '.join(words)}")
    print(
        f"{given.steps:,} steps and {saved} checkpoints at the end; {last:,} steps in {readings['seconds'][-1]:.0f} s, "
        f"{count} readings behind {given.warm_up:.0%} of warm-up"
    )
    step, values = stretches(late)
    flat = [verdict("MiB", step, values["MiB"], last, given.memory)]
    flat += [verdict(name, step, values[name], last, 0, least=1) for name in ("open files", "threads")]
    flat += [verdict_of_time(pairs, given.rate)]
    sys.exit(0 if all(flat) else 1)


if __name__ == "__main__":
    begin(main)
