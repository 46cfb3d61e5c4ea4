"""Slice the golden sets of views: `python tests/golden/slices/views.py FOLDER_OF_THE_WHOLE_SET`.

Whole cases are kept or left out. Of cases that differ in size alone the smaller stay; every operator, rule, kind of
image and edge (one-pixel boxes, boxes at a border, kernels wider than the image) stays.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from golden_data import Golden, save_slice

LEFT_OUT = {
    "color.npz": ("rand_32x32",),  # rand_8x9 and rand_13x7 stay
    "blur.npz": ("case01", "case03", "batch01"),  # sigma 2 stays in case05; sigma 0.1 changes nothing
    "crop_resize.npz": ("center00", "center02", "center04", "center06", "crop01", "crop02", "resize09"),
    "crop_sampling.npz": (),
}


def keep(part: Any, left_out: tuple[str, ...]) -> Any:
    """Meta without the entries of the cases left out."""
    if isinstance(part, list):
        return [keep(item, left_out) for item in part if item not in left_out and case_id(item) not in left_out]
    return {key: keep(value, left_out) for key, value in part.items()} if isinstance(part, dict) else part


def case_id(item: Any) -> Any:
    return item.get("id") if isinstance(item, dict) else None


def main(folder: Path) -> None:
    """Write the slices and say how large they are."""
    for name, left_out in LEFT_OUT.items():
        whole = Golden(folder / name)
        arrays = {key: value for key, value in whole.arrays.items() if not set(key.split("/")) & set(left_out)}
        path = save_slice(name, arrays, keep(whole.meta, left_out))
        print(f"{path.name}: {len(arrays)} of {len(whole.arrays)} arrays, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
