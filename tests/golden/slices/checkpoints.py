"""Slice the golden checkpoints: `python tests/golden/slices/checkpoints.py FOLDER_OF_THE_WHOLE_SET`.

Kept: images, features, head outputs and logits (the probes between layers go), and the lists of names. The checkpoints'
values follow the rule of the set's README (section 9), so that tests rebuild the files exactly from names and shapes.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from golden_data import SLICES, Golden, save_slice

SETS = ("tf1_r18_1x_cifar_finetune", "tf1_r50_1x_sk0_finetune", "tf2_r18_1x_cifar_pretrain")
LISTS = {
    "tf1_r50_1x_sk0_finetune": ("variables.txt",),
    "tf2_r18_1x_cifar_pretrain": ("saved_model_keys.txt", "checkpoint_keys.txt"),
    "moco_r18_mlp": ("keys.txt",),
}


def main(folder: Path) -> None:
    """Write the slices and say how large they are."""
    total = 0
    for name in SETS:
        whole = Golden(folder / "checkpoints" / name / "expected.npz")
        arrays = {key: value for key, value in whole.arrays.items() if "probe/" not in key}
        total += save_slice(f"checkpoints/{name}/expected.npz", arrays, whole.meta).stat().st_size
    for name, files in LISTS.items():
        for file in files:
            path = SLICES / "checkpoints" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / "checkpoints" / name / file, path)
            total += path.stat().st_size
    print(f"{total:,} bytes in all")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
