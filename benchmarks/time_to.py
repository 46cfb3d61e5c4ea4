"""Seconds of training until 500 labels tell 95 % of the demo's test digits: Twofold, and lightly 1.6.0 as documented.

    python benchmarks/time_to.py --seeds 3

Twofold: the recipe of `make demo`, whole runs of 2, 3, 4, 6, ... epochs, each with its own schedule, until one gets
there. lightly: the very same encoder under `SimCLRTransform`, `SimCLRProjectionHead`, `NTXentLoss`, SGD at 0.06 and
batches of 128 (the recipe's), read after every epoch until it gets there or `--most` minutes have passed. Only training
is timed. The accuracy is that of logistic regressions on 500 of the 4,000 training digits' labels, on average over
three draws.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from machine import describe_machine
from PIL import Image

import twofold
from twofold.data import ArraySource, DataConfig, open_source
from twofold.encoders import build_encoder
from twofold.evaluation.features import Extractor
from twofold.evaluation.few_labels import label_efficiency
from twofold.recipe import load
from twofold.runs.config import build

RECIPE = "demo-mnist"
EPOCHS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


class Reader:
    """Tells what an encoder is worth.

    Args:
        labels: that each classifier is fitted on.
        channels: of the images that the encoder takes.
        seed: of the draws.
        size, resample: of the images.
    """

    def __init__(self, labels: int, channels: int, seed: int, size: int | None, resample: Any) -> None:
        self.labels, self.seed, self.extractor = labels, seed, Extractor(size=size, resample=resample)
        self.train, self.test = (
            open_source("mnist5k", DataConfig(channels=channels), split=part) for part in ("train", "test")
        )

    def accuracy(self, encoder: Any) -> float:
        """In [0, 1]."""
        (x, y), (xt, yt) = (
            (found.h, found.labels)
            for found in (self.extractor.extract(encoder, part) for part in (self.train, self.test))
        )
        row = label_efficiency({"": (x, xt)}, y, yt, counts=[self.labels], draws=3, seed=self.seed)[0]
        return float(row.mean)


def ours(seed: int) -> Iterator[tuple[float, float, Any]]:
    """(epochs, seconds, encoder) of whole runs, each longer than the one before."""
    for epochs in EPOCHS:
        with tempfile.TemporaryDirectory() as out:
            run = twofold.pretrain(
                "mnist5k", Path(out) / "run", recipe=RECIPE, report=False, seed=seed, epochs=epochs,
                **{"monitor.every": 0},
            )  # fmt: skip
            yield epochs, run.seconds, twofold.load(run.path)


def lightlys(seed: int, config: Any, source: ArraySource) -> Iterator[tuple[float, float, Any]]:
    """(epochs, seconds, encoder) after each epoch of one run."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    torch.manual_seed(seed)
    transform = SimCLRTransform(input_size=config.views.size)
    pictures = [Image.fromarray(image[0].numpy()).convert("RGB") for image in source.images]

    class Pictures(torch.utils.data.Dataset[object]):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, index: int) -> object:
            return transform(pictures[index])

    encoder = build_encoder(dataclasses.replace(config.encoder, channels=3), config.views.size)
    head, criterion = SimCLRProjectionHead(encoder.feature_dim, encoder.feature_dim, 128), NTXentLoss()
    optimizer = torch.optim.SGD([*encoder.parameters(), *head.parameters()], lr=0.06)
    loader = torch.utils.data.DataLoader(
        Pictures(), batch_size=config.batch, shuffle=True, drop_last=True, num_workers=torch.get_num_threads(),
        persistent_workers=True,
    )  # fmt: skip
    seconds, epochs = 0.0, 0
    while True:
        begun = time.perf_counter()
        encoder.train()
        for x0, x1 in loader:
            loss = criterion(head(encoder(x0).flatten(1)), head(encoder(x1).flatten(1)))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        seconds, epochs = seconds + time.perf_counter() - begun, epochs + 1
        yield epochs, seconds, encoder.eval()


def reach(runs: Iterator[tuple[float, float, Any]], reader: Reader, target: float, most: float) -> float | None:
    """Seconds to the target, None where it was not reached in `most` seconds; every reading is printed."""
    for epochs, seconds, encoder in runs:
        accuracy = reader.accuracy(encoder)
        print(f"  {epochs:g} epochs, {seconds:.1f} s: {accuracy:.1%}", flush=True)
        if accuracy >= target:
            return seconds
        if seconds > most:
            break
    return None


def main() -> None:
    """Both, seed by seed, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labels", type=int, default=500)
    parser.add_argument("--target", type=float, default=0.95)
    parser.add_argument("--most", type=float, default=5, help="minutes of training after which one is given up")
    given = parser.parse_args()
    config = build(load(RECIPE).options)
    found: dict[str, list[float | None]] = {"Twofold": [], "lightly": []}
    for seed in range(given.seeds):
        digits = open_source("mnist5k", DataConfig(), split="train")
        assert isinstance(digits, ArraySource)
        for name, channels, runs in (("Twofold", 1, ours(seed)), ("lightly", 3, lightlys(seed, config, digits))):
            print(f"{name}, seed {seed}", flush=True)
            reader = Reader(given.labels, channels, seed, config.views.size, config.views.resample)
            found[name].append(reach(runs, reader, given.target, 60 * given.most))
    print(f"{describe_machine()}; {given.labels} labels, {given.target:.0%}")
    for name, seconds in found.items():
        there = [each for each in seconds if each is not None]
        spread = f" ± {stdev(there):.1f}" if len(there) > 1 else ""
        words = f"{mean(there):.1f}{spread} s" if there else "-"
        print(f"{name}: {words}, in {len(there)} of {len(seconds)} seeds within {given.most:g} minutes")


if __name__ == "__main__":
    main()
