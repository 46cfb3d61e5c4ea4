"""Slice the golden set of MoCo: `python tests/golden/slices/moco.py FOLDER_OF_THE_WHOLE_SET`.

Every run stays. On one process run00 goes round the queue (its fifth step starts anew); run01 and run03, which differ
in momentum, learning rate, temperature or head, take two steps; run02, on two processes, four. Left out is what repeats
other arrays: labels (all 0), the shuffled images and the inverse permutation, keys before they are put in order, and
counters of batches.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from golden_data import Golden, save_slice

REPEATED = ("/labels", "/idx_unshuffle", "/im_k_shuffled_this_rank", "/k_before_unshuffle", "num_batches_tracked")
STEPS = {"run00": 5, "run01": 2, "run02": 4, "run03": 2}


def main(folder: Path) -> None:
    """Write the slice and say how large it is."""
    whole = Golden(folder / "moco.npz")
    late = [(f"{run}/rank", f"/step{step:02d}/") for run, steps in STEPS.items() for step in range(steps, 10)]
    arrays = {
        key: value
        for key, value in whole.arrays.items()
        if not key.endswith(REPEATED) and not any(key.startswith(run) and step in key for run, step in late)
    }
    runs = [run | {"steps": STEPS.get(run["id"], run["steps"])} for run in whole.meta["runs"]]
    path = save_slice("moco.npz", arrays, whole.meta | {"runs": runs})
    print(f"{path.name}: {len(runs)} runs, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
