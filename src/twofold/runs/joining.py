"""The meeting of a run's processes, which ends: all come within the time that is given, or those that did are told."""

from __future__ import annotations

import json
import os
import time
import uuid
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from twofold.errors import RankLost

_TOKEN = "twofold/token"  # the name of this start, no secret
_LIMIT = "--training.join_patience"


def join(patience: float, device: torch.device) -> None:
    """Join the processes that a launcher started beside this one; nothing to do if there are none.

    Args:
        patience: seconds until all must have come.
        device: where the run computes, which decides how the processes talk.

    Raises:
        RankLost: some have not come; it says how many have, and which are missing.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    # (Without a rank the processes were not started by torchrun, accelerate or by hand: Accelerate knows more ways.)
    if world == 1 or "RANK" not in os.environ or dist.is_initialized():
        return
    number, deadline = int(os.environ["RANK"]), time.monotonic() + patience
    store = _meeting_point(number, world, patience)
    backend = {"cuda": "nccl"}.get(device.type, "gloo")
    try:
        token = _meet(store, number, world, deadline)
        own = cast("Any", dist).PrefixStore(f"twofold/{token}", store)
        # Those that came can still die on the way: no wait of the start is longer than the rest of the time.
        left = timedelta(seconds=max(deadline - time.monotonic(), 1.0))
        dist.init_process_group(backend, store=own, rank=number, world_size=world, timeout=left)
    except (RuntimeError, TimeoutError) as error:
        raise _missing(store, world, patience, error) from error
    _give_time(own, backend)


def _meeting_point(number: int, world: int, patience: float) -> Any:
    """The store that torchrun keeps, or else the first of the processes."""
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    limit, c10d = timedelta(seconds=patience), cast("Any", dist)
    try:
        if number == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            # As PyTorch's own, which would wait here, and not say who is missing.
            return c10d.TCPStore(address, int(port), world, True, limit, wait_for_workers=False, multi_tenant=True)
        return next(c10d.rendezvous("env://", timeout=limit))[0]
    except RuntimeError as error:
        who = "cannot be opened" if number == 0 else f"was not there within {patience:g} s ({_LIMIT})"
        raise RankLost(
            f"the meeting point of the {world} processes, {address}:{port} (MASTER_ADDR, MASTER_PORT), {who}: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _meet(store: Any, number: int, world: int, deadline: float) -> str:
    """A name for this start that all processes have agreed on.

    torchrun's store outlives restarts, and in it the addresses of processes that died, which must not be taken for
    their successors'. So the first process makes up a name, the others answer to it with names of their own, and go
    when the first has repeated theirs: an answer from an earlier start repeats others.
    """
    mine = uuid.uuid4().hex
    if number == 0:
        store.set(_TOKEN, mine)
        answers = [_answer(mine, other) for other in range(1, world)]
        store.wait(answers, timedelta(seconds=max(deadline - time.monotonic(), 0.001)))
        store.set(f"{mine}/go", json.dumps([store.get(answer).decode() for answer in answers]))
        return mine
    pause = 0.05
    while time.monotonic() < deadline:
        if store.check([_TOKEN]):
            token = store.get(_TOKEN).decode()
            store.set(_answer(token, number), mine)
            if store.check([f"{token}/go"]) and mine in json.loads(store.get(f"{token}/go")):
                return cast("str", token)
        time.sleep(pause)
        pause = min(1.5 * pause, 1.0)
    raise TimeoutError("the time is over")


def _answer(token: str, number: int) -> str:
    return f"{token}/came/{number}"


def _missing(store: Any, world: int, patience: float, error: Exception) -> RankLost:
    """Who has come, and who has not."""
    reason = str(error).splitlines()[0]
    try:
        token = store.get(_TOKEN).decode() if store.check([_TOKEN]) else ""
        missing = [other for other in range(1, world) if not store.check([_answer(token, other)])]
    except RuntimeError:
        return RankLost(f"the process that the {world} of the run meet at has died: {reason}")
    if not token:
        return RankLost(
            f"rank 0 of {world} processes has not come within {patience:g} s ({_LIMIT}); its output says why"
        )
    came = f"{world - len(missing)} of {world} processes have come within {patience:g} s ({_LIMIT})"
    if not missing:
        return RankLost(f"{came}, but one of them died or stood still before work began: {reason}")
    shown = ", ".join(str(other) for other in missing[:8]) + (", ..." if len(missing) > 8 else "")
    return RankLost(f"{came}; missing: rank {shown}. Their own output says why")


def _give_time(store: Any, backend: str) -> None:
    """From here on collectives may take what PyTorch allows: monitors and first readings do take minutes."""
    usual = distributed_c10d._get_default_timeout(backend)
    change = getattr(distributed_c10d, "set_timeout", None) or distributed_c10d._set_pg_timeout  # (the older name)
    change(usual)
    store.set_timeout(usual)
