"""Slice the training steps and speech sets: `python tests/golden/slices/training_steps.py FOLDER_OF_THE_WHOLE_SET`.

Training steps: the float64 runs, all steps; of the tensors kept in full, those of the last step. Speech: all but the
arrays of targets (which a test derives) and the attention mask (a function of the lengths).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from golden_data import Golden, save_slice

RUNS = ("pretrain_lars_1rep", "pretrain_lars_2rep", "finetune_momentum", "linear_eval_block4")


def main(folder: Path) -> None:
    """Write the slices and say how large they are."""
    for run in RUNS:
        whole = Golden(folder / f"trainstep_{run}.npz")
        last = f"f64/step{whole.meta['steps'] - 1}/"
        kept = {
            key: value
            for key, value in whole.arrays.items()
            if not key.startswith("f32/") and ("/param/" not in key or key.startswith(last))
        }
        path = save_slice(f"trainstep_{run}.npz", kept, whole.meta)
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")
    for name in ("athena.npz", "athena_model.npz"):
        whole = Golden(folder / name)
        kept = {key: value for key, value in whole.arrays.items() if not key.endswith(("/labels", "attention_mask"))}
        path = save_slice(name, kept, whole.meta)
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
