"""No checkpoint is written from weights that are no numbers; the step and examples that spoiled them are told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from twofold.archives import spoiled
from twofold.distributed import all_reduce_mean
from twofold.errors import Diverged

SHOWN = 5
"""Most names in a message."""


class Soundness:
    """Watches losses and weights for infinities and what is not a number.

    On a CPU the loss of each step is looked at, which costs nothing there, so that the message names the one batch at
    fault. On a GPU looking means waiting, so it is done where a row of metrics or a checkpoint is written.

    Args:
        method: that is trained.
        name: says which file an example comes from, given its index.
        kept: the step of the newest checkpoint, None if there is none yet.
    """

    def __init__(self, method: nn.Module, name: Callable[[int], str], kept: Callable[[], int | None]) -> None:
        self._method, self._name, self._kept = method, name, kept
        self._before: Tensor | None = None

    def after_forward(self, loss: Tensor, step: int, index: Tensor) -> None:
        """Look at the loss of one step, on a CPU.

        Args:
            loss: scalar.
            step: steps that were done before it.
            index: [n] examples of its batch.

        Raises:
            Diverged: the loss is no number.
        """
        if loss.device.type != "cpu":
            return
        if not math.isfinite(float(loss)):
            names = spoiled(self._method.state_dict())
            if names and self._before is not None:  # it began with the update before
                raise Diverged(
                    self._message(f"the weights became no numbers in step {step} ({_some(names)})", self._before)
                )
            what = "the weights are no numbers" if names else f"the loss became {float(loss)}"
            raise Diverged(self._message(f"{what} in step {step + 1}", index))
        self._before = index

    def check_loss(self, loss: float, step: int) -> None:
        """Raise Diverged if the mean loss until `step` is no number."""
        if not math.isfinite(loss):
            raise Diverged(self._message(f"the loss became {loss} at step {step} or before", self._before))

    def check_state(self, state: Mapping[str, Any], step: int) -> None:
        """Raise Diverged, on every rank, if on any of them a tensor of what is to be saved holds no number."""
        names = spoiled(state)
        some = torch.tensor(float(bool(names)), device=next(self._method.parameters()).device)
        if float(all_reduce_mean(some)) > 0:
            text = _some(names) if names else "in another process"
            raise Diverged(
                self._message(f"after step {step} weights are infinite or no numbers ({text})", self._before)
            )

    def _message(self, what: str, index: Tensor | None) -> str:
        kept = self._kept()
        saved = "no checkpoint was written yet" if kept is None else f"the checkpoint of step {kept} is sound and stays"
        batch = "" if index is None else f" The batch held {_some([self._name(int(i)) for i in index])}."
        return (
            f"{what}; {saved}.{batch} Usually the learning rate is too high: start again with a lower --optim.lr or a "
            "longer --optim.warmup_epochs; where it is not, try --training.precision fp32, and look at these files"
        )


def _some(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
