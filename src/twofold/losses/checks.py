"""What every loss refuses, in one set of words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from twofold.errors import UserError


def check_views(z_a: Tensor, z_b: Tensor) -> None:
    """Refuse anything but two [n, d] tensors of one shape, n and d at least 1."""
    if z_a.ndim != 2 or z_a.shape != z_b.shape or z_a.numel() == 0:
        raise ValueError(f"two views must be [n, d] each, of one shape; got {tuple(z_a.shape)} and {tuple(z_b.shape)}")


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not a positive number."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise UserError(f"temperature must be above 0, got {temperature}; SimCLR uses 0.1 to 0.5, MoCo 0.07 to 0.2")


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        raise UserError(f"{option} must be {' or '.join(choices)}, got {value!r}")
