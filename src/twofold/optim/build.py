"""From options to an optimiser and a learning-rate schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from twofold.errors import UserError
from twofold.optim.groups import parameter_groups
from twofold.optim.lars import LARS
from twofold.optim.other_schedules import Constant, EpochCosine, InverseSqrt, StepDecay
from twofold.optim.schedules import WarmupCosine, scaled_lr, train_steps, warmup_steps
from twofold.options import option, refuse_unused

Schedule = Callable[[int], float]

_WARMS_UP = ("cosine", "constant", "inverse_sqrt")


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its learning rate."""

    name: Literal["lars", "sgd", "adam", "adamw", "lamb"] | None = None
    """Optimiser; chosen from the batch size when not given. adam adds the weight decay to the gradient, as SimCLR's
    code does through its loss; adamw takes it off the weights. lamb needs the extra `timm`."""
    lr: float | None = None
    """Base learning rate, before lr_rule."""
    lr_rule: Literal["linear", "sqrt", "none"] | None = None
    """Peak rate: lr * batch / 256 (linear), lr * sqrt(batch) (sqrt), lr (none). Default: linear for lars, else none."""
    weight_decay: float | None = None
    """Weight decay; default 1e-6 for lars (SimCLR), 1e-4 for sgd (MoCo), adam and adamw, 0.01 for lamb."""
    decay: Literal["kernels", "all_but_norms", "all"] = "kernels"
    """What is decayed: kernels alone, biases too (SimCLR without LARS), or everything (MoCo)."""
    momentum: float | None = option(None, when={"name": ("lars", "sgd")})
    """Momentum; default 0.9."""
    nesterov: bool | None = option(None, when={"name": ("lars", "sgd")})
    """Nesterov momentum; default false."""
    momentum_rule: Literal["torch", "keras"] | None = option(None, when={"name": ("sgd",)})
    """torch: the momentum buffer gathers gradients, and the present learning rate scales it whole (default; MoCo, and
    SimCLR's TF1 code). keras: it gathers steps, each scaled by the rate of its time (SimCLR's TF2 code). They differ
    while the rate changes."""
    eta: float | None = option(None, when={"name": ("lars",)})
    """Trust coefficient; default 0.001."""
    betas: tuple[float, float] | None = option(None, when={"name": ("adam", "adamw", "lamb")})
    """Averaging rates; default 0.9 and 0.999."""
    eps: float | None = option(None, when={"name": ("adam", "adamw", "lamb")})
    """Added to the denominator; default 1e-8 for adam and adamw, 1e-6 for lamb."""
    schedule: Literal["cosine", "cosine_epoch", "step", "constant", "inverse_sqrt"] = "cosine"
    """Learning rate over time: a cosine per step (SimCLR) or epoch (MoCo), steps, none, inverse root (speech)."""
    warmup_epochs: float | None = option(None, when={"schedule": _WARMS_UP})
    """Epochs of linear warm-up. Default: for cosine and inverse_sqrt a tenth of the run, at most 10; for constant 0."""
    warmup_steps: int | None = option(None, when={"schedule": _WARMS_UP})
    """The same in steps."""
    milestones: tuple[int, ...] | None = option(None, when={"schedule": ("step",)})
    """Epochs at which the learning rate is lowered."""
    factor: float | None = option(None, when={"schedule": ("step",)})
    """What the learning rate is multiplied by there; default 0.1."""
    first_epoch: int | None = option(None, when={"schedule": ("cosine_epoch",)})
    """Number of the first epoch: 0 (default, MoCo) or 1 (its CIFAR-10 demo, which ends at 0)."""

    def __post_init__(self) -> None:
        refuse_unused(self, "optim.")
        if self.warmup_epochs is not None and self.warmup_steps is not None:
            raise UserError("--optim.warmup_epochs and --optim.warmup_steps say the same thing: give one of them")
        if (self.schedule == "step") != (self.milestones is not None):
            raise UserError("--optim.schedule step needs --optim.milestones, e.g. [120, 160]")
        for name in ("lr", "weight_decay", "warmup_epochs", "warmup_steps", "eta", "eps", "factor"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise UserError(f"--optim.{name} must be at least 0 and finite, got {value}")
        for name, rates in (("momentum", (self.momentum,)), ("betas", self.betas or ())):
            if any(rate is not None and not 0 <= rate < 1 for rate in rates):
                raise UserError(f"--optim.{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.name == "sgd" and self.momentum == 0:
            if self.nesterov:
                raise UserError("--optim.nesterov looks ahead by a momentum step and needs --optim.momentum above 0")
            if self.momentum_rule is not None:
                raise UserError(
                    f"--optim.momentum_rule {self.momentum_rule} says what the momentum buffer holds, and "
                    "--optim.momentum 0 leaves none: leave one of them out"
                )


def build_optimizer(config: OptimConfig, modules: nn.Module | Iterable[nn.Module], batch: int) -> torch.optim.Optimizer:
    """Build the optimiser of the trainable parameters of `modules`, grouped as `parameter_groups` does.

    Args:
        config: with name and lr set.
        modules: what is trained, already on its device.
        batch: images of the global batch, for lr_rule. The groups start at the peak learning rate.

    Raises:
        UserError: name or lr is missing, nothing is trainable, or timm is not installed.
    """
    lr = _peak(config, batch)
    default_decay = {"lars": 1e-6, "sgd": 1e-4, "adam": 1e-4, "adamw": 1e-4, "lamb": 0.01}[config.name or "lars"]
    weight_decay = default_decay if config.weight_decay is None else config.weight_decay
    groups = parameter_groups(modules, weight_decay, config.decay, lars=config.name == "lars")
    momentum = 0.9 if config.momentum is None else config.momentum
    if config.name == "lars":
        eta = 0.001 if config.eta is None else config.eta
        return LARS(groups, lr, momentum, eta=eta, nesterov=bool(config.nesterov))
    if config.momentum_rule == "keras":  # LARS that sizes no tensor: its buffer gathers steps
        return LARS([group | {"adapt": False} for group in groups], lr, momentum, nesterov=bool(config.nesterov))
    adapt = [group.pop("adapt") for group in groups]
    # Fused kernels update all tensors in one pass; torch has them for float parameters on these devices.
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for g in groups for p in g["params"]) or None
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr, momentum, nesterov=bool(config.nesterov), fused=fused)
    settings: dict[str, Any] = {"betas": config.betas or (0.9, 0.999)}
    if config.eps is not None:
        settings["eps"] = config.eps
    if config.name in ("adam", "adamw"):
        kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
        return kind(groups, lr, fused=fused, **settings)
    for group, adapted in zip(groups, adapt, strict=True):
        group["always_adapt"] = adapted  # timm adapts decayed tensors alone by default; decay 0 must not change that
    lamb: torch.optim.Optimizer = _lamb()(groups, lr, max_grad_norm=None, **settings)
    return lamb


