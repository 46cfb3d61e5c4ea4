"""`twofold study`: each cell is a run of its own, trained in a process and memory of its own."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from twofold.commands.evaluate import evaluate
from twofold.commands.pretrain import pretrain
from twofold.devices import choose_device, peak_memory
from twofold.encoders.load import load
from twofold.errors import Diverged, Stopped, UserError
from twofold.evaluation.protocols.classifier import Evaluation
from twofold.files import CELL_LOCK
from twofold.interrupts import Interrupted, end_with_writer, interruptible
from twofold.reading import read_json
from twofold.runs.config import RunConfig
from twofold.studies.after import After, measure
from twofold.studies.methods import Outcome, RunSpec
from twofold.studies.targets import train_part
from twofold.training.ownership import owned
from twofold.training.rundir import RunDirectory

PATIENCE = 600.0
"""Seconds for which a cell waits for the process of a study that was killed, which ends after the step in hand."""
TRAINED = "trained.json"
"""What training a cell took, written when it is done: what is measured afterwards finds the encoder unchanged."""


def run_cell(place: Path, work: dict[str, Any]) -> None:
    """Train and score a cell in this process, and write its `cell.json`; of one that diverges it says that alone."""
    cell = RunSpec(**work["cell"])
    try:
        outcome = _scored(place, work, cell)
    except Diverged as error:
        outcome = Outcome(cell.method, cell.batch, cell.seed, 0.0, 0.0, 0.0, 0, 0, "", diverged=str(error))
    RunDirectory(place).write_json("cell.json", asdict(outcome))


def _scored(place: Path, work: dict[str, Any], cell: RunSpec) -> Outcome:
    """What a cell comes to; Diverged where its training, or what its encoder gives, is no number."""
    took = _trained(place, work["data"], cell)
    shared: dict[str, Any] = {"data": cell.options.get("data", {}), "baselines": False} | work.get("scoring", {})
    if work["test"] is not None:
        shared["test"] = work["test"]
    also = work.get("also", ())
    linear = evaluate(place, work["data"], protocol="linear", **shared | {"baselines": "baselines" in also})
    knn = evaluate(place, work["data"], protocol="knn", k=work["k"], **shared).metrics["top1"]
    machine: dict[str, Any] = {name: cell.options[name] for name in cell.options.keys() & {"data", "training"}}
    afters = [After(*each) for each in work.get("after", ())]
    more, lost = measure(place, RunDirectory(place).encoder_file, afters, work["data"], work["test"], machine)
    assert isinstance(linear, Evaluation)  # of the protocol "linear"
    more |= {name: scores.top1 for name, scores in linear.baselines.items()}
    if "z" in also:
        more["z"] = evaluate(place, work["data"], protocol="linear", features="z", **shared).metrics["top1"]
    if "other" in work:  # other labels of the same images
        more["other_top1"] = evaluate(place, work["other"], protocol="linear", **shared).metrics["top1"]
    top1 = linear.metrics["top1"]
    return Outcome(cell.method, cell.batch, cell.seed, top1, knn, more=more, lost=lost, **took)


def _trained(place: Path, data: str, cell: RunSpec) -> dict[str, Any]:
    """Train a cell, or read what that took; by the names that `Outcome` has for it."""
    file = place / TRAINED
    if file.exists():
        try:
            return dict(read_json(file))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{file} is damaged: {error}; remove the folder to have the cell trained again") from error
    run = pretrain(data, place, resume=True, report=False, **cell.options)
    config, _ = run.read(RunConfig)
    device = choose_device(config.training.device).type
    memory, last = peak_memory(device), run.rows()[-1]
    took = {
        "seconds": last["seconds"], "images": last["step"] * cell.batch, "memory": memory, "device": device,
        "parameters": sum(p.numel() for p in load(run.encoder_file).parameters()),
    }  # fmt: skip
    run.write_json(TRAINED, took)
    return took


def main(arguments: list[str]) -> int:
    """The process of a cell: its folder, and what to do as JSON."""
    place, work = Path(arguments[0]), json.loads(arguments[1])
    try:
        with interruptible(), owned(place, CELL_LOCK, PATIENCE):
            if work.get("kind") == "target":
                train_part(place, work)
            else:
                run_cell(place, work)
    except UserError as error:
        print(f"twofold: error: {error}", file=sys.stderr)
        return 2
    except (Stopped, Interrupted) as stop:
        return 128 + stop.signal
    return 0


if __name__ == "__main__":
    end_with_writer(sys.stdin.fileno())
    sys.exit(main(sys.argv[1:]))
