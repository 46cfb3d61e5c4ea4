"""What the defaults of `twofold pretrain` are worth on sets of real pictures, beside raw pixels, the encoder before
training, other choices, and lightly 1.6.0 run as its documentation runs it.

    python benchmarks/defaults.py CACHE                                       # as long as Twofold chooses
    python benchmarks/defaults.py CACHE --epochs 60                           # equal passes over the data
    python benchmarks/defaults.py CACHE --minutes 3 --arms defaults lightly   # equal time (with --jobs 1)
    python benchmarks/defaults.py CACHE --epochs 60 --arms defaults "--optim.lr 6e-3" "--batch 64"

CACHE holds the sets (see real_sets.py) and `defaults.jsonl`, a row for each cell; cells that are there are not run
again. An arm is `defaults`, `lightly`, or options of `twofold pretrain`. lightly trains the very same encoder with
`SimCLRTransform`, `SimCLRProjectionHead`, `NTXentLoss`, SGD at 0.06 and batches of 256 or a quarter of the data, in
float32, with a worker for each thread.

linear: logistic regression on all labels, its penalty chosen on held-out fifths of the training pictures; linear 20:
on 20 labels a class, three draws; knn: votes of the nearest neighbours. All in percent of the test pictures. Raw pixels
are those of the central square at the size that the encoder sees. The encoder before training starts with all of its
branches switched on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from children import begin, started
from machine import describe_machine
from PIL import Image
from real_sets import SETS, Missing, make

from twofold.data import DataConfig, open_source
from twofold.encoders import build_encoder
from twofold.encoders.adapters import adapt
from twofold.encoders.load import load
from twofold.evaluation.features import Extractor
from twofold.evaluation.few_labels import fit_few, label_efficiency
from twofold.evaluation.protocols.knn import knn_accuracy
from twofold.evaluation.scores import score
from twofold.options import merge
from twofold.runs.config import RunConfig, build
from twofold.runs.defaults import choose

BASELINES = ("pixels", "untrained")
SCORES = ("linear", "linear 20", "knn")
GRID = tuple(float(v) for v in np.logspace(-4, 1, 6))


def worth(train: tuple[Any, Any], test: tuple[Any, Any], seed: int) -> dict[str, float]:
    """The scores of features and labels."""
    (x, y), (xt, yt) = train, test
    model, _ = fit_few(x, y, seed, grid=GRID)
    classes = len(np.unique(y))
    few = label_efficiency({"": (x, xt)}, y, yt, counts=[20 * classes], draws=3, seed=seed, grid=GRID)[0]
    k = int(min(200, np.median(np.unique(y, return_counts=True)[1])))
    nearest = knn_accuracy(x, y, xt, yt, k=k)
    return {"linear": score(model.logits(xt), model.classes, yt).top1, "linear 20": few.mean, "knn": nearest}


def chosen(folder: Path, options: dict[str, Any]) -> RunConfig:
    """The configuration that `twofold pretrain` would take."""
    config = build(options)
    facts = open_source(folder / "train", config.data).facts()
    return choose(config, facts, torch.device("cpu"))[0]


def features_of(encoder: torch.nn.Module, extractor: Extractor, folder: Path, data: DataConfig) -> Any:
    """Pairs of features and labels for the two parts."""
    pairs = []
    for part in ("train", "test"):
        found = extractor.extract(encoder, open_source(folder / part, data))  # type: ignore[arg-type]
        pairs.append((found.h, found.labels))
    return pairs


class Flat(torch.nn.Module):
    """Pixels as features."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


def pixels_of(config: RunConfig, folder: Path) -> Any:
    """Raw pixels at the views' size."""
    channels = open_source(folder / "train", config.data).channels
    flat = adapt(Flat(), channels=channels, size=config.views.size)
    return features_of(flat, Extractor(size=config.views.size, resample=config.views.resample), folder, config.data)


def lightly_run(config: RunConfig, folder: Path, epochs: float, seconds: float | None, seed: int) -> Any:
    """(the encoder that lightly trained as its documentation does, epochs seen, seconds)."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    torch.manual_seed(seed)
    files = sorted((folder / "train").rglob("*.png"))
    transform = SimCLRTransform(input_size=config.views.size or 32)

    class Pictures(torch.utils.data.Dataset[object]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> object:
            return transform(Image.open(files[index]).convert("RGB"))

    encoder = untrained(merge_options(config, {"encoder": {"channels": 3}}), seed)
    head = SimCLRProjectionHead(encoder.feature_dim, encoder.feature_dim, 128)
    criterion, batch = NTXentLoss(), min(256, len(files) // 4)
    optimizer = torch.optim.SGD([*encoder.parameters(), *head.parameters()], lr=0.06)
    loader = torch.utils.data.DataLoader(
        Pictures(), batch_size=batch, shuffle=True, drop_last=True, num_workers=torch.get_num_threads(),
        persistent_workers=True,
    )  # fmt: skip
    begun, passed = time.perf_counter(), 0
    encoder.train()
    while passed < epochs if seconds is None else time.perf_counter() - begun < seconds:
        for x0, x1 in loader:
            loss = criterion(head(encoder(x0).flatten(1)), head(encoder(x1).flatten(1)))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        passed += 1
    return encoder.eval(), passed, time.perf_counter() - begun


def merge_options(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """The configuration with some options changed."""
    import dataclasses

    for group, values in changes.items():
        config = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **values)})
    return config


def untrained(config: RunConfig, seed: int) -> Any:
    """The encoder before training, all of whose branches take part."""
    torch.manual_seed(seed)
    config = merge_options(config, {"encoder": {"zero_init_residual": False}})
    return build_encoder(config.encoder, config.views.size).eval()


def cell(folder: Path, arm: str, seed: int, epochs: float | None, minutes: float | None) -> dict[str, float]:
    """One row's numbers."""
    words = shlex.split(arm) if arm.startswith("--") else []
    given = {name.removeprefix("--"): parsed(value) for name, value in zip(words[::2], words[1::2], strict=True)}
    given = merge({"monitor.every": 0, "seed": seed}, given)
    config = chosen(folder, given)
    extractor, spent = Extractor(size=config.views.size, resample=config.views.resample), {}
    if arm == "pixels":
        parts = pixels_of(config, folder)
    elif arm == "untrained":
        parts = features_of(untrained(config, seed), extractor, folder, config.data)
    elif arm == "lightly":
        seconds = None if minutes is None else 60 * minutes
        encoder, passed, seconds = lightly_run(config, folder, epochs or config.epochs, seconds, seed)
        spent = {"epochs": passed, "seconds": seconds}
        rgb = merge_options(config, {"data": {"channels": 3}}).data
        parts = features_of(encoder, extractor, folder, rgb)
    else:
        length = {"epochs": epochs} if epochs else {"minutes": minutes} if minutes else {}
        with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
            import twofold

            run = twofold.pretrain(folder / "train", Path(out) / "run", report=False, **merge(given, length))
            spent = {"epochs": run.rows()[-1]["epoch"], "seconds": run.seconds}
            parts = features_of(load(run.path), Extractor.of(run.encoder_file), folder, config.data)
    return worth(*parts, seed) | spent


