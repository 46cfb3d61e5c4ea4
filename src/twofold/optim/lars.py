"""LARS, the optimiser of SimCLR's large batches (arXiv 1708.03888), as google-research/simclr runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT


class LARS(torch.optim.Optimizer):
    """Momentum SGD whose steps are sized tensor by tensor (tf2/lars_optimizer.py).

    Args:
        params: parameters or groups. A group with ``adapt=False`` takes plain steps of lr: normalisation, biases and
            classifiers in SimCLR (`twofold.optim.parameter_groups` makes such groups).
        lr: may change every step; past steps keep theirs, as lr is inside the momentum buffer.
        momentum: in [0, 1).
        weight_decay: added to the gradient as weight_decay * p, before its norm is taken.
        eta: how far a step goes relative to the tensor's norm, at lr 1.
        nesterov: look ahead by one momentum step.
        classic_momentum: size the gradient, then accumulate; False: accumulate, then size what comes out.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
        nesterov: bool = False,
        classic_momentum: bool = True,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "nesterov": nesterov}
        super().__init__(params, settings | {"classic_momentum": classic_momentum, "adapt": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns the closure's loss, if there is a closure."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            if params := [p for p in group["params"] if p.grad is not None]:
                for p in params:
                    self.state[p] = self.state[p] or {"momentum_buffer": torch.zeros_like(p)}
                _update(params, [p.grad for p in params], [self.state[p]["momentum_buffer"] for p in params], group)
        return loss


def _update(params: list[Tensor], grads: Any, velocity: list[Tensor], group: dict[str, Any]) -> None:
    """v <- momentum v + sized(g + weight_decay p);  p <- p - v, for a group's tensors at once."""
    momentum, classic = group["momentum"], group["classic_momentum"]
    grads = torch._foreach_add(grads, params, alpha=group["weight_decay"])
    steps = _sized(params, grads, group) if classic else grads
    torch._foreach_mul_(velocity, momentum)
    torch._foreach_add_(velocity, steps)
    steps = torch._foreach_add(steps, velocity, alpha=momentum) if group["nesterov"] else velocity
    torch._foreach_sub_(params, steps if classic else _sized(params, steps, group))


def _sized(params: list[Tensor], steps: Any, group: dict[str, Any]) -> Any:
    """lr * trust * step; trust = eta |p| / |step| by tensor, or 1 where a norm is 0 or the group is not adapted."""
    if not group["adapt"]:
        return torch._foreach_mul(steps, group["lr"])
    p, s = (torch.stack(torch._foreach_norm(tensors)) for tensors in (params, steps))
    trust = torch.where((p > 0) & (s > 0), group["eta"] * p / s, 1.0)
    return torch._foreach_mul(steps, (group["lr"] * trust).unbind())
