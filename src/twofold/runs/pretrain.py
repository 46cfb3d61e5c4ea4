"""A pretraining run, built from its resolved configuration."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from twofold.data import Source
from twofold.data.for_encoder import source_for
from twofold.data.sources.subset import subset
from twofold.distributed import rank, world_size
from twofold.encoders import adapt, build_encoder
from twofold.errors import UserError
from twofold.evaluation.monitors import LabelMonitor, hold_out
from twofold.methods import Method, build_method
from twofold.optim import build_optimizer, build_schedule
from twofold.runs.config import RunConfig
from twofold.runs.inputs import make_loader, make_order, make_views
from twofold.training.loop import Training
from twofold.training.micro_batch import run_in_chunks
from twofold.training.rundir import RunDirectory


def assemble(
    config: RunConfig, source: Source, run: RunDirectory, accelerator: Accelerator, module: nn.Module | None
) -> Training:
    """Build every part of the run from its resolved configuration."""
    if config.encoder.name == "custom" and module is None:
        raise UserError("the run trains a module of your own (encoder.name custom): give it as `encoder` from Python")
    batch, epochs = config.batch or 0, config.epochs or 0.0
    torch.manual_seed(config.seed)  # initial weights
    encoder = build_encoder(config.encoder, config.views.size) if module is None else adapt(module, source.channels)
    if encoder.input.channels != source.channels:
        raise UserError(
            f"the encoder takes {encoder.input.channels} channels and the images have {source.channels}; "
            "set --data.channels and --encoder.channels to the same number"
        )
    source = source_for(source, encoder, config.seed, fit=True)
    method = build_method(config.method, encoder, config.head, config.seed).to(accelerator.device)
    memory_format = torch.channels_last if config.training.channels_last else torch.contiguous_format
    method.to(memory_format=memory_format)
    if config.micro_batch:
        run_in_chunks(method, batch, config.micro_batch, config.training.compile)
    elif config.training.compile:
        method.encoder.body().compile()
    optimizer = build_optimizer(config.optim, method.trained(), batch=batch)
    order = make_order(config, source)
    steps = order.steps(epochs) + (
        config.data.last_batch == "straddle"
    )  # the reference trains one step more (its first has lr 0)
    schedule = build_schedule(config.optim, images=len(source), batch=batch, epochs=epochs, steps=steps)
    views = make_views(config, source)
    loader = make_loader(config, source, views, order, rank(), world_size(), accelerator.device.type == "cuda")
    per_epoch = order.steps_per_epoch
    monitors, monitor_every = watch(config, method, source, accelerator, steps, per_epoch)
    return Training(
        method, views, loader, optimizer, schedule, accelerator, run, config.seed, batch, steps, per_epoch,
        log_every=config.training.log_every or max(1, min(round(per_epoch), steps // 20 or 1)),
        monitor_every=monitor_every,
        checkpoint_every=config.training.checkpoint_every or max(1, round(per_epoch)),
        keep=config.training.keep, memory_format=memory_format, monitors=monitors,
    )  # fmt: skip


def watch(
    config: RunConfig, method: Method, source: Source, accelerator: Accelerator, steps: int, per_epoch: float
) -> tuple[list[LabelMonitor], int]:
    """The monitors that the data's labels allow, and the steps between two looks."""
    wanted, labels = config.monitor, source.labels
    if wanted.every == 0 or not (wanted.probe or wanted.knn) or labels is None or labels.ndim != 1 or len(source) < 20:
        return [], 0
    bank, queries = hold_out(labels, config.seed, 0.1, wanted.samples)
    if len(bank) == 0 or len(queries) == 0:
        return [], 0
    monitor = LabelMonitor(
        method,
        subset(source, bank),
        subset(source, queries),
        wanted.probe,
        wanted.knn,
        config.views.size,
        config.views.resample,
        accelerator.autocast,
        k=wanted.knn_k,
        temperature=wanted.knn_temperature,
        features=wanted.knn_features,
        complete=bool((labels >= 0).all()),
    )
    epochs = wanted.every or max(1, round(steps / per_epoch / 20))
    return [monitor], max(1, round(epochs * per_epoch))
