"""The one loop: draw views, forward, backward, update, watch, save; stops and resumes at any step, bit for bit."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from twofold import losses
from twofold.data.loader import Batch, Loader
from twofold.distributed import all_reduce_mean, rank, world_size
from twofold.methods import Method, Output
from twofold.randomness import derive_seed
from twofold.training.checkpoint import load_checkpoint, save_checkpoint
from twofold.training.health import Health, check_finite
from twofold.training.interrupts import StopRequest
from twofold.training.progress import ProgressReport, console
from twofold.training.rundir import RunDirectory
from twofold.views import ImageViews


class Monitor(Protocol):
    """Something that watches a run and changes nothing of what the encoder learns."""

    def after_step(self, output: Output, labels: Tensor | None) -> None: ...
    def look(self) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Training:
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

    def fit(self) -> bool:
        """Train to the last step; returns whether it was reached (a signal ends a run early, with a checkpoint)."""
        model, optimizer = self.accelerator.prepare(self.method, self.optimizer)
        health, before, begun = Health(self.steps, self.batch), self.seconds, time.monotonic()
        with StopRequest() as stop, ProgressReport(self.steps, self.step, self.batch, quiet=rank() > 0) as progress:
            for batch in self.loader.iterate(self.step, self.steps):
                output = self.update(model, optimizer, batch)
                self.step += 1
                self.seconds = before + time.monotonic() - begun
                last, stopping = self.step == self.steps, self.agree(stop.requested)
                if self.step % self.log_every == 0 or last:
                    row = self.measure(output)
                    if last or (self.look_every and self.step % self.look_every == 0):
                        for monitor in self.monitors:
                            row |= monitor.look()
                    self.record(row)
                    progress.status = f"loss {row['loss']:.3f}"
                    if rank() == 0:
                        for advice in health.advice(self.step, row):
                            console.print(f"warning: {advice}")
                if self.step % self.checkpoint_every == 0 or last or stopping:
                    self.save()
                progress.advance()
                if stopping:
                    self.stopped_by = stop.signal
                    break
        return self.step == self.steps

    def update(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> Output:
        """One step: views, loss, gradient, update."""
        for group in optimizer.param_groups:
            group["lr"] = self.schedule(self.step)
        torch.manual_seed(derive_seed(self.seed, "step", self.step, rank()))  # dropout and the like, by address too
        a, b = self.look_twice(batch)
        with self.accelerator.autocast():
            output: Output = model(a, b)
        self.accelerator.backward(output.loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.method.after_step()
        for name, value in (("loss", output.loss.detach()), ("steps", torch.ones(()))):
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        for monitor in self.monitors:
            monitor.after_step(output, batch.labels)
        return output

    def look_twice(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The two views of a batch, [n, C, S, S] float on the device."""
        a, b = self.views.apply(batch.images.to(self.accelerator.device, non_blocking=True), batch.draws)
        return a.contiguous(memory_format=self.memory_format), b.contiguous(memory_format=self.memory_format)

    def measure(self, output: Output) -> dict[str, float]:
        """One row of metrics: means since the last row, and how the last step's embedding looks."""
        loss = float(all_reduce_mean(self.sums["loss"] / self.sums["steps"]))
        check_finite(loss, self.step)
        self.sums = {}
        row = {"step": self.step, "epoch": self.step / self.steps_per_epoch, "loss": loss, "seconds": self.seconds}
        row |= {"lr": self.schedule(self.step - 1), "negatives": self.method.negatives(self.batch)}
        return row | losses.describe(output.z_a, output.z_b, output.h, self.method.temperature, self.batch)

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
        return self.step % 8 == 0 and bool(all_reduce_mean(torch.tensor(float(requested), device=self.accelerator.device)) > 0)

    def save(self) -> None:
        """Write a checkpoint, unless the weights are spoiled."""
        if "loss" in self.sums:
            check_finite(float(self.sums["loss"]), self.step)
        state = {
            "step": self.step, "seconds": self.seconds, "sums": self.sums,
            "method": self.method.state_dict(), "optimizer": self.optimizer.state_dict(),
            "monitors": [monitor.state_dict() for monitor in self.monitors],
        }  # fmt: skip
        if rank() == 0:
            save_checkpoint(self.run.path, self.step, state, self.keep)

    def resume(self) -> None:
        """Take up the run at its newest checkpoint, if it has one."""
        newest = self.run.latest()
        state = load_checkpoint(newest) if newest else {"step": 0}
        if newest:
            self.step, self.seconds, self.sums = state["step"], state["seconds"], state["sums"]
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
            for monitor, saved in zip(self.monitors, state["monitors"], strict=True):
                monitor.load_state_dict(saved)
        if rank() == 0:
            self.run.keep_metrics_until(self.step)
