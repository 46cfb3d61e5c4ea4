"""The one builder of a run: from its options, a method and data to what the loop needs, whatever the kind of run."""

from __future__ import annotations

from typing import Protocol

import torch
from accelerate import Accelerator

from twofold.data import AudioSource, Source
from twofold.data.batches.base import Draw, Examples
from twofold.methods import Method
from twofold.optim import OptimConfig, build_optimizer, build_schedule
from twofold.runs.inputs import Reading, ReadingOptions, read_audio, read_images
from twofold.training.config import TrainingConfig
from twofold.training.inputs import MakeInputs, Views
from twofold.training.loop import AnyTraining, Training
from twofold.training.micro_batch import run_in_chunks
from twofold.training.rundir import RunDirectory


class RunOptions(ReadingOptions, Protocol):
    """What every kind of run is told."""

    @property
    def epochs(self) -> float | None: ...
    @property
    def micro_batch(self) -> int | None: ...
    @property
    def optim(self) -> OptimConfig: ...
    @property
    def training(self) -> TrainingConfig: ...


class InputsMaker(Protocol):
    """Makes what turns batches into the method's inputs, for examples of any kind."""

    def __call__(
        self, views: Views[Examples, Draw], device: torch.device, memory_format: torch.memory_format, /
    ) -> MakeInputs[Examples, Draw]: ...


def build_training(
    config: RunOptions,
    method: Method,
    source: Source,
    inputs: InputsMaker,
    run: RunDirectory,
    accelerator: Accelerator,
    *,
    span: int = 1,
    short_epochs: bool = False,
) -> AnyTraining:
    """Build every part of a run around a method.

    Args:
        config: the run's options, none of which is open.
        method: what is trained; it is moved to the device, and its encoder compiled or cut into chunks if asked.
        source: what it is trained on; recordings at the encoder's sample rate.
        inputs: what the method is given of a batch: `TwoViews`, `LabelledView`, or one that asks a teacher.
        run: where it is written.
        accelerator: of the run.
        span: frames that the method hides together.
        short_epochs: an epoch may be a few steps, as with few labels: rows and checkpoints keep a distance.

    Raises:
        UserError: the batch does not fit the data, the processes or the micro-batch, or the data lack something.
    """
    method.to(accelerator.device)
    memory_format = torch.channels_last if config.training.channels_last else torch.contiguous_format
    method.to(memory_format=memory_format)
    if config.micro_batch:
        run_in_chunks(method, config.batch or 1, config.micro_batch, config.training.compile)
    elif config.training.compile:
        method.encoder.body().compile()
    optimizer = build_optimizer(config.optim, method.trained(), config.batch or 1)

    def training(reading: Reading[Examples, Draw]) -> Training[Examples, Draw]:
        order, batch, epochs = reading.order, config.batch or 1, config.epochs or 1.0
        # the reference trains one step more (its first has lr 0)
        steps = order.steps(epochs) + (config.data.last_batch != "drop")
        log_every, checkpoint_every = _intervals(config.training, steps, order.steps_per_epoch, short_epochs)
        return Training(
            method, inputs(reading.views, accelerator.device, memory_format), reading.loader, optimizer,
            build_schedule(config.optim, len(source), batch, epochs, steps), accelerator, run, config.seed, batch,
            steps, order.steps_per_epoch, log_every, checkpoint_every, config.training.keep, size=config.views.size,
            checkpoint_minutes=config.training.checkpoint_minutes, patience=config.training.patience,
        )  # fmt: skip

    pin = accelerator.device.type == "cuda"
    if isinstance(source, AudioSource):
        return training(read_audio(config, source, span, pin))
    return training(read_images(config, source, pin))


def _intervals(config: TrainingConfig, steps: int, per_epoch: float, short_epochs: bool) -> tuple[int, int]:
    """Steps between two rows of metrics, and between two checkpoints."""
    rows, epoch = max(1, steps // 20), max(1, round(per_epoch))
    if short_epochs:
        return config.log_every or rows, config.checkpoint_every or max(epoch, steps // 10)
    return config.log_every or min(epoch, rows), config.checkpoint_every or epoch
