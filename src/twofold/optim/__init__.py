"""Optimisers, learning-rate schedules and parameter groups."""

from twofold.optim.build import OptimConfig, Schedule, build_optimizer, build_schedule
from twofold.optim.extended import extended, in_words
from twofold.optim.groups import classifier_decay, parameter_groups
from twofold.optim.lars import LARS
from twofold.optim.other_schedules import Constant, EpochCosine, InverseSqrt, StepDecay
from twofold.optim.schedules import WarmupCosine, scaled_lr, train_steps, warmup_steps

__all__ = [
    "LARS",
    "Constant",
    "EpochCosine",
    "InverseSqrt",
    "OptimConfig",
    "Schedule",
    "StepDecay",
    "WarmupCosine",
    "build_optimizer",
    "build_schedule",
    "classifier_decay",
    "extended",
    "in_words",
    "parameter_groups",
    "scaled_lr",
    "train_steps",
    "warmup_steps",
]
