"""The keys of earlier batches, which MoCo contrasts its queries with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.errors import UserError
from twofold.randomness import derive_seed


class KeyQueue(nn.Module):
    """A ring of K unit vectors in the state dict: new ones replace the oldest.

    It starts with random directions, which are easy negatives: the loss rises while keys take their place.
    Source: moco/builder.py of facebookresearch/moco. There K must divide by the batch; here the ring closes exactly.

    Args:
        dim: d, length of a key.
        size: K.
        seed: of the random start, so that all ranks start alike.
    """

    def __init__(self, dim: int, size: int, seed: int = 0) -> None:
        super().__init__()
        self.size = size
        generator = torch.Generator().manual_seed(derive_seed(seed, "queue"))
        self.keys: Tensor
        self.pointer: Tensor
        self.register_buffer("keys", F.normalize(torch.randn(dim, size, generator=generator), dim=0))  # [d, K]
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))  # the column that is replaced next

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Put keys [n, d], those of all ranks, in the place of the n oldest.

        Raises:
            UserError: n is more than K.
        """
        check_fits(len(keys), self.size)
        # The columns are worked out on the device: reading the pointer would make the host wait for it.
        columns = (self.pointer + torch.arange(len(keys), device=self.pointer.device)) % self.size
        self.keys.index_copy_(1, columns, keys.T.to(self.keys.dtype))
        self.pointer.copy_((self.pointer + len(keys)) % self.size)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"dim={len(self.keys)}, size={self.size}"


def check_fits(keys: int, size: int, option: str = "queue") -> None:
    """Raise a UserError if a step's keys, of all ranks, are more than a queue of `size` holds."""
    if keys > size:
        raise UserError(
            f"--method.{option} {size} holds fewer keys than the {keys} of one step: make it at least {keys} (better "
            "several times that), or lower --batch"
        )
