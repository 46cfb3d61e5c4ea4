"""Slice the golden set of ResNets: `python tests/golden/slices/resnet.py FOLDER_OF_THE_WHOLE_SET`.

Four of the six nets (both stems, both blocks, with and without selective kernels, fine-tuning). Kept: images, what the
float64 runs give, the probes of float32 inference, and moving averages; where outputs repeat each other
(final_avg_pool is proj_hidden_0) one is kept. ResNet-50 also loses the middle layers of its head and most averages.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from golden_data import Golden, save_slice

SMALL = ("r18_1x_cifar", "r18_1x_finetune")
LARGE = ("r50_1x_imagenet", "r50_1x_sk")


def wanted(key: str, large: bool) -> bool:
    """Whether an array belongs in the slice."""
    if key == "images_u8" or key.endswith("/shape"):
        return True
    if key.startswith("f64/"):
        repeated = key.endswith(("/proj_hidden_0", "/proj_head_output"))
        return not repeated and not (large and key.endswith(("/proj_hidden_1", "/proj_hidden_2")))
    if "/after/" in key:
        return not large or "block_group1" in key or "projection_head" in key
    if "/probe/" in key:
        return key.startswith("f32/eval/") and not (large and key.endswith("/meansq_hw"))
    return key.endswith("/logits_sup")


def main(folder: Path) -> None:
    """Write the slices and say how large they are."""
    total = 0
    for name in SMALL + LARGE:
        whole = Golden(folder / f"resnet_{name}.npz")
        arrays = {key: value for key, value in whole.arrays.items() if wanted(key, name in LARGE)}
        path = save_slice(f"resnet_{name}.npz", arrays, whole.meta)
        total += path.stat().st_size
        print(f"{path.name}: {len(arrays)} of {len(whole.arrays)} arrays, {path.stat().st_size:,} bytes")
    print(f"{total:,} bytes in all")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
