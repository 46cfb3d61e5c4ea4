"""Where the reference vectors are: the whole set beside the checkout when present, else the slices in tests/golden.

`TWOFOLD_GOLDEN` names the folder of the whole set; `TWOFOLD_GOLDEN=none` forces the slices.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SLICES = Path(__file__).parent / "golden"


def whole_set() -> Path | None:
    """The folder that holds the whole golden set, or None where only the slices are at hand."""
    named = os.environ.get("TWOFOLD_GOLDEN")
    if named == "none":
        return None
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "golden"
    if named and not folder.is_dir():
        raise FileNotFoundError(f"TWOFOLD_GOLDEN={named} is no folder; unset it to use the slices in tests/golden")
    return folder if folder.is_dir() else None


def golden_path(name: str) -> Path:
    """The path of one file of the set: the whole one where present, else the slice."""
    whole = whole_set()
    return whole / name if whole is not None and (whole / name).exists() else SLICES / name


class Golden:
    """One golden file: arrays by key, and its `meta`."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as file:
            self.arrays = {key: file[key] for key in file.files if key != "meta"}
            self.meta: dict[str, Any] = json.loads(str(file["meta"]))
        self.path = path

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self.arrays


@functools.lru_cache(maxsize=4)
def golden(name: str) -> Golden:
    """Load one file of the set by name, e.g. ``"ntxent.npz"``."""
    return Golden(golden_path(name))


def rule_value(name: str, shape: Sequence[int], seed: int, gain: float = 1.0) -> np.ndarray:
    """A golden variable's value (golden README, section 9); `seed` is the set's plus the name's position."""
    z = np.random.default_rng(seed).standard_normal(tuple(shape))
    leaf = name.split("/")[-1].split(":")[0]
    if leaf == "kernel":
        return (z * gain * np.sqrt(1 / np.prod(shape[:-1]))).astype(np.float32)
    values = {"gamma": 1 + 0.1 * z, "moving_variance": np.exp(0.2 * z)}
    return values.get(leaf, 0.1 * z).astype(np.float32)


def save_slice(name: str, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> Path:
    """Write a slice of one file under tests/golden, with the same keys as the whole file."""
    path = SLICES / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, meta=np.array(json.dumps(meta)), **arrays)
    return path
