"""The one loop: draw views, forward, backward, update, watch, save; stops and resumes at any step, bit for bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from twofold.console import console
from twofold.data.batches.base import Batch, BatchLoader, Draw, Examples
from twofold.distributed import (
    all_gather,
    all_reduce_mean,
    average_running_statistics,
    highest,
    rank,
    world_size,
)
from twofold.encoders.base import MISFIT
from twofold.errors import UserError
from twofold.interrupts import StopRequest
from twofold.kinds import EXAMPLE
from twofold.methods import ClassifierMethod, ContrastiveMethod, Method, Output
from twofold.randomness import derive_seed
from twofold.text import printable
from twofold.training.best import Best
from twofold.training.checkpoint import check_state_fits, load_checkpoint, load_newest, save_checkpoint, set_aside
from twofold.training.clock import StepClock
from twofold.training.health import Health
from twofold.training.health_classes import ClassHealth, Lessons
from twofold.training.health_contrast import Contrast, ContrastHealth
from twofold.training.inputs import MakeInputs
from twofold.training.metrics import MetricsFile
from twofold.training.progress import ProgressReport
from twofold.training.rundir import RunDirectory
from twofold.training.soundness import Soundness
from twofold.training.vigil import Pulse, Vigil
from twofold.views import ImageDraw
from twofold.views.audio.views import WaveDraw
from twofold.waves import Waves


class Monitor(Protocol):
    """Something that watches a run and changes nothing of what the encoder learns."""

    @property
    def looked_at(self) -> int:
        """Labelled examples that `measure` asks for the neighbours of; 0 where it tells no `knn_top1`."""

    def after_step(self, output: Output, labels: Tensor | None) -> None: ...
    def measure(self) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Training(Generic[Examples, Draw]):
    """A run in progress. `step`, `seconds` and the open means are its state, with the modules' and the optimiser's.

    What differs between kinds of run is the method, and `make_inputs`: what of a batch the method is given.
    """

    method: Method
    make_inputs: MakeInputs[Examples, Draw]
    loader: BatchLoader[Examples, Draw]
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]
    accelerator: Accelerator
    run: RunDirectory
    seed: int
    batch: int
    steps: int
    steps_per_epoch: float
    log_every: int
    checkpoint_every: int
    keep: int
    size: int | None = None
    """Side of a view of images, in pixels."""
    ends: Sequence[int] = ()
    """Steps after which the run as it was planned, and then each extension of it, ends; the last is `steps`."""
    checkpoint_minutes: float | None = None
    saving_share: float = 1.0
    """What a checkpoint at a multiple of `checkpoint_every` may take of the time since the last one: where it would
    take more it waits for the next multiple, unless a monitor has looked since."""
    patience: float = 60.0
    """Seconds within which a process of several that has died or hangs is noticed."""
    save_best: Callable[[float], None] | None = None
    """Called with its score where the checkpoint just written is the best by a monitor."""
    monitors: Sequence[Monitor] = ()
    monitor_every: int = 0
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)
    stopped_by: int | None = None
    clock: StepClock = field(init=False)
    metrics: MetricsFile = field(init=False)
    soundness: Soundness = field(init=False)
    best: Best = field(default_factory=Best)
    begun_at: float | None = None
    """`knn_top1` before the first step, where a monitor tells it: what the run's own looks are judged by."""
    _saved: float = field(init=False)
    _cost: float = 0.0

    def __post_init__(self) -> None:
        self._saved = time.monotonic()
        self.clock = StepClock(self.method, self.accelerator.device)
        self.metrics = MetricsFile(self.run.metrics_file)
        self.soundness = Soundness(self.method, self.loader.name, self.run.latest_step)

    def fit(self) -> bool:
        """Train to the last step; returns whether it was reached (a signal ends a run early, with a checkpoint)."""
        health, before, begun = self.health(), self.seconds, time.monotonic()
        unit = f"{EXAMPLE[self.method.encoder.input.kind]}s"
        watch = Vigil(self.patience, partial(self.pulse, self.step))
        progress = ProgressReport(self.steps, self.step, self.batch, unit, rank() > 0)
        with StopRequest() as stop, watch, progress:
            model, optimizer = self.accelerator.prepare(self.method, self.optimizer)
            for batch in self.loader.iterate(self.step, self.steps):
                self.clock.mark("data")
                if self.step == 0 and any(monitor.looked_at for monitor in self.monitors):
                    # (now and not before the first batch: processes that decode are forked before any thread computes)
                    health.begun_at = self.begun_at = self.run_monitors().get("knn_top1")
                output = self.update(model, optimizer, batch)
                self.step += 1
                self.seconds = before + time.monotonic() - begun
                last = self.step == self.steps
                stopping = self.agree(stop.number())
                if self.step % self.log_every == 0 or last:
                    row = self.measure(output)
                    if last or self.monitor_due():
                        row |= self.run_monitors()
                        if self.begun_at is not None:
                            row["knn_before"] = self.begun_at
                        self.best.look(row)
                    self.record(row)
                    progress.status = f"loss {row['loss']:.3f}"
                    if rank() == 0:
                        for advice in health.advice(self.step, row):
                            console.print(f"warning: {advice}")
                        for word in (health.outlook(), health.closing() if last else ""):
                            if word:
                                console.print(word)
                    self.clock.mark("logging")
                if self.checkpoint_due() or last or stopping:
                    self.clock.doing = "saving"
                    self.save()
                    self.clock.mark("saving")
                progress.advance()
                self.clock.doing = "data"
                if stopping:
                    self.stopped_by = int(stopping)
                    break
        return self.step == self.steps

    def health(self) -> Health:
        """What judges the rows; of a resumed run, with those that it has written."""
        method, kind = self.method, self.method.encoder.input.kind
        health = Health(self.steps)
        if isinstance(method, ContrastiveMethod):
            weighs = getattr(method, "contrastive_weight", 1.0) > 0
            own, queries = self.batch // world_size(), sum(monitor.looked_at for monitor in self.monitors)
            contrast = Contrast(kind, self.batch, method.temperature, method.normalize, weighs, own, queries)
            health = ContrastHealth(self.steps, contrast, None if self.step else method.encoder_norm())
        elif isinstance(method, ClassifierMethod):
            deep, largest = method.trains_encoder(), method.largest()
            lessons = Lessons(kind, self.batch, method.measure, deep, method.fresh, largest)
            health = ClassHealth(self.steps, lessons, None if self.step else method.trained_norm())
        health.begun_at = self.begun_at
        if rank() == 0 and self.step:
            since = self.ends[-2] if len(self.ends) > 1 else 0
            health.replay([row for row in self.metrics.rows() if row["step"] <= self.step], since)
        return health

    def update(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Batch[Examples, Draw]) -> Output:
        """One step: views, loss, gradient, update."""
        for group in optimizer.param_groups:
            group["lr"] = self.schedule(self.step) * group.get("lr_scale", 1.0)
        torch.manual_seed(derive_seed(self.seed, "step", self.step, rank()))  # dropout and the like, by address too
        inputs = self.make_inputs(batch)
        self.clock.mark("views")
        with self.accelerator.autocast():
            output: Output = model(inputs)
        self.soundness.after_forward(output.loss.detach(), self.step, batch.index)
        self.clock.backward()
        self.accelerator.backward(output.loss)
        self.clock.mark("encoder")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.method.after_step()
        average_running_statistics(self.method)
        self.clock.mark("optimiser")
        loss = output.loss.detach()
        news = [("loss", loss), ("steps", torch.ones_like(loss))]  # both where collectives find them
        news += self.method.watched(output).items()
        if not self.sums:
            self.sums = {name: torch.zeros_like(value) for name, value in news}
        for name, value in news:  # an earlier version's checkpoint may begin sums that lack some of them
            if name in self.sums:
                self.sums[name] = self.sums[name] + value
        for monitor in self.monitors:
            monitor.after_step(output, batch.labels)
        self.clock.mark("monitors")
        return output

    def pulse(self, first: int) -> Pulse:
        """Where this process is; what may take long are the first step, monitors and saving.

        Batches that other processes read take as long as these do: what hangs there is ended there.
        """
        doing = self.clock.doing
        long = self.step == first or doing in ("monitors", "saving") or (doing == "data" and self.loader.watched)
        return Pulse(self.clock.marks, self.step, doing, long)

    def monitor_due(self) -> bool:
        """Whether a multiple of `monitor_every` came since the last logged step, or is this one."""
        return (
            self.monitor_every > 0
            and self.step // self.monitor_every > (self.step - self.log_every) // self.monitor_every
        )

    def run_monitors(self) -> dict[str, float]:
        """What the monitors see now."""
        self.clock.mark("logging")
        self.clock.doing = "monitors"
        row: dict[str, float] = {}
        for monitor in self.monitors:
            row |= monitor.measure()
        self.clock.mark("monitors")
        return row

    def measure(self, output: Output) -> dict[str, float]:
        """One row of metrics: means since the last row, and what the method tells of the last step."""
        loss = float(all_reduce_mean(self.sums["loss"] / self.sums["steps"]))
        self.soundness.check_loss(loss, self.step)
        watched = {name: total for name, total in self.sums.items() if name not in ("loss", "steps")}
        known = {name: float(all_reduce_mean(total / self.sums["steps"])) for name, total in watched.items()}
        self.sums = {}
        self.clock.collect()
        row = {"step": self.step, "epoch": self.step / self.steps_per_epoch, "loss": loss, "seconds": self.seconds}
        return row | {"lr": self.schedule(self.step - 1)} | known | self.method.describe(output, self.batch)

    def record(self, row: dict[str, float]) -> None:
        """Append a row to metrics.jsonl, and to the tracker if there is one."""
        if rank() == 0:
            self.metrics.append(row)
        self.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=self.step)

    def agree(self, number: int) -> int:
        """The signal to stop by, 0 for none: the highest that any rank was sent."""
        return highest(number)[0]

    def checkpoint_due(self) -> bool:
        """Whether a checkpoint is due after this step by its number, or on any rank by the clock."""
        waited, regular = time.monotonic() - self._saved, self.step % self.checkpoint_every == 0
        if regular and self.saving_share >= 1:
            return True
        if not regular and self.checkpoint_minutes is None:
            return False
        # (what a monitor looked at is kept whatever it costs, so that no clock chooses the best)
        due = regular and (self.best.waiting or self._cost <= self.saving_share * (waited + self._cost))
        due = due or (self.checkpoint_minutes is not None and waited > 60 * self.checkpoint_minutes)
        return bool(highest(int(due))[0])

    def save(self) -> None:
        """Write a checkpoint, unless the weights are spoiled."""
        begun = time.monotonic()
        # (the open means of all ranks, and of each: a mean of means is another number in its last bits)
        sums = {name: all_reduce_mean(value) for name, value in self.sums.items()}
        own = {name: all_gather(value[None]) for name, value in self.sums.items()}
        state = {
            "step": self.step, "seconds": self.seconds, "sums": sums,
            "method": self.method.state_dict(), "optimizer": self.optimizer.state_dict(),
            "monitors": [monitor.state_dict() for monitor in self.monitors],
        }  # fmt: skip
        if world_size() > 1:
            state |= {"rank_sums": own}
        self.soundness.check_state(state, self.step)
        self.best.consider(self.step)
        if rank() == 0:
            state |= {"metrics": self.metrics.mark(), "best": self.best.state(), "begun_at": self.begun_at}
            save_checkpoint(self.run.path, self.step, state, self.keep, self.best.step)
            if self.best.step == self.step and self.save_best is not None:
                self.save_best(self.best.value)
        self._saved = time.monotonic()
        self._cost = self._saved - begun

    def resume(self) -> None:
        """Take up the run at its newest checkpoint that is sound, if it has one."""
        mark: dict[str, int] | None = None

        def take(path: Path) -> None:
            nonlocal mark
            state = load_checkpoint(path, self.steps)
            self._take_up(state, path)
            mark = state.get("metrics")

        _, problems = load_newest(self.run.path, take, self._everywhere)
        if rank() > 0:
            return
        for problem in problems:
            console.print(f"warning: {printable(problem)}; going on from step {self.step}", markup=False)
        set_aside(self.run.path, self.step)
        damage = self.metrics.restore(mark, self.step)
        if damage:
            console.print(f"warning: {printable(damage)}", markup=False)

    def _take_up(self, state: dict[str, Any], path: Path) -> None:
        """Fill in a checkpoint; a UserError where it is not one of this run."""
        try:
            check_state_fits(self.optimizer, state["optimizer"])
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
            own = {name: each[rank()] for name, each in state.get("rank_sums", {}).items() if len(each) == world_size()}
            sums = own or state["sums"]
            self.sums = {name: value.to(self.accelerator.device) for name, value in sums.items()}
            for monitor, saved in zip(self.monitors, state["monitors"], strict=True):
                monitor.load_state_dict(saved)
            self.best.load_state(state.get("best"))
            begun_at = state.get("begun_at")  # an earlier version's checkpoint tells none
            self.begun_at = None if begun_at is None else float(begun_at)
            self.step, self.seconds = state["step"], state["seconds"]
        except MISFIT as error:
            raise UserError(f"{path} is no checkpoint of this run: {type(error).__name__}: {error}") from error

    def _everywhere(self, here: bool) -> bool:
        """Whether something holds on every rank."""
        return float(all_reduce_mean(torch.tensor(float(here), device=self.accelerator.device))) == 1


AnyTraining = Training[Tensor, ImageDraw] | Training[Waves, WaveDraw]
"""A run on images, or on recordings."""
