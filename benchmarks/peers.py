"""End-to-end training against lightly 1.6.0 run as its documentation runs it: same encoder, batch and cores.

    pip install lightly==1.6.0
    python benchmarks/peers.py --size 32          # both as they come
    python benchmarks/peers.py --size 64 --stem imagenet

lightly: a data set of PIL images under `SimCLRTransform`, a DataLoader with a worker for each core, its projection head
and `NTXentLoss`, SGD, float32. Twofold: the same images as an array, the run that `twofold pretrain` would start, with
its own defaults for precision and layout (options after `--`). Both train the very same encoder. The two run in turn,
each in a process of its own; a figure is the rate over all steps after the warm-up.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch
import yaml
from machine import describe_machine
from PIL import Image
from step import prepare, smooth_images

from twofold.encoders import EncoderConfig, build_encoder

WARM_UP = 2
COUNT = 4096  # images


def lightly_steps(given: argparse.Namespace) -> Iterator[None]:
    """Training steps of lightly's documented example."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    class Images(torch.utils.data.Dataset[object]):
        def __init__(self) -> None:
            self.images = smooth_images(COUNT, given.size)
            self.transform = SimCLRTransform(input_size=given.size)

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> object:
            return self.transform(Image.fromarray(self.images[index]))

    encoder = build_encoder(EncoderConfig(name="resnet18", stem=given.stem), given.size)
    head = SimCLRProjectionHead(512, 512, 128)
    criterion = NTXentLoss()
    optimizer = torch.optim.SGD([*encoder.parameters(), *head.parameters()], lr=0.06)
    loader = torch.utils.data.DataLoader(
        Images(), batch_size=given.batch, shuffle=True, drop_last=True, num_workers=given.cores
    )
    while True:
        for x0, x1 in loader:
            loss = criterion(head(encoder(x0).flatten(1)), head(encoder(x1).flatten(1)))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield


def our_steps(given: argparse.Namespace, folder: Path) -> Iterator[None]:
    """Training steps of a run of ours."""
    options = {"views.size": given.size, "batch": given.batch, "epochs": 1000, "optim.name": "sgd"}
    options |= {"encoder.name": "resnet18", "encoder.stem": given.stem, "monitor.every": 0}
    options |= {k: yaml.safe_load(v) for k, v in (option.lstrip("-").split("=", 1) for option in given.options)}
    training = prepare(smooth_images(COUNT, given.size), options, folder / "run")
    model, optimizer = training.accelerator.prepare(training.method, training.optimizer)
    for batch in training.loader.iterate(0, training.steps):
        output = training.update(model, optimizer, batch)
        training.step += 1
        if training.step % training.log_every == 0:
            training.record(training.measure(output))
        yield


def measure(kind: str, given: argparse.Namespace) -> float:
    """Views a second."""
    torch.set_num_threads(given.cores)
    with tempfile.TemporaryDirectory() as folder:
        steps = lightly_steps(given) if kind == "lightly" else our_steps(given, Path(folder))
        for _ in range(WARM_UP):
            next(steps)
        begun = time.perf_counter()
        for _ in range(given.steps):
            next(steps)
        return 2 * given.batch * given.steps / (time.perf_counter() - begun)


def main() -> None:
    """Read the options, measure in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--stem", choices=("cifar", "imagenet"), default="cifar")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", choices=("lightly", "twofold"), help=argparse.SUPPRESS)
    parser.add_argument("options", nargs="*", help="options of `twofold pretrain`, after --")
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given)))
        return
    rates: dict[str, list[float]] = {"lightly": [], "twofold": []}
    words = [
        word for name in ("size", "batch", "stem", "cores", "steps") for word in (f"--{name}", str(vars(given)[name]))
    ]
    for _ in range(given.repeats):
        for kind, found in rates.items():
            command = [sys.executable, __file__, "--measure", kind, *words, "--", *given.options]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    print(
        f"{describe_machine()}; ResNet-18 ({given.stem} stem), {given.size} px, batch {given.batch}; "
        f"n = {given.repeats} processes of {given.steps} steps; {given.options}"
    )
    for kind, found in rates.items():
        print(f"{kind:>8}: {median(found):7.0f} views/s [{min(found):.0f}..{max(found):.0f}]")
    pairs = sorted(ours / its for its, ours in zip(rates["lightly"], rates["twofold"], strict=True))
    ratio = median(rates["twofold"]) / median(rates["lightly"])
    print(f"twofold / lightly: x{ratio:.2f} [{pairs[0]:.2f}..{pairs[-1]:.2f}]")


if __name__ == "__main__":
    main()
