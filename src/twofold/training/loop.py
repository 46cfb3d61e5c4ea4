"""The one loop: draw views, forward, backward, update, watch, save; stops and resumes at any step, bit for bit."""

from __future__ import annotations

import time

import torch

from twofold.data.loader import Batch
from twofold.distributed import rank
from twofold.methods import Output
from twofold.randomness import derive_seed
from twofold.training.health import Health
from twofold.training.interrupts import StopRequest
from twofold.training.progress import ProgressReport, console
from twofold.training.state import RunState


class Training(RunState):
    """A run: the parts and the state are `RunState`'s; here they are put to work."""

    def fit(self) -> bool:
        """Train to the last step; returns whether it was reached (a signal ends a run early, with a checkpoint)."""
        model, optimizer = self.accelerator.prepare(self.method, self.optimizer)
        health, before, begun = Health(self.steps, self.batch), self.seconds, time.monotonic()
        unit = "sounds" if self.method.encoder.input.kind == "speech" else "images"
        with StopRequest() as stop, ProgressReport(self.steps, self.step, self.batch, unit, rank() > 0) as progress:
            for batch in self.loader.iterate(self.step, self.steps):
                self.clock.mark("data")
                output = self.update(model, optimizer, batch)
                self.step += 1
                self.seconds = before + time.monotonic() - begun
                last, stopping = self.step == self.steps, self.agree(stop.requested)
                if self.step % self.log_every == 0 or last:
                    row = self.measure(output)
                    if last or self.look_is_due():
                        row |= self.look()
                    self.record(row)
                    progress.status = f"loss {row['loss']:.3f}"
                    if rank() == 0:
                        for advice in health.advice(self.step, row):
                            console.print(f"warning: {advice}")
                    self.clock.mark("logging")
                if self.step % self.checkpoint_every == 0 or last or stopping:
                    self.save()
                    self.clock.mark("saving")
                progress.advance()
                if stopping:
                    self.stopped_by = stop.signal
                    break
        return self.step == self.steps

    def update(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> Output:
        """One step: views, loss, gradient, update."""
        for group in optimizer.param_groups:
            group["lr"] = self.schedule(self.step) * group.get("lr_scale", 1.0)
        torch.manual_seed(derive_seed(self.seed, "step", self.step, rank()))  # dropout and the like, by address too
        a, b = self.look_twice(batch)
        self.clock.mark("views")
        with self.accelerator.autocast():
            output: Output = model(a, b)
        self.clock.backward()
        self.accelerator.backward(output.loss)
        self.clock.mark("encoder")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.method.after_step()
        self.clock.mark("optimiser")
        loss = output.loss.detach()
        for name, value in (("loss", loss), ("steps", torch.ones_like(loss))):  # both where collectives find them
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        for monitor in self.monitors:
            monitor.after_step(output, batch.labels)
        self.clock.mark("monitors")
        return output
