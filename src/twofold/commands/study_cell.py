"""`twofold study methods`: each cell is a run of its own, trained in a process and memory of its own."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from twofold.commands.evaluate import evaluate
from twofold.commands.pretrain import pretrain
from twofold.devices import choose_device, peak_memory
from twofold.errors import Stopped, UserError
from twofold.runs.config import RunConfig
from twofold.studies.methods import Outcome, RunSpec


def run_cell(place: Path, what: dict[str, Any]) -> None:
    """Train and score a cell in this process, and write its `cell.json`."""
    cell = RunSpec(**what["cell"])
    options = {name: value for name, value in cell.options.items() if name != "data"}
    reading = {f"data.{name}": value for name, value in cell.options.get("data", {}).items()}
    run = pretrain(what["data"], place, resume=True, report=False, **options, **reading)
    config, _ = run.read(RunConfig)
    device = choose_device(config.training.device).type
    memory, last = peak_memory(device), run.metrics()[-1]
    message = {"test": what["test"]} if what["test"] is not None else {}
    scores = {
        protocol: evaluate(place, what["data"], protocol=protocol, **extra, **reading, **message).top1
        for protocol, extra in (("linear", {}), ("knn", {"k": what["k"]}))
    }
    outcome = Outcome(
        cell.method, cell.batch, cell.seed, scores["linear"], scores["knn"], last["seconds"],
        last["step"] * cell.batch, memory, device,
    )  # fmt: skip
    run.write_json("cell.json", asdict(outcome))


def main(arguments: list[str]) -> int:
    """The process of a cell: its folder, and what to do as JSON."""
    try:
        run_cell(Path(arguments[0]), json.loads(arguments[1]))
    except UserError as error:
        print(f"twofold: error: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        return 128 + stop.signal
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
