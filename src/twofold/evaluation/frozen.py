"""Proof that an encoder was not changed: a hash of every tensor that it holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn


class NotFrozenError(RuntimeError):
    """An encoder that had to stay as it was has changed; the message names the tensors."""


def tensor_digests(module: nn.Module) -> dict[str, str]:
    """SHA-256 of each parameter and buffer, by name (shared tensors once under each name).

    A digest covers dtype, shape and bytes, not the device or the memory layout. Buffers that a checkpoint would leave
    out (``persistent=False``) count too: they take part in the forward pass.
    """
    tensors = chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    return {name: _tensor_digest(tensor) for name, tensor in tensors}


def digest(module: nn.Module | Mapping[str, str]) -> str:
    """One SHA-256 (64 hex digits) over names, dtypes, shapes and bytes of every parameter and buffer of `module`.

    The result of `tensor_digests` does instead of a module.
    """
    total = hashlib.sha256()
    digests = tensor_digests(module) if isinstance(module, nn.Module) else module
    for name, value in sorted(digests.items()):
        total.update(f"{name}\0{value}\n".encode())
    return total.hexdigest()


def assert_frozen(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Raise NotFrozenError, naming the tensors, unless two results of `tensor_digests` are equal."""
    changed = sorted(name for name in before.keys() & after.keys() if before[name] != after[name])
    gone, new = sorted(before.keys() - after.keys()), sorted(after.keys() - before.keys())
    kinds = {"changed": changed, "removed": gone, "added": new}
    parts = [f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
    if parts:
        raise NotFrozenError(f"the encoder had to stay frozen, but tensors were {'; '.join(parts)}")


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Check that the body leaves every tensor of `module` as it was; NotFrozenError with their names otherwise.

    The check runs when the body ends normally; an exception of the body is passed on unchanged.
    """
    before = tensor_digests(module)
    yield
    assert_frozen(before, tensor_digests(module))


def _tensor_digest(tensor: torch.Tensor) -> str:
    # reshape gives 0-d tensors an axis to view as bytes; contiguous removes channels_last, which is not content.
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    out = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    out.update(data.data)
    return out.hexdigest()
