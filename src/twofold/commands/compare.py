"""`twofold study methods`: each cell is a run of its own, trained in a process and memory of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from twofold.commands.evaluate import evaluate, evaluation_parts
from twofold.commands.pretrain import pretrain, read_layers
from twofold.data import Order, Source, open_source
from twofold.errors import Stopped, UserError
from twofold.evaluation.protocols import check_labels
from twofold.studies import methods
from twofold.studies.folder import StudyFolder
from twofold.studies.memory import peak_memory
from twofold.studies.methods import Cell, MethodsStudy, Outcome
from twofold.training.config import build, merge, plain
from twofold.training.defaults import choose
from twofold.training.interrupts import StopRequest
from twofold.training.progress import console
from twofold.training.starting import choose_device

_POLL = 0.1  # seconds between two looks at a cell's process


def compare_methods(data: str, folder: StudyFolder, study: MethodsStudy) -> str:
    """Train and score every cell that is not done yet; returns the table for the terminal."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a study is one process that starts others: run it without torchrun")
    shared = merge({"data": plain(study.data)}, read_layers(study.recipe, study.config, {}))
    source = open_source(data, study.data)
    train, test = evaluation_parts(data, study.test, study.data)
    check_labels(train, test)
    cells = methods.plan(study, shared, _epochs(study, shared, source))
    for cell in cells:  # whatever is wrong with one of them is said before the first is trained
        choose(build(cell.options, origin=cell.name), source.facts(), choose_device("auto"))
        Order(len(source), cell.batch, cell.seed)
    folder.start()
    outcomes = []
    for number, cell in enumerate(cells, 1):
        place = folder.path / cell.name
        if methods.read_outcome(place) is None:
            console.print(f"cell {number} of {len(cells)}: {cell.name}")
            _run_cell(place, {"data": data, "test": study.test, "k": study.k, "cell": asdict(cell)})
        outcome = methods.read_outcome(place)
        if outcome is None:
            raise UserError(f"{place} came to nothing: it has no cell.json")
        outcomes.append(outcome)
    report = folder.finish(methods.results(outcomes), methods.report(outcomes, data))
    return f"{methods.text(outcomes)}\n{folder.file}\n{report}"


def _epochs(study: MethodsStudy, shared: dict[str, Any], source: Source) -> float:
    """Those given, or those that pretraining would choose."""
    if study.epochs is not None:
        return study.epochs
    options = {**shared, "method": {}, "batch": min(study.batches), "epochs": None}
    chosen, _ = choose(build(options), source.facts(), choose_device("auto"))
    return chosen.epochs or 1.0


def _run_cell(place: Path, what: dict[str, Any]) -> None:
    """Train and score a cell in a process of its own; a signal is passed on to it."""
    words = [sys.executable, "-m", "twofold.commands.compare", str(place), json.dumps(what)]
    with StopRequest() as stop:
        process = subprocess.Popen(words, start_new_session=True)  # Ctrl-C is to reach it once
        try:
            while process.poll() is None:
                time.sleep(_POLL)
                if stop.signal is not None:
                    process.send_signal(stop.signal)
                    process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if stop.signal is not None:
        raise Stopped(f"stopped in {place}; the same command with --resume goes on", stop.signal)
    if process.returncode != 0:
        raise UserError(f"the cell {place.name} failed (status {process.returncode}); its own message is above")


def run_cell(place: Path, what: dict[str, Any]) -> None:
    """Train and score a cell in this process, and write its `cell.json`."""
    cell = Cell(**what["cell"])
    options = {name: value for name, value in cell.options.items() if name != "data"}
    reading = {f"data.{name}": value for name, value in cell.options.get("data", {}).items()}
    run = pretrain(what["data"], place, resume=True, report=False, **options, **reading)
    config, _ = run.read()
    device = choose_device(config.training.device).type
    memory, last = peak_memory(device), run.metrics()[-1]
    told = {"test": what["test"]} if what["test"] is not None else {}
    scores = {
        protocol: evaluate(place, what["data"], protocol=protocol, **extra, **reading, **told).top1
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
