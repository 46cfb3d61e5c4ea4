"""How time and memory grow with batch, image, processes and data; and what docs/scaling.md starts from.

    python benchmarks/growth.py --out docs/growth.png          # the short form, some minutes on one core
    python benchmarks/growth.py --full --out docs/growth.png   # batches up to 16,384 for the loss, five repeats
    python benchmarks/growth.py --only start                   # what the plan starts from, no growth

Each point is a process of its own with one thread, in which it is measured several times. Time is processor time of the
process (the machine may be shared), the median; memory is the largest peak of the resident set above what was resident
before. Exponents are
slopes of a straight line through the logarithms of the upper half of the points: what large values tend to.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from children import begin, output

SHORT: dict[str, tuple[int, ...]] = {
    "loss": (64, 256, 1024, 4096),
    "step_batch": (16, 32, 64, 128),
    "step_side": (32, 48, 64, 96),
    "world": (1, 2, 3),
    "order": (10**5, 10**6, 10**7, 10**8, 10**9),
}
FULL = SHORT | {"loss": (64, 256, 1024, 4096, 16384), "step_batch": (32, 64, 128, 256), "world": (1, 2, 4, 8)}
AXES = {
    "loss": "batch N (loss and gradient, 2N x 128)",
    "step_batch": "batch N (step, ResNet-18, 32 px)",
    "step_side": "side in pixels (step, ResNet-18, N = 16)",
    "world": "processes (loss, 512 images each)",
    "order": "images in the data (order of 50 steps of 4096)",
}
PER_POINT = {"loader_folder": 5, "loader_shards": 5, "checkpoint": 3}


def resident(field: str) -> float:
    """MB of VmRSS (now) or VmHWM (peak since the last reset)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def watched(run: Callable[[], Any]) -> dict[str, float]:
    """Processor seconds, wall seconds and extra MB of one call."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    wall, busy = time.perf_counter(), time.process_time()
    run()
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    return {"seconds": busy, "wall": wall, "mb": max(resident("VmHWM") - before, 0.0)}


def loss(batch: int) -> dict[str, float]:
    """NT-Xent by blocks, value and gradient."""
    import torch

    from twofold.losses import nt_xent

    nt_xent(*torch.randn(2, 64, 128).requires_grad_(), implementation="blocks").backward()
    a, b = (torch.randn(batch, 128).requires_grad_() for _ in range(2))
    return watched(lambda: nt_xent(a, b, implementation="blocks").backward())


def step_batch(batch: int, side: int = 32) -> dict[str, float]:
    """Views, forward, loss, backward and update of one step."""
    import torch

    from twofold.encoders import ResNet
    from twofold.heads import HeadConfig
    from twofold.methods import Inputs, SimCLR
    from twofold.randomness import Key
    from twofold.views import ImageViews, ViewsConfig

    method = SimCLR(ResNet(18, stem="cifar"), HeadConfig(), 0.2)
    optimizer = torch.optim.SGD(method.parameters(), 0.01, momentum=0.9)
    views, images = ImageViews(ViewsConfig(size=side)), torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)

    def run(step: int = 1, rows: int = batch) -> None:
        a, b = views.apply(images[:rows], views.draw(Key(0, step), np.arange(rows), side, side))
        method(Inputs(a, b)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    run(0, 2)  # libraries set themselves up, and the optimiser's state is there
    return watched(run)


def step_side(side: int) -> dict[str, float]:
    """The same for 16 images of another size."""
    return step_batch(16, side)


def world(processes: int) -> dict[str, float]:
    """Gather and loss of one rank, each rank with 512 images, over gloo on this machine."""
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (processes, folder), processes, start_method="spawn")
        return json.loads((Path(folder) / "rank0.json").read_text())


def _rank(rank: int, processes: int, folder: str) -> None:
    import torch
    import torch.distributed as dist

    from twofold.losses import nt_xent

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=processes)
    a, b = (torch.randn(512, 128).requires_grad_() for _ in range(2))
    nt_xent(a, b, implementation="blocks").backward()
    dist.barrier()
    results = watched(lambda: nt_xent(a, b, implementation="blocks").backward())
    if rank == 0:
        (Path(folder) / "rank0.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def order(images: int) -> dict[str, float]:
    """Which images 50 steps of 4096 take, in the middle of an epoch, with the start of that epoch."""
    from twofold.data import Order

    def run() -> None:
        made = Order(images, 4096, 0)
        first = images // 8192
        for step in range(first, first + 50):
            made.indices(step)

    return watched(run)


def _photos(folder: Path, count: int = 200) -> None:
    """JPEG files of 500 x 375, soft shapes with some noise: about 100 kB each, as ImageNet's."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(count):
        small = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        large = np.asarray(Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = np.clip(large + rng.integers(-24, 25, large.shape), 0, 255).astype(np.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(folder / f"{i:04d}.jpg", quality=87)


def loader(kind: str) -> list[dict[str, float]]:
    """Images a second of one core that decodes and cuts both crops of 224; resident MB after each epoch."""
    from twofold.commands.shard import shard
    from twofold.data import DataConfig, Loader, Order, open_source
    from twofold.views import ImageViews, ViewsConfig

    config = DataConfig(cache="off", workers=0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _photos(folder / "photos")
        if kind == "shards":
            shard(folder / "photos", folder / "shards")
        source = open_source(folder / ("photos" if kind == "folder" else "shards"), config)
        size = sum(path.stat().st_size for path in (folder / "photos").iterdir()) / 200
        rows = []
        with Loader(source, ImageViews(ViewsConfig(size=224)), Order(200, 40, 0), 0, config=config) as batches:
            for epoch in range(PER_POINT[f"loader_{kind}"] + 1):
                busy = time.process_time()
                for _ in batches.iterate(5 * epoch, 5 * epoch + 5):
                    pass
                rate = 200 / (time.process_time() - busy)
                rows.append({"rate": rate, "mb": resident("VmRSS"), "kb": size / 1000})
    return rows[1:]  # the first epoch sets libraries up


def checkpoint() -> list[dict[str, float]]:
    """MB and seconds of a checkpoint of SimCLR with a ResNet-50 and LARS's momentum, written and synced."""
    import torch

    from twofold.encoders import ResNet
    from twofold.heads import HeadConfig
    from twofold.methods import SimCLR
    from twofold.training.checkpoint import save_checkpoint

    method = SimCLR(ResNet(50), HeadConfig(), 0.1)
    momentum = {i: torch.zeros_like(p) for i, p in enumerate(method.parameters())}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for step in range(PER_POINT["checkpoint"]):
            wall = time.perf_counter()
            path = save_checkpoint(Path(folder), step, {"step": step, "method": method.state_dict(), "m": momentum}, 1)
            rows.append({"seconds": time.perf_counter() - wall, "mb": path.stat().st_size / 1e6})
    return rows


def in_process(what: str, value: int = 0, repeats: int = 1) -> list[dict[str, float]]:
    """Measurements in a fresh process."""
    command = [sys.executable, __file__, "--measure", what, "--value", str(value), "--repeats", str(repeats)]
    measured: list[dict[str, float]] = json.loads(output(command, {"OMP_NUM_THREADS": "1"}).splitlines()[-1])
    return measured


def exponent(values: tuple[int, ...], measured: list[float]) -> float:
    """Slope of log measured over log value, of the upper half of the points (three at least)."""
    last = max(3, (len(values) + 1) // 2)
    y = np.maximum(np.array(measured[-last:]), 1e-6)
    return float(np.polyfit(np.log(values[-last:]), np.log(y), 1)[0])


def grow(points: dict[str, tuple[int, ...]], repeats: int) -> dict[str, Any]:
    """Measure every axis, and print a line a point."""
    results: dict[str, Any] = {}
    for axis, values in points.items():
        rows = []
        for value in values:
            seen = in_process(axis, value, repeats)
            row = {"value": value, "n": repeats, "mb": max(one["mb"] for one in seen)}
            row |= {"seconds": median(one["seconds"] for one in seen), "low": min(one["seconds"] for one in seen)}
            rows.append(row | {"high": max(one["seconds"] for one in seen)})
            print(f"{axis:10} {value:>13,} {row['seconds']:9.4f} s ({row['low']:.4f}..{rows[-1]['high']:.4f}) "
                  f"{row['mb']:8.1f} MB  n={repeats}", flush=True)  # fmt: skip
        slope = exponent(values, [row["seconds"] for row in rows])
        space = exponent(values, [row["mb"] for row in rows])
        print(f"{axis:10} time grows with exponent {slope:.2f}, memory with {space:.2f}", flush=True)
        results[axis] = {"rows": rows, "time": slope, "memory": space}
    return results


def start_values() -> None:
    """Print what the plan for a billion images starts from."""
    for kind in ("loader_folder", "loader_shards"):
        rows = in_process(kind)
        rates, mb = sorted(row["rate"] for row in rows), [round(row["mb"], 1) for row in rows]
        spread = f"{rates[0]:.0f}..{rates[-1]:.0f}, n={len(rows)} epochs of 200 of {rows[0]['kb']:.0f} kB"
        print(f"{kind}: {median(rates):.0f} images/s/core ({spread}); resident MB after each {mb}", flush=True)
    rows = in_process("checkpoint")
    seconds = sorted(row["seconds"] for row in rows)
    print(f"checkpoint of ResNet-50 with momentum: {rows[0]['mb']:.0f} MB, {median(seconds):.2f} s "
          f"({seconds[0]:.2f}..{seconds[-1]:.2f}, n={len(rows)})", flush=True)  # fmt: skip


def plot(results: dict[str, Any], out: Path) -> None:
    """A column an axis: time above, memory below, on logarithmic axes."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(results), figsize=(4 * len(results), 6), squeeze=False)
    for column, (axis, data) in enumerate(results.items()):
        x = [row["value"] for row in data["rows"]]
        for line, (key, unit, slope) in enumerate((("seconds", "s", "time"), ("mb", "MB", "memory"))):
            panel = axes[line][column]
            panel.loglog(x, [max(row[key], 1e-3) for row in data["rows"]], "o-", color="teal")
            panel.set_title(f"{slope}: exponent {data[slope]:.2f}", fontsize=9)
            panel.set_ylabel(unit)
            panel.grid(visible=True, alpha=0.3)
        axes[1][column].set_xlabel(AXES[axis], fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=60)


def main() -> None:
    """Measure, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--out", type=Path, default=Path("growth.png"))
    parser.add_argument("--only", choices=("start", "growth"))
    parser.add_argument("--measure")
    parser.add_argument("--value", type=int, default=0)
    options = parser.parse_args()
    if options.measure:
        import torch

        torch.set_num_threads(1)
        special: dict[str, Callable[[], Any]] = {
            "loader_folder": lambda: loader("folder"),
            "loader_shards": lambda: loader("shards"),
            "checkpoint": checkpoint,
        }
        sizes = {"loss": loss, "step_batch": step_batch, "step_side": step_side, "world": world, "order": order}
        name, repeats = options.measure, options.repeats or 1
        print(json.dumps(special[name]() if name in special else [sizes[name](options.value) for _ in range(repeats)]))
        return
    import torch

    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    )
    if options.only != "growth":
        start_values()
    if options.only != "start":
        plot(grow(FULL if options.full else SHORT, options.repeats or (5 if options.full else 3)), options.out)


if __name__ == "__main__":
    begin(main)
