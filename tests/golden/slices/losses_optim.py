"""Slice the golden sets of losses and optimisers: `python tests/golden/slices/losses_optim.py FOLDER_OF_THE_WHOLE_SET`.

Whole cases are kept or left out. Of several cases that differ in size alone the smaller is kept; every option and every
kind of input stays.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from golden_data import Golden, save_slice

LEFT_OUT = {
    "ntxent.npz": ("case10", "case12"),  # N = 33, d = 128 stays in case11 and case14, no normalisation in case08
    "ntxent_xreplica.npz": ("case05",),  # four replicas stay in case03 and case04
    "lars.npz": ("case01",),  # as case00 with another weight decay
    "schedule.npz": (),
    "distill.npz": ("case03",),  # as case04 with another temperature
}


def main(folder: Path) -> None:
    """Write the slices and say how large they are."""
    for name, left_out in LEFT_OUT.items():
        whole = Golden(folder / name)
        arrays = {key: value for key, value in whole.arrays.items() if not key.startswith(left_out)}
        # The targets are where the reference puts them: row i, column r*n + i. One case is enough to show it.
        arrays = {
            key: value for key, value in arrays.items() if not key.endswith("/labels") or key.startswith("case00")
        }
        cases = [case for case in whole.meta["cases"] if case["id"] not in left_out]
        path = save_slice(name, arrays, whole.meta | {"cases": cases})
        print(f"{path.name}: {len(cases)} cases, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
