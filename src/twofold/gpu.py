"""Triton kernels where they run, and nothing where they do not: what they compute can be had without them, too."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from types import ModuleType

import torch
from torch import Tensor


def kernels(name: str, x: Tensor) -> ModuleType | None:
    """A module of Triton kernels, if they run where x is: on a GPU (or anywhere under Triton's interpreter).

    Args:
        name: of the module. It has `probe(device)`, which runs each of its kernels on something small.
        x: float32; for other types there are none.
    """
    if x.dtype != torch.float32 or not (x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        return None
    return _load(name, x.device)


@functools.cache
def _load(name: str, device: torch.device) -> ModuleType | None:
    try:
        module = importlib.import_module(name)
        module.probe(device)
    except Exception as error:  # no Triton, no C compiler beside it, a GPU that it does not know: all are good reasons
        reason = (str(error) or type(error).__name__).splitlines()[0]
        warnings.warn(f"{name} does not run on {device} ({reason}): slower operations take its place", stacklevel=3)
        return None
    return module