def parsed(text: str) -> Any:
    """A value of an option."""
    import yaml

    value = yaml.safe_load(text)
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def cells(given: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """(set, arm, seed) of all rows that are wanted; the pixels have one seed."""
    for seed in range(given.seeds):
        for name in given.sets:
            for arm in (*BASELINES, *given.arms):
                if not (arm == "pixels" and seed):
                    yield name, arm, seed


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row is of."""
    return tuple(row[name] for name in ("set", "arm", "seed", "length"))


def table(rows: list[dict[str, Any]], given: argparse.Namespace) -> str:
    """Means over seeds, +- the standard deviation over seeds."""
    values = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for name in SCORES:
            values[row["arm"], name][row["set"]].append(100 * row[name])
    lines = ["| arm | score | " + " | ".join(given.sets) + " | mean |", "| --- " * (len(given.sets) + 3) + "|"]
    for name in SCORES:
        for arm in (*BASELINES, *given.arms):
            found = [values[arm, name][each] for each in given.sets]
            texts = [f"{mean(v):.1f}" + (f" +- {stdev(v):.1f}" if len(v) > 1 else "") if v else "" for v in found]
            whole = f"{mean(mean(v) for v in found):.1f}" if all(found) else ""
            lines.append(f"| {arm} | {name} | {' | '.join(texts)} | {whole} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--arms", nargs="+", default=["defaults"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, each with its share of the cores")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.epochs and given.minutes:
        parser.error("--epochs and --minutes are two ways to say one length: give one")
    length = f"{given.epochs:g} epochs" if given.epochs else f"{given.minutes:g} min" if given.minutes else "as chosen"
    if given.cell:
        name, arm, seed = given.cell[0], given.cell[1].removeprefix("arm: "), given.cell[2]
        torch.set_num_threads(max(1, given.cores // given.jobs))
        numbers = cell(given.cache / name, arm, int(seed), given.epochs, given.minutes)
        print(json.dumps({"set": name, "arm": arm, "seed": int(seed), "length": length} | numbers))
        return
    available = []
    for name in given.sets:
        try:
            make(name, given.cache)
            available.append(name)
        except Missing as reason:
            print(f"{name} is left out: {reason}")
    given.sets, file = available, given.cache / "defaults.jsonl"
    known = {key_of(row): row for row in map(json.loads, file.read_text().splitlines())} if file.exists() else {}
    run_missing(given, length, file, known)
    lengths = {arm: "" if arm in BASELINES else length for arm in (*BASELINES, *given.arms)}
    rows = [known[name, arm, seed, lengths[arm]] for name, arm, seed in cells(given)]
    print(f"{describe_machine()}; {length}, {given.seeds} seeds, {given.jobs} cell(s) at a time")
    print(table(rows, given))


def run_missing(given: argparse.Namespace, length: str, file: Path, known: dict[tuple[Any, ...], Any]) -> None:
    """Each missing cell in a process of its own; its row is added to the file."""
    wanted = [
        (name, arm, seed)
        for name, arm, seed in cells(given)
        if (name, arm, seed, "" if arm in BASELINES else length) not in known
    ]
    running: list[tuple[Any, ExitStack, tuple[str, str, int]]] = []
    with ExitStack() as all_at_work:
        while wanted or running:
            while wanted and len(running) < given.jobs:
                name, arm, seed = wanted.pop(0)
                words = [f"--jobs={given.jobs}", f"--cores={given.cores}"]
                words += [f"--epochs={given.epochs}"] if given.epochs else []
                words += [f"--minutes={given.minutes}"] if given.minutes else []
                command = [sys.executable, __file__, str(given.cache), *words, "--cell", name, "arm: " + arm]
                at_work = all_at_work.enter_context(ExitStack())
                process = at_work.enter_context(started([*command, str(seed)], stdout=subprocess.PIPE))
                running.append((process, at_work, (name, arm, seed)))
            process, at_work, (name, arm, seed) = running.pop(0)
            with at_work:
                out, _ = process.communicate()
            if process.returncode:
                raise SystemExit(f"{name}, {arm}, seed {seed}: ended with {process.returncode}")
            row = json.loads(out.splitlines()[-1]) | {"arm": arm}
            row["length"] = "" if arm in BASELINES else length
            with file.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            known[key_of(row)] = row
            print(", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)


if __name__ == "__main__":
    begin(main)
