"""Where the time of a run goes: data, views, encoder, loss, optimiser, and what stands beside the step."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from twofold.heads import ProjectionHead

# In the order in which a step comes by them. "encoder" is forward and backward of encoder and head: the limit.
PARTS = ("data", "views", "encoder", "loss", "optimiser", "monitors", "logging", "saving")

STATIONS = ("starting", "logging", "monitors", "saving", "data", "views", "encoder", "loss", "backward", "optimiser")
"""What a rank does one after the other while it has done a number of steps, for those who watch from outside."""

_NEXT = {
    "data": "views", "views": "encoder", "encoder": "optimiser", "optimiser": "optimiser", "monitors": "logging",
    "logging": "logging", "saving": "data",
}  # fmt: skip
"""The station that follows a part as the loop marks it."""

_MOST_EVENTS = 2000
"""Of a GPU's marks that are kept before they are read, which waits for the GPU: some 200 steps."""


class StepClock:
    """Adds up seconds by part: each `mark` gives the time since the last one to the part it names.

    The line between encoder and loss runs through the forward and the backward pass of a method: hooks on its
    projection heads draw it. On a GPU, which works while Python runs ahead, marks are events on its stream, read when
    `collect` is called; elsewhere they are readings of the clock.

    Args:
        method: whose projection heads are watched.
        device: where it computes.

    Attributes:
        seconds: by part.
        marks: set so far.
        doing: the station of the step that has been reached.
    """

    def __init__(self, method: nn.Module, device: torch.device) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.marks, self.doing = 0, "starting"
        self._cuda = device.type == "cuda"
        self._events: list[tuple[str, torch.cuda.Event]] = []
        self._last: float | None = None
        self._backward_at_heads = True
        for module in method.modules():
            if isinstance(module, ProjectionHead):
                module.register_forward_hook(self._after_head)

    def mark(self, part: str) -> None:
        """What passed since the last mark was `part`; the first mark starts the clock."""
        self._count(part)
        self.doing = _NEXT.get(part, self.doing)

    def _count(self, part: str) -> None:
        self.marks += 1
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append((part, event))
            if len(self._events) >= _MOST_EVENTS:
                self.collect()
            return
        now = time.perf_counter()
        if self._last is not None:
            self.seconds[part] += now - self._last
        self._last = now

    def pause(self) -> None:
        """What passes until the next mark is nobody's."""
        self.collect()
        self._last, self._events = None, []

    def backward(self) -> None:
        """The forward pass is over and the backward pass begins."""
        self._count("loss")
        self.doing = "backward"
        self._backward_at_heads = False

    def collect(self) -> None:
        """Read the events of a GPU's stream, which waits for it; nothing to do elsewhere."""
        if self._events:
            torch.cuda.synchronize()
            for (_, before), (part, event) in itertools.pairwise(self._events):
                self.seconds[part] += before.elapsed_time(event) / 1000
            self._events = self._events[-1:]

    def _after_head(self, _module: nn.Module, _inputs: Any, outputs: Tensor | list[Tensor]) -> None:
        z = outputs if isinstance(outputs, Tensor) else outputs[-1]
        self._count("encoder")
        if self.doing == "encoder":  # (monitors come by here too)
            self.doing = "loss"
        if z.requires_grad:
            z.register_hook(self._gradient_at_head)

    def _gradient_at_head(self, _gradient: Tensor) -> None:
        if not self._backward_at_heads:  # of several heads, the first to be reached ends the loss
            self._backward_at_heads = True
            self._count("loss")


def share(seconds: Mapping[str, float]) -> float:
    """The encoder's part of the time, in [0, 1]: 1 would be the limit, a step that is nothing but the encoder."""
    return seconds["encoder"] / max(sum(seconds.values()), 1e-9)


def describe_time(seconds: Mapping[str, float]) -> str:
    """One line: the encoder's share, and where the rest went, largest first."""
    total = max(sum(seconds.values()), 1e-9)
    rest = sorted(((value / total, part) for part, value in seconds.items() if part != "encoder"), reverse=True)
    words = ", ".join(f"{part} {100 * value:.1f} %" for value, part in rest if value >= 0.0005)
    return f"time: {100 * share(seconds):.1f} % encoder and head (the limit is 100 %)" + (f"; {words}" if words else "")
