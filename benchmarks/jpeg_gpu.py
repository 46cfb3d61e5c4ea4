"""Decoding of JPEG files on a GPU (torchvision's nvJPEG) against decoding on the processor's cores.

    python benchmarks/jpeg_gpu.py --count 4096 --cores 16      # 500 x 375 px, as most of ImageNet

Both read the bytes of the same files from memory, in turn. The cores decode as `twofold pretrain` does (Pillow, in as
many processes as there are cores); the GPU takes `--batch` files a call and leaves the pixels in its memory. Without a
GPU the cores alone are measured, and it is said. How far the two's pixels differ is told: they need not use the same
inverse cosine transform, and chroma is upsampled by other rules.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from multiprocessing import get_context
from statistics import median

import numpy as np
import torch
from machine import describe_machine
from PIL import Image
from step import smooth_images
from torchvision.io import decode_jpeg


def photographs(count: int, width: int, height: int) -> list[bytes]:
    """JPEG files of quality 90."""
    side = max(width, height)
    files = []
    for image in smooth_images(min(count, 64), side):
        buffer = io.BytesIO()
        Image.fromarray(image[:height, :width]).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return [files[i % len(files)] for i in range(count)]


def decode(data: bytes) -> int:
    """The number of pixels' bytes of an image; the pixels stay in the process, as a view would be made there."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).nbytes


def on_gpu(files: list[bytes], batch: int) -> None:
    """Decode into the GPU's memory."""
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
    for i in range(0, len(tensors), batch):
        decode_jpeg(tensors[i : i + batch], device="cuda")
    torch.cuda.synchronize()


def rate(count: int, work: Callable[[], object]) -> float:
    """Images a second."""
    begun = time.perf_counter()
    work()
    return count / (time.perf_counter() - begun)


def main() -> None:
    """Read the options, measure in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1024)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--batch", type=int, default=128, help="files that the GPU takes at once")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    files = photographs(given.count, given.width, given.height)
    rates: dict[str, list[float]] = {f"{given.cores} cores": []}
    if torch.cuda.is_available():
        rates["GPU"] = []
        on_gpu(files[: given.batch], given.batch)  # its decoder starts
    with get_context("spawn").Pool(given.cores) as pool:
        pool.map(decode, files[: 8 * given.cores])
        for _ in range(given.repeats):
            rates[f"{given.cores} cores"].append(rate(len(files), lambda: pool.map(decode, files, chunksize=16)))
            if "GPU" in rates:
                rates["GPU"].append(rate(len(files), lambda: on_gpu(files, given.batch)))
    print(f"{describe_machine()}; {given.count} files of {given.width} x {given.height}; n = {given.repeats} turns")
    for name, speeds in rates.items():
        print(f"{name}: {median(speeds):.0f} images/s [{min(speeds):.0f}..{max(speeds):.0f}]")
    if "GPU" not in rates:
        print("GPU: none here, not run")
        return
    pairs = sorted(gpu / cpu for cpu, gpu in zip(*rates.values(), strict=True))
    print(f"GPU / cores: x{median(pairs):.2f} [{pairs[0]:.2f}..{pairs[-1]:.2f}]")
    theirs = decode_jpeg([torch.frombuffer(bytearray(files[0]), dtype=torch.uint8)], device="cuda")[0]
    ours = np.asarray(Image.open(io.BytesIO(files[0]))).astype(int)
    difference = np.abs(theirs.permute(1, 2, 0).cpu().numpy().astype(int) - ours)
    print(f"pixels differ by {difference.mean():.2f} of 255 in the mean, {difference.max()} at most")


if __name__ == "__main__":
    main()
