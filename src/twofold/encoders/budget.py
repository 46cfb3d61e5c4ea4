"""Building what a stranger's header describes: never more of it than the file holds weights for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from twofold.errors import UserError

_MAKERS = frozenset(
    getattr(torch, name)
    for name in (
        "empty", "zeros", "ones", "full", "rand", "randn", "randint", "normal", "arange", "linspace", "logspace", "eye",
        "tensor", "empty_strided", "randperm", "hann_window", "hamming_window",
    )
)  # fmt: skip
"""What makes a tensor from sizes: every layer's parameters and buffers begin as one of these."""
_SPARE_ELEMENTS, _SPARE_TENSORS = 2**24, 1000
"""For what a network makes and does not keep: the classifier that is taken off, tables of positions, a dry run."""


class TooMuch(UserError):
    """A header that describes more than its file holds."""


class WithinFile(TorchFunctionMode):
    """Inside, tensors can be made only as many, and as large, as those of a file allow (twice its own, and some spare).

    Every tensor's size is found on the meta device first: what is refused is never allocated. Libraries' networks make
    1.0 to 1.3 tensors for each that they save, and 1.0 to 1.5 elements.

    Args:
        tensors: of the part of the file that is built.

    Raises:
        TooMuch: from inside the block.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._elements = 2 * sum(tensor.numel() for tensor in tensors.values()) + _SPARE_ELEMENTS
        self._tensors = 2 * len(tensors) + _SPARE_TENSORS
        self._held = sum(tensor.numel() for tensor in tensors.values())

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called for every function of torch; those that make tensors are counted."""
        kwargs = kwargs or {}
        if func in _MAKERS:
            planned = func(*args, **{**kwargs, "device": "meta"})
            self._elements -= planned.numel()
            self._tensors -= 1
            if self._elements < 0 or self._tensors < 0:
                raise TooMuch(f"its header describes a network far larger than the {self._held:,} weights it holds")
        return func(*args, **kwargs)