def build_schedule(config: OptimConfig, images: int, batch: int, epochs: float, steps: int | None = None) -> Schedule:
    """Build the learning rate as a function of the step.

    Args:
        config: with lr set.
        images: number of training images.
        batch: images of the global batch.
        epochs: length of the run.
        steps: length of the run in steps, at which the cosine ends, if it is not the reference's
            floor(images * epochs / batch) + 1. Other schedules have no end to know of.

    Raises:
        UserError: lr is missing, or the warm-up is longer than the run.
    """
    peak = _peak(config, batch)
    total = train_steps(images, batch, epochs) if steps is None else steps
    per_epoch = max(1, images // batch)
    if config.schedule == "step":
        factor = 0.1 if config.factor is None else config.factor
        return StepDecay(peak, tuple(config.milestones or ()), per_epoch, factor)
    if config.schedule == "cosine_epoch":
        return EpochCosine(peak, epochs, per_epoch, config.first_epoch or 0)
    if config.warmup_steps is not None:
        warmup = config.warmup_steps
    elif config.warmup_epochs is not None:
        warmup = warmup_steps(images, batch, config.warmup_epochs)
    else:
        warmup = 0 if config.schedule == "constant" else warmup_steps(images, batch, min(10.0, epochs / 10))
    if config.schedule == "constant":
        return Constant(peak, warmup)
    if config.schedule == "inverse_sqrt":
        return InverseSqrt(peak, max(1, warmup))
    return WarmupCosine(peak, warmup, total)


def _peak(config: OptimConfig, batch: int) -> float:
    for name in ("name", "lr"):
        if getattr(config, name) is None:
            raise UserError(f"--optim.{name} is not set: give it, or leave --optim.name out to have both chosen")
    return scaled_lr(config.lr or 0.0, batch, config.lr_rule or ("linear" if config.name == "lars" else "none"))


def _lamb() -> Any:
    try:
        from timm.optim.lamb import Lamb
    except ImportError as error:
        raise UserError("--optim.name lamb comes from timm: pip install 'twofold[timm]'") from error
    return Lamb
