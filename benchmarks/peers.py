"""End-to-end training against lightly 1.6.0 run as its documentation runs it: same encoder, batch and cores.

    pip install lightly==1.6.0
    python benchmarks/peers.py --size 32          # both as they come
    python benchmarks/peers.py --size 64 --stem imagenet
    python benchmarks/peers.py --encoder resnet50 --size 224 --stem imagenet --batch 512 --cores 16 --device cuda

lightly: a data set of PIL images under `SimCLRTransform`, a DataLoader with a worker for each core, its projection head
and `NTXentLoss`, SGD, float32 (with `--tuned` bfloat16 autocast and channels last, too). Twofold: the same images as an
array, the run that `twofold pretrain` would start, with its own defaults for precision and layout (options after `--`).
Both train the very same encoder. The two run in turn, each in a process of its own; a figure is the rate over all steps
after the warm-up.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch
import yaml
from children import begin, output
from machine import describe_machine
from PIL import Image
from step import prepare, smooth_images

from twofold.encoders import EncoderConfig, build_encoder
from twofold.options import OptionsParser

WARM_UP = 4
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

    device = torch.device(given.device)
    encoder = build_encoder(
        OptionsParser(EncoderConfig).build({"name": given.encoder, "stem": given.stem}), given.size
    ).to(device)
    width = encoder.feature_dim
    head = SimCLRProjectionHead(width, width, 128).to(device)
    layout = torch.channels_last if given.tuned else torch.contiguous_format
    encoder.to(memory_format=layout)
    criterion = NTXentLoss()
    optimizer = torch.optim.SGD([*encoder.parameters(), *head.parameters()], lr=0.06)
    loader = torch.utils.data.DataLoader(
        Images(), batch_size=given.batch, shuffle=True, drop_last=True, num_workers=given.cores
    )
    while True:
        for views in loader:
            x0, x1 = (x.to(device, memory_format=layout) for x in views)
            with torch.autocast(device.type, torch.bfloat16, enabled=given.tuned):
                z0, z1 = head(encoder(x0).flatten(1)), head(encoder(x1).flatten(1))
            loss = criterion(z0.float(), z1.float())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield


def our_steps(given: argparse.Namespace, folder: Path) -> Iterator[None]:
    """Training steps of a run of ours."""
    options = {"views.size": given.size, "batch": given.batch, "epochs": 1000, "optim.name": "sgd"}
    options |= {"encoder.name": given.encoder, "encoder.stem": given.stem, "monitor.every": 0}
    options |= {"training.device": given.device, "training.log_every": given.steps}
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
        wait(given.device)
        begun = time.perf_counter()
        for _ in range(given.steps):
            next(steps)
        wait(given.device)
        return 2 * given.batch * given.steps / (time.perf_counter() - begun)


def wait(device: str) -> None:
    """Until a GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Read the options, measure in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tuned", action="store_true", help="lightly in bfloat16 and channels last, too")
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
        word
        for name in ("encoder", "device", "size", "batch", "stem", "cores", "steps")
        for word in (f"--{name}", str(vars(given)[name]))
    ] + ["--tuned"] * given.tuned
    for _ in range(given.repeats):
        for kind, speeds in rates.items():
            command = [sys.executable, __file__, "--measure", kind, *words, "--", *given.options]
            speeds.append(json.loads(output(command).splitlines()[-1]))
    print(
        f"{describe_machine()}; {given.encoder} ({given.stem} stem), {given.size} px, batch {given.batch}"
        f"{', lightly tuned' if given.tuned else ''}; "
        f"n = {given.repeats} processes of {given.steps} steps; {given.options}"
    )
    for kind, speeds in rates.items():
        print(f"{kind:>8}: {median(speeds):7.0f} views/s [{min(speeds):.0f}..{max(speeds):.0f}]")
    pairs = sorted(ours / its for its, ours in zip(rates["lightly"], rates["twofold"], strict=True))
    ratio = median(rates["twofold"]) / median(rates["lightly"])
    print(f"twofold / lightly: x{ratio:.2f} [{pairs[0]:.2f}..{pairs[-1]:.2f}]")


if __name__ == "__main__":
    begin(main)
