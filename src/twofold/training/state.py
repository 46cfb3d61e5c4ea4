"""What a run in progress is made of, what a checkpoint holds of it, and what is written down about it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from twofold.data.loader import Batch, Loader
from twofold.distributed import all_reduce_mean, rank, world_size
from twofold.methods import Method, Output
from twofold.training.checkpoint import load_checkpoint, save_checkpoint
from twofold.training.clock import StepClock
from twofold.training.health import check_finite
from twofold.training.rundir import RunDirectory
from twofold.views import ImageViews


class Monitor(Protocol):
    """Something that watches a run and changes nothing of what the encoder learns."""

    def after_step(self, output: Output, labels: Tensor | None) -> None: ...
    def look(self) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class RunState:
    """A run in progress. `step`, `seconds` and the open means are its state, with the modules' and the optimiser's."""

    method: Method
    views: ImageViews
    loader: Loader
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]
    accelerator: Accelerator
    run: RunDirectory
    seed: int
    batch: int
    steps: int
    steps_per_epoch: float
    log_every: int
    look_every: int
    checkpoint_every: int
    keep: int
    memory_format: torch.memory_format
    monitors: Sequence[Monitor] = ()
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)
    stopped_by: int | None = None
    clock: StepClock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = StepClock(self.method, self.accelerator.device)

    def look_twice(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The two views of a batch, [n, C, S, S] float on the device."""
        a, b = self.views.apply(batch.images.to(self.accelerator.device, non_blocking=True), batch.draws)
        return a.contiguous(memory_format=self.memory_format), b.contiguous(memory_format=self.memory_format)

    def look_is_due(self) -> bool:
        """Whether a multiple of `look_every` came since the last logged step, or is this one."""
        return self.look_every > 0 and self.step // self.look_every > (self.step - self.log_every) // self.look_every

    def look(self) -> dict[str, float]:
        """What the monitors see now."""
        self.clock.mark("logging")
        row: dict[str, float] = {}
        for monitor in self.monitors:
            row |= monitor.look()
        self.clock.mark("monitors")
        return row

    def measure(self, output: Output) -> dict[str, float]:
        """One row of metrics: means since the last row, and what the method tells of the last step."""
        loss = float(all_reduce_mean(self.sums["loss"] / self.sums["steps"]))
        check_finite(loss, self.step)
        self.sums = {}
        self.clock.collect()
        row = {"step": self.step, "epoch": self.step / self.steps_per_epoch, "loss": loss, "seconds": self.seconds}
        return row | {"lr": self.schedule(self.step - 1)} | self.method.describe(output, self.batch)

    def record(self, row: dict[str, float]) -> None:
        """Append a row to metrics.jsonl, and to the tracker if there is one."""
        if rank() == 0:
            with self.run.metrics_file.open("a") as file:
                file.write(json.dumps(row) + "\n")
        self.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=self.step)

    def agree(self, requested: bool) -> bool:
        """Whether to stop, the same on every rank at the same step; asked now and then, as it costs a message."""
        if world_size() == 1:
            return requested
        return self.step % 8 == 0 and bool(
            all_reduce_mean(torch.tensor(float(requested), device=self.accelerator.device)) > 0
        )

    def save(self) -> None:
        """Write a checkpoint, unless the weights are spoiled."""
        if "loss" in self.sums:
            check_finite(float(self.sums["loss"]), self.step)
        # (the open means of all ranks, as every rank will take them up)
        sums = {name: all_reduce_mean(value) for name, value in self.sums.items()}
        state = {
            "step": self.step, "seconds": self.seconds, "sums": sums,
            "method": self.method.state_dict(), "optimizer": self.optimizer.state_dict(),
            "monitors": [monitor.state_dict() for monitor in self.monitors],
        }  # fmt: skip
        if rank() == 0:
            save_checkpoint(self.run.path, self.step, state, self.keep)

    def resume(self) -> None:
        """Take up the run at its newest checkpoint, if it has one."""
        newest = self.run.latest()
        if newest:
            state = load_checkpoint(newest)
            self.step, self.seconds = state["step"], state["seconds"]
            self.sums = {name: value.to(self.accelerator.device) for name, value in state["sums"].items()}
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
            for monitor, saved in zip(self.monitors, state["monitors"], strict=True):
                monitor.load_state_dict(saved)
        if rank() == 0:
            self.run.keep_metrics_until(self.step)
