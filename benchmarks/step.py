"""The whole training step against its limit: forward and backward of encoder and head on ready tensors.

    python benchmarks/step.py                                     # arrays, 32 px, ResNet-18, batch 256
    python benchmarks/step.py --data jpeg --size 64 --batch 128   # a folder of JPEG files, decoded as it trains

Whole steps (data, views, forward, loss, backward, optimiser, and rows of metrics as the run would write them) and bare
passes alternate in one process; the share is the ratio of their median times. Options after `--` are those of
`twofold pretrain`.
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

from twofold.commands.pretrain import assemble
from twofold.data import open_source
from twofold.training.clock import describe_time
from twofold.training.config import build, merge
from twofold.training.defaults import choose
from twofold.training.loop import Training
from twofold.training.rundir import RunDirectory
from twofold.training.starting import start_accelerator

WARM_UP = 3


def smooth_images(count: int, size: int) -> np.ndarray:
    """[count, size, size, 3] uint8 images that compress about as photographs do: blurred noise with some grain."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    images = np.stack(
        [np.asarray(Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC)) for each in small]
    )
    return np.clip(images.astype(np.int16) + rng.integers(-12, 13, images.shape), 0, 255).astype(np.uint8)


def make_data(kind: str, size: int, count: int, folder: Path) -> Any:
    """Arrays of images of `size` px, or a folder of JPEG files of 1.5 times that, of sizes that differ by a few px."""
    if kind == "arrays":
        return smooth_images(count, size)
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


def measure(training: Training, steps: int) -> dict[str, Any]:
    """Whole steps and bare passes in turn; a row of metrics is taken (and its time shared out) once in `log_every`."""
    model, optimizer = training.accelerator.prepare(training.method, training.optimizer)
    device, batches = training.accelerator.device, iter(training.loader.iterate(0, steps + WARM_UP))

    def step() -> None:
        batch = next(batches)
        training.clock.mark("data")
        output = training.update(model, optimizer, batch)
        training.step += 1
        if training.step % training.log_every == 0:
            training.record(training.measure(output))
            training.clock.mark("logging")

    views = torch.cat(training.look_twice(next(iter(training.loader.iterate(0, 1)))))
    whole, bare = [], []
    for i in range(steps + WARM_UP):
        if i == WARM_UP:
            training.clock.seconds = dict.fromkeys(training.clock.seconds, 0.0)
        training.clock.mark("data")
        whole.append(timed(device, step))
        training.clock.pause()
        bare.append(timed(device, lambda: bare_pass(training, views)))
        training.clock.pause()  # the head's hook has started it again
    whole, bare = whole[WARM_UP:], bare[WARM_UP:]
    ratios = sorted(b / w for b, w in zip(bare, whole, strict=True))
    return {
        "step_seconds": median(whole), "limit_seconds": median(bare), "share": median(bare) / median(whole),
        "share_quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]], "steps": steps,
        "images_per_second": training.batch / median(whole), "time": training.clock.seconds,
    }  # fmt: skip


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("arrays", "jpeg"), default="arrays")
    parser.add_argument("--size", type=int, default=32, help="side of a view in pixels")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--steps", type=int, default=20, help="steps of each kind")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("options", nargs="*", help="options of `twofold pretrain`, after --")
    given = parser.parse_args()
    own = {"views.size": given.size, "batch": given.batch, "encoder.name": given.encoder, "epochs": 1000}
    extra = dict(option.lstrip("-").split("=", 1) for option in given.options)
    options = merge(own, {name: yaml.safe_load(value) for name, value in extra.items()})
    with tempfile.TemporaryDirectory() as folder:
        (images := Path(folder) / "images").mkdir()
        data = make_data(given.data, given.size, max(1024, 2 * given.batch), images)
        training = prepare(data, options, Path(folder) / "run")
        result = measure(training, given.steps)
        training.loader.close()
    print(f"{describe_machine()}; {given.encoder}, {given.size} px, batch {given.batch}, {given.data} {given.options}")
    low, high = result["share_quartiles"]
    print(
        f"step {1e3 * result['step_seconds']:.0f} ms, limit {1e3 * result['limit_seconds']:.0f} ms: "
        f"{100 * result['share']:.1f} % of the limit [quartiles {100 * low:.1f}..{100 * high:.1f}], "
        f"{result['images_per_second']:.0f} images/s, n = {given.steps} steps of each"
    )
    print(describe_time(result["time"]))
    if given.json:
        given.json.write_text(json.dumps(result | {"machine": describe_machine(), "options": vars(given)}, default=str))


if __name__ == "__main__":
    main()
