"""What labels are worth that `twofold label` chooses, beside as many drawn at random, on sets of real pictures.

    python benchmarks/labels.py CACHE
    python benchmarks/labels.py CACHE --sets digits8 --counts 20 50 --draws 20

CACHE holds the sets (see real_sets.py) and, once made, an encoder and features of each (`labels/SET`). The encoder
learns from the training pictures without labels, with the defaults of `twofold pretrain`, for `--epochs` passes. Then
in each draw some training pictures get their labels, a logistic regression is fitted on these alone (its penalty chosen
among them), and the test pictures are scored: top-1, and the mean of the classes' recalls.

random: drawn at random, as somebody would who knows no classes. typical: one round of `twofold label`. rounds: half of
them in one round, then the other half in a second one that knows the first labels, by the command's own choice of the
way; uncertain: the same, with uncertain examples in the second. The seed of a draw fixes what is drawn, and the
clusterings. Two columns tell of how many draws a way beats the random labels of the same draw, and the mean difference
with its standard deviation.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from machine import describe_machine
from real_sets import SETS, Missing, make

import twofold
from twofold.evaluation.choosing import Way, choose, guess
from twofold.evaluation.few_labels import fit_few
from twofold.evaluation.neighbours import centred
from twofold.evaluation.scores import score
from twofold.randomness import permutation

WAYS = ("random", "typical", "rounds", "uncertain")


def features(cache: Path, name: str, epochs: int) -> dict[str, np.ndarray]:
    """Features and labels of both parts, made once for each number of epochs."""
    folder, home = make(name, cache), cache / "labels" / f"{name}-{epochs}"
    file = home / "features.npz"
    if not file.exists():
        options = {"epochs": epochs, "seed": 0, "monitor": {"every": 0}}
        run = twofold.pretrain(str(folder / "train"), home / "run", report=False, **options).path
        arrays = {}
        for part in ("train", "test"):
            found = np.load(twofold.embed(run, str(folder / part), home / f"{part}.npz").file)
            arrays |= {f"x_{part}": found["features"], f"y_{part}": found["labels"]}
        np.savez(file, **arrays)
    with np.load(file) as held:
        return {key: held[key] for key in held.files}


def rows_of(way: str, x: np.ndarray, y: np.ndarray, count: int, draw: int) -> np.ndarray:
    """The training pictures that get a label."""
    if way == "random":
        return permutation(draw, "benchmark/labels", 0, len(x))[:count]
    around, labels = centred(x)[0], np.full(len(x), -1)
    parts: list[tuple[int, Way]] = [(count, "typical")]
    if way != "typical":
        parts = [(count // 2, "typical"), (count - count // 2, "auto" if way == "rounds" else "uncertain")]
    for wanted, how in parts:
        found = choose(around, labels, wanted, guess(x, labels, draw), how, draw)
        rows = np.array([each.row for each in found])
        labels[rows] = y[rows]
    return np.flatnonzero(labels >= 0)


def cell(held: dict[str, np.ndarray], way: str, count: int, draw: int) -> dict[str, float]:
    """Scores of one draw."""
    x, y = held["x_train"], held["y_train"]
    rows = rows_of(way, x, y, count, draw)
    model = fit_few(x[rows], y[rows], draw)[0]
    logits = model.logits(held["x_test"])
    found = score(logits, model.classes, held["y_test"])
    right = model.classes[logits.argmax(axis=1)] == held["y_test"]
    recalls = [right[held["y_test"] == each].mean() for each in np.unique(held["y_test"])]
    return {"top1": found.top1, "recall": float(np.mean(recalls)), "classes": float(len(model.classes))}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=["digits8", "emoji", "stamps"])
    parser.add_argument("--counts", nargs="+", type=int, default=[50])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args()
    print(describe_machine())
    for name in given.sets:
        try:
            held = features(given.cache, name, given.epochs)
        except Missing as reason:
            print(f"{name}: left out, {reason}")
            continue
        print(f"{name}: {len(held['x_train']):,} pictures, {len(np.unique(held['y_train']))} classes, "
              f"{len(held['x_test']):,} scored")  # fmt: skip
        for count in given.counts:
            cells = {way: [cell(held, way, count, draw) for draw in range(given.draws)] for way in WAYS}
            for way, found in cells.items():
                row = {"set": name, "labels": count, "way": way, "n": given.draws}
                for what in ("top1", "recall"):
                    values = [100 * each[what] for each in found]
                    gains = [v - 100 * r[what] for v, r in zip(values, cells["random"], strict=True)]
                    spread = (stdev(values), stdev(gains)) if given.draws > 1 else (0.0, 0.0)
                    row[what] = f"{mean(values):.1f} ± {spread[0]:.1f}"
                    row[f"{what} gain"] = f"{mean(gains):+.1f} ± {spread[1]:.1f}"
                    row[f"{what} better"] = sum(gain > 0 for gain in gains)
                row["classes"] = f"{mean(each['classes'] for each in found):.1f}"
                print(json.dumps(row, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
