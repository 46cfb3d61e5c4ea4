"""What an index of faiss costs and what it misses, beside the comparison with all rows.

    python benchmarks/search.py CACHE                              # 100,000 rows, all kinds of index
    python benchmarks/search.py CACHE --rows 1000000 --kinds ivf   # as `twofold search` does from a million rows on

The rows are features of views (crops of at least 8 %, flips) of the bench's pictures (see real_sets.py), by an encoder
that learned from them with the defaults of `twofold pretrain` for `--epochs` passes: they lie in heaps around pictures
and kinds of pictures, as features of photographs do, and not evenly as random numbers would. They are centred and of
length 1 as `twofold search` has them. The queries are views of the same pictures that are not among the rows. All kinds
answer in one run, and the exact answer takes its turn before and after: what is printed are ratios to its mean.

recall: the share of the ten rows found that are as near as the tenth nearest, but for the last digits of a float (the
same picture under two crops may be as near twice). speed-up: the exact comparison's time for all queries
over the index's. build: the index's making, in units of the exact answer to all queries. bytes: of the file, over those
of the rows.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from machine import describe_machine
from PIL import Image
from real_sets import SETS, Missing, make

import twofold
from twofold.evaluation.neighbours import ExactIndex, FaissIndex, Found, centred
from twofold.randomness import Key
from twofold.views import views_of

NEAREST, ROUNDING = 10, 1e-5
KINDS = ("flat", "hnsw", "ivf")
VIEWS_AT_ONCE = 512


def pictures(cache: Path, names: list[str], size: int) -> np.ndarray:
    """The training pictures of some sets, uint8 [n, S, S, 3]."""
    found = []
    for name in names:
        try:
            files = sorted((make(name, cache) / "train").rglob("*.png"))
        except Missing as reason:
            print(f"{name} is left out: {reason}")
            continue
        found += [np.asarray(Image.open(file).convert("RGB").resize((size, size))) for file in files]
    return np.stack(found)


def features(cache: Path, names: list[str], count: int, epochs: float, size: int) -> np.ndarray:
    """Features [count, d] of views, made once."""
    home = cache / "search" / f"{'-'.join(names)}-{size}px-{epochs:g}"
    file = home / f"{count}.npy"
    if file.exists():
        return np.load(file)
    images = pictures(cache, names, size)
    if not (home / "run").exists():
        twofold.pretrain(images, home / "run", epochs=epochs, report=False, monitor={"every": 0})
    encoder, pixels = twofold.load(home / "run"), torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    views, rows = views_of(size, color_strength=0.0, blur=0.0, crop_area=(0.08, 1.0)), []
    with torch.inference_mode():
        for start in range(0, count, VIEWS_AT_ONCE):
            which = torch.arange(start, min(start + VIEWS_AT_ONCE, count)) % len(pixels)
            turn = start // VIEWS_AT_ONCE
            draws = views.draw(Key(0, turn), np.arange(len(which)), size, size)
            rows.append(encoder(views.apply(pixels[which], draws)[0]).numpy())
    np.save(file, np.concatenate(rows))
    return np.load(file)


def timed(index: ExactIndex | FaissIndex, queries: np.ndarray) -> tuple[Found, float]:
    """The answer and its seconds."""
    begin = time.perf_counter()
    found = index.search(queries, NEAREST)
    return found, time.perf_counter() - begin


def main() -> None:
    """Make features, build, ask, print a row a kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--sets", nargs="+", default=["emoji", "stamps", "clipart", "icons"], choices=list(SETS))
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--epochs", type=float, default=12)
    parser.add_argument("--size", type=int, default=32)
    given = parser.parse_args()
    found = features(given.cache, given.sets, given.rows + given.queries, given.epochs, given.size)
    # The queries are drawn from all views: taken from the end they would all be of the last pictures.
    apart = np.random.default_rng(0).permutation(len(found))
    bank, around = centred(found[apart[given.queries :]])
    queries, _ = centred(found[apart[: given.queries]], around)
    del found
    print(f"{describe_machine()}; {len(bank):,} rows of {bank.shape[1]}, {len(queries):,} queries")
    exact = ExactIndex(bank)
    (nearness, _), first = timed(exact, queries)
    needed = nearness[:, -1:] - ROUNDING
    rows = []
    for kind in given.kinds:
        begin = time.perf_counter()
        index = FaissIndex.build(bank, kind)
        built = time.perf_counter() - begin
        (answer, _), seconds = timed(index, queries)
        recall = (answer >= needed).mean()
        rows.append((index.words, recall, seconds, built, len(index.to_bytes()) / bank.nbytes))
        del index
    _, last = timed(exact, queries)
    whole = (first + last) / 2
    print(f"exact: {whole:.2f} s ({first:.2f} and {last:.2f}), {1000 * whole / len(queries):.2f} ms a query")
    print("| index | recall | speed-up | build | bytes |\n|---|---|---|---|---|")
    for words, recall, seconds, built, size in rows:
        print(f"| {words} | {100 * recall:.1f} % | {whole / seconds:.1f} | {built / whole:.1f} | {size:.2f} |")


if __name__ == "__main__":
    main()
