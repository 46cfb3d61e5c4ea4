"""The whole training step against its limit: forward and backward of encoder and head on ready tensors.

    python benchmarks/step.py                                     # arrays, 32 px, ResNet-18, batch 256
    python benchmarks/step.py --data cached                       # a folder of files, decoded once and kept
    python benchmarks/step.py --data jpeg --size 64 --batch 128   # a folder of JPEG files, decoded as it trains
    python benchmarks/step.py --encoder resnet50 --size 224 --batch 512 --group 5       # on a GPU

Whole steps (data, views, forward, loss, backward, optimiser, and one row of metrics) and bare passes alternate in one
process; the share is the ratio of their median times. A GPU works while Python runs ahead: there `--group` steps are
timed at once. Options after `--` are those of `twofold pretrain`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import yaml
from machine import describe_machine
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from twofold.data import open_source
from twofold.options import merge
from twofold.runs.config import build
from twofold.runs.defaults import choose
from twofold.runs.pretrain import assemble
from twofold.runs.starting import start_accelerator
from twofold.training.clock import describe_time
from twofold.training.loop import Training
from twofold.training.rundir import RunDirectory

WARM_UP = 3


def smooth_images(count: int, size: int) -> np.ndarray:
    """[count, size, size, 3] uint8 images that compress about as photographs do: blurred noise with some grain."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    grain = rng.integers(-12, 13, (min(count, 64), size, size, 3), dtype=np.int16)  # for each would take a minute
    images = np.empty((count, size, size, 3), np.uint8)
    for i, each in enumerate(small):
        smooth = np.asarray(Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC))
        images[i] = np.clip(smooth + grain[i % len(grain)], 0, 255)
    return images


def make_data(kind: str, size: int, count: int, folder: Path) -> Any:
    """Arrays of images of `size` px, a folder of such files, or of JPEG files half as large again, of many sizes."""
    if kind == "arrays":
        return smooth_images(count, size)
    if kind == "cached":
        for i, image in enumerate(smooth_images(count, size)):
            Image.fromarray(image).save(folder / f"{i:05}.jpg", quality=90)
        return folder
    for i, image in enumerate(smooth_images(count, size * 3 // 2 + 8)):
        Image.fromarray(image[: len(image) - i % 8]).save(folder / f"{i:05}.jpg", quality=90)
    return folder


def prepare(data: Any, options: dict[str, Any], run: Path) -> Training:
    """A run as `twofold pretrain` would make it."""
    config = build(options)
    directory = RunDirectory(run)
    accelerator = start_accelerator(config.training, directory)
    source = open_source(data, config.data)
    config, _ = choose(config, source.facts(), accelerator.device)
    run.mkdir()
    return assemble(config, source, directory, accelerator, None)


def bare_pass(training: Training, views: torch.Tensor) -> None:
    """Forward and backward of encoder and head on ready views."""
    method = training.method
    with training.accelerator.autocast():
        z = method.head(method.encoder(views))
    z.backward(torch.ones_like(z))
    for parameter in method.parameters():
        parameter.grad = None


def timed(device: torch.device, work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def operations(training: Training, views: torch.Tensor) -> float:
    """Floating-point operations of a bare pass, a multiplication and an addition counted as two."""
    with FlopCounterMode(display=False) as counter:
        bare_pass(training, views[:4])
    return counter.get_total_flops() * len(views) / 4


def peak_rate(device: torch.device) -> float:
    """Operations a second of a large product of bfloat16 matrices here."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    times = [timed(device, lambda: a @ b) for _ in range(12)]
    return 2 * side**3 / median(times[2:])


def measure(training: Training, steps: int, group: int) -> dict[str, Any]:
    """Whole steps and bare passes in turn, so many at a time."""
    model, optimizer = training.accelerator.prepare(training.method, training.optimizer)
    rounds = steps // group + WARM_UP
    device, batches = training.accelerator.device, iter(training.loader.iterate(0, rounds * group))

    def step() -> None:
        batch = next(batches)
        training.clock.mark("data")
        output = training.update(model, optimizer, batch)
        training.step += 1
        if training.step % training.log_every == 0:
            training.record(training.measure(output))
            training.clock.mark("logging")

    views = torch.cat(training.make_inputs(next(iter(training.loader.iterate(0, 1)))).images())
    whole, bare = [], []
    for i in range(rounds):
        if i == WARM_UP:
            training.clock.seconds = dict.fromkeys(training.clock.seconds, 0.0)
        training.clock.mark("data")
        whole.append(timed(device, lambda: [step() for _ in range(group)]) / group)
        training.clock.pause()
        bare.append(timed(device, lambda: [bare_pass(training, views) for _ in range(group)]) / group)
        training.clock.pause()  # the head's hook has started it again
    whole, bare = whole[WARM_UP:], bare[WARM_UP:]
    ratios = sorted(b / w for b, w in zip(bare, whole, strict=True))
    flop = operations(training, views)
    return {
        "step_seconds": median(whole), "limit_seconds": median(bare), "share": median(bare) / median(whole),
        "share_quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]], "steps": len(whole) * group,
        "images_per_second": training.batch / median(whole), "time": dict(training.clock.seconds),
        "limit_rate": flop / median(bare), "peak_rate": peak_rate(device),
        "gb": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
    }  # fmt: skip


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("arrays", "cached", "jpeg"), default="arrays")
    parser.add_argument("--size", type=int, default=32, help="side of a view in pixels")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--steps", type=int, default=20, help="steps of each kind")
    parser.add_argument("--group", type=int, default=1, help="steps that are timed at once")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("options", nargs="*", help="options of `twofold pretrain`, after --")
    given = parser.parse_args()
    own = {"views.size": given.size, "batch": given.batch, "encoder.name": given.encoder, "epochs": 1000}
    own |= {"training.log_every": given.steps, "data.cache": "off" if given.data == "jpeg" else "auto"}
    extra = dict(option.lstrip("-").split("=", 1) for option in given.options)
    options = merge(own, {name: yaml.safe_load(value) for name, value in extra.items()})
    with tempfile.TemporaryDirectory() as folder:
        (images := Path(folder) / "images").mkdir()
        data = make_data(given.data, given.size, max(1024, 2 * given.batch), images)
        training = prepare(data, options, Path(folder) / "run")
        result = measure(training, given.steps, given.group)
        training.loader.close()
    print(f"{describe_machine()}; {given.encoder}, {given.size} px, batch {given.batch}, {given.data} {given.options}")
    low, high = result["share_quartiles"]
    print(
        f"step {1e3 * result['step_seconds']:.0f} ms, limit {1e3 * result['limit_seconds']:.0f} ms: "
        f"{100 * result['share']:.1f} % of the limit [quartiles {100 * low:.1f}..{100 * high:.1f}], "
        f"{result['images_per_second']:.0f} images/s, n = {result['steps']} steps of each, {given.group} at a time"
    )
    rate, peak = result["limit_rate"] / 1e12, result["peak_rate"] / 1e12
    print(
        f"limit: {rate:.2f} TFLOP/s, {100 * rate / peak:.1f} % of a product of bfloat16 matrices ({peak:.2f} TFLOP/s)"
    )
    if result["gb"]:
        print(f"most memory: {result['gb']:.1f} GB")
    print(describe_time(result["time"]))
    if given.json:
        given.json.write_text(json.dumps(result | {"machine": describe_machine(), "options": vars(given)}, default=str))


if __name__ == "__main__":
    main()
