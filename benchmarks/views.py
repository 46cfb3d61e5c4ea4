"""Making views on one core: ours, a batch at a time, against lightly 1.6.0's `SimCLRTransform`, an image at a time.

    pip install lightly==1.6.0
    python benchmarks/views.py                   # views of 32 px from images of 32; of 224 px from images of 256

Both make SimCLR's two views (crop, flip, colour jitter, grayscale, blur, each with the paper's probabilities) of the
same images in memory: lightly's of PIL images, to tensors; ours of a uint8 batch. One process, one thread, in turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from machine import describe_machine
from PIL import Image
from step import smooth_images

from twofold.randomness import Key
from twofold.views import ViewsConfig, build_views


def lightly_views(images: np.ndarray, size: int) -> Callable[[], None]:
    """Makes both views of every image."""
    from lightly.transforms import SimCLRTransform

    transform = SimCLRTransform(input_size=size)
    pictures = [Image.fromarray(image) for image in images]

    def make() -> None:
        for picture in pictures:
            transform(picture)

    return make


def our_views(images: np.ndarray, size: int) -> Callable[[], None]:
    """The same, of a batch."""
    views = build_views(ViewsConfig(size=size))
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    rows, steps = np.arange(len(batch)), iter(range(10**9))

    def make() -> None:
        draws = views.draw(Key(0, next(steps)), rows, *batch.shape[2:])
        views.apply(batch, draws)

    return make


def rate(make: Callable[[], None], views: int, seconds: float) -> float:
    """Views a second, over passes that take `seconds` together."""
    begun, passes = time.perf_counter(), 0
    while (passed := time.perf_counter() - begun) < seconds or not passes:
        make()
        passes += 1
    return views * passes / passed


def main() -> None:
    """Read the options, measure in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 224])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{describe_machine()}; n = {given.repeats} turns of {given.seconds:g} s")
    for size in given.sizes:
        count = 512 if size <= 64 else 64
        images = smooth_images(count, size if size <= 64 else size * 8 // 7)
        makers = {"lightly": lightly_views(images, size), "twofold": our_views(images, size)}
        for make in makers.values():
            make()  # what is set up once is not what is compared
        turns = [
            {name: rate(make, 2 * count, given.seconds) for name, make in makers.items()} for _ in range(given.repeats)
        ]
        middle = {name: median(turn[name] for turn in turns) for name in makers}
        ratios = sorted(turn["twofold"] / turn["lightly"] for turn in turns)
        print(
            f"{size} px: lightly {middle['lightly']:.0f}, twofold {middle['twofold']:.0f} views/s; "
            f"x{middle['twofold'] / middle['lightly']:.2f} [{ratios[0]:.2f}..{ratios[-1]:.2f}]"
        )


if __name__ == "__main__":
    main()
