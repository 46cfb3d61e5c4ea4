"""In which order images are seen: a pure function of the step, so that nothing has to be replayed to resume."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from twofold.data.batches.balanced import BalancedDraws
from twofold.errors import UserError
from twofold.randomness import permutation, permuted
from twofold.text import counted

LONG = 2**24
"""Above so many images no order is made whole: each step asks for its own entries (`randomness.permuted`)."""


def check_epochs(epochs: float, steps_per_epoch: float) -> None:
    """Raise a UserError for more steps than can be counted: 2**53, beyond which fractions of an epoch are lost."""
    if not steps_per_epoch * epochs < 2**53:
        raise UserError(
            f"--epochs {epochs:g} of {steps_per_epoch:g} steps are more steps than can be counted: give fewer"
        )


class Order:
    """The images of each step's global batch.

    ``"straddle"``: sample p = step * batch + row is position p % n in the permutation of epoch p // n, so that every
    image is seen once an epoch and a batch may reach into the next one (tf2/data.py repeats before it batches; it
    shuffles a buffer of 10 to 50 batches, we the whole). ``"drop"``: n // batch whole batches an epoch, each epoch
    leaving out other images (main_moco.py's drop_last).

    Args:
        n: images.
        batch: images a step, over all ranks.
        seed: of the run.
        rule: how an epoch ends.
        drawn: what the examples are drawn by in place of a permutation an epoch: an epoch then is n draws.

    Raises:
        UserError: the batch is larger than the data, or empty.
    """

    def __init__(
        self, n: int, batch: int, seed: int, rule: Literal["straddle", "drop"] = "straddle",
        drawn: BalancedDraws | None = None,
    ) -> None:  # fmt: skip
        if not 1 <= batch <= n:
            raise UserError(f"--batch {batch}: there are {counted(n, 'image')}; give 1..{n}")
        self.n, self.batch, self.seed, self.rule, self._drawn = n, batch, seed, rule, drawn
        # A batch touches two epochs at most; the cache only saves time. A permutation takes n log n time once an epoch
        # and 40 bytes an image while it is made, which no step of a huge data set can wait for.
        self._permutation = functools.lru_cache(maxsize=2)(lambda epoch: permutation(seed, "order", epoch, n))

    @property
    def steps_per_epoch(self) -> float:
        """n / batch, whole with the rule drop."""
        return self.n // self.batch if self.rule == "drop" else self.n / self.batch

    def indices(self, step: int) -> NDArray[np.int64]:
        """[batch] images of one step."""
        if self._drawn is not None:
            return self._drawn.entries(step * self.batch, (step + 1) * self.batch)
        if self.rule == "drop":
            epoch, place = divmod(step, self.n // self.batch)
            return self._entries(epoch, place * self.batch, (place + 1) * self.batch)
        epoch, place = divmod(step * self.batch, self.n)
        head = self._entries(epoch, place, min(place + self.batch, self.n))
        missing = self.batch - len(head)
        return np.concatenate([head, self._entries(epoch + 1, 0, missing)]) if missing else head

    def _entries(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        if self.n > LONG:
            return permuted(self.seed, "order", epoch, self.n, np.arange(start, stop))
        return self._permutation(epoch)[start:stop]

    def steps(self, epochs: float) -> int:
        """Whole steps in so many epochs: floor(n * epochs / batch), or floor(epochs * (n // batch)) with drop.

        The SimCLR code trains n * epochs // batch + 1 (tf2/model.py, get_train_steps).

        Raises:
            UserError: more steps than can be counted.
        """
        check_epochs(epochs, self.steps_per_epoch)
        return int(self.n // self.batch * epochs) if self.rule == "drop" else int(self.n * epochs // self.batch)

    def epoch(self, step: int) -> float:
        """Epochs seen before this step; its whole part is the epoch of the step's first image."""
        return step / self.steps_per_epoch if self.rule == "drop" else step * self.batch / self.n
