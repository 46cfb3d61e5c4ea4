"""The one builder of a run: from its options, a method and data to what the loop needs, whatever the kind of run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import torch
from accelerate import Accelerator

from twofold.console import print_rank0
from twofold.data import AudioSource, Source
from twofold.data.batches.balanced import BalancedDraws
from twofold.data.batches.base import Draw, Examples
from twofold.distributed import batch_norm_layers, keep_batch_norm_local
from twofold.errors import UserError
from twofold.methods import Method
from twofold.optim import OptimConfig, build_optimizer, build_schedule, extended
from twofold.options import as_written
from twofold.runs.inputs import Reading, ReadingOptions, read_audio, read_images
from twofold.training.config import TrainingConfig
from twofold.training.inputs import MakeInputs, Views
from twofold.training.loop import AnyTraining, Training
from twofold.training.micro_batch import run_in_chunks
from twofold.training.rundir import RunDirectory
from twofold.views import left_out

SAVING_SHARE = 0.01
"""Most of a run's time that checkpoints take where their distance is left open."""


class RunOptions(ReadingOptions, Protocol):
    """What every kind of run is told."""

    @property
    def epochs(self) -> float | None: ...
    @property
    def micro_batch(self) -> int | None: ...
    @property
    def bn_momentum(self) -> float | None: ...
    @property
    def global_bn(self) -> bool | None: ...
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
    extensions: Sequence[float] = (),
    drawn: BalancedDraws | None = None,
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
        extensions: epochs that were added to the finished run, one after another.
        drawn: what examples are drawn by, if not each once an epoch.

    Raises:
        UserError: the batch does not fit the data, the processes or the micro-batch, or the data lack something.
    """
    method.to(accelerator.device)
    memory_format = torch.channels_last if config.training.channels_last else torch.contiguous_format
    method.to(memory_format=memory_format)
    set_batch_norm(config, method)
    if config.micro_batch:
        run_in_chunks(method, config.batch or 1, config.micro_batch, config.training.compile)
    elif config.training.compile:
        method.encoder.body().compile()
    optimizer = build_optimizer(config.optim, method.trained(), config.batch or 1)

    def training(reading: Reading[Examples, Draw]) -> Training[Examples, Draw]:
        order, batch, epochs = reading.order, config.batch or 1, config.epochs or 1.0
        # the reference trains one step more (its first has lr 0)
        ends = [order.steps(e) + (config.data.last_batch != "drop") for e in accumulate(extensions, initial=epochs)]
        steps, planned = ends[-1], build_schedule(config.optim, len(source), batch, epochs, ends[0])
        log_every, checkpoint_every = _intervals(config.training, steps, order.steps_per_epoch, short_epochs)
        return Training(
            method, inputs(reading.views, accelerator.device, memory_format), reading.loader, optimizer,
            extended(planned, ends, extensions), accelerator, run, config.seed, batch, steps, order.steps_per_epoch,
            log_every, checkpoint_every, config.training.keep, size=config.views.size, ends=ends,
            checkpoint_minutes=config.training.checkpoint_minutes, patience=config.training.patience,
            saving_share=SAVING_SHARE if config.training.checkpoint_every is None else 1.0,
        )  # fmt: skip

    pin = accelerator.device.type == "cuda"
    if isinstance(source, AudioSource):
        return training(read_audio(config, source, span, pin, drawn))
    if words := left_out(config.views, source.channels):
        print_rank0(words)
    return training(read_images(config, source, pin, drawn))


def set_batch_norm(config: RunOptions, method: Method) -> None:
    """Do what the options say of batch norm, in every part of a method.

    Raises:
        UserError: an option is set, and no batch norm works as in training, or one that the option cannot change.
    """
    given = {name: getattr(config, name) for name in ("bn_momentum", "global_bn")}
    given = {f"--{name} {as_written(value)}": value for name, value in given.items() if value is not None}
    layers = batch_norm_layers(method)
    if given and not any(layer.training for part in method.trained() for layer in batch_norm_layers(part)):
        raise UserError(
            f"{next(iter(given))} has no effect: no batch norm of encoder or head is in training mode; leave it out"
        )
    if config.bn_momentum is not None:
        for layer in layers:
            layer.momentum = config.bn_momentum  # type: ignore[assignment]
    if config.global_bn is not None:
        deaf = [type(layer).__name__ for layer in layers if not hasattr(layer, "synchronized")]
        if method.local_batch_norm or deaf:
            why = f"{type(method).__name__} keeps it local" if not deaf else f"{deaf[0]} knows no other processes"
            raise UserError(f"--global_bn {as_written(config.global_bn)} has no effect: {why}; leave it out")
        if not config.global_bn:
            keep_batch_norm_local(method, averaged=True)


def _intervals(config: TrainingConfig, steps: int, per_epoch: float, short_epochs: bool) -> tuple[int, int]:
    """Steps between two rows of metrics, and between two checkpoints."""
    rows, epoch = max(1, steps // 20), max(1, round(per_epoch))
    if short_epochs:
        return config.log_every or rows, config.checkpoint_every or max(epoch, steps // 10)
    return config.log_every or min(epoch, rows), config.checkpoint_every or epoch
