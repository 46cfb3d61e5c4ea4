"""How unlike everything seen an example is: the distance to its k-th nearest training example, and its rank.

The distance is that of "Out-of-Distribution Detection with Deep Nearest Neighbors" (arXiv 2204.06507, section 3):
between features of length 1, here as 1 - cosine. What is far differs from encoder to encoder, so the distance is put
beside those of held-out examples of the same data: one minus the conformal p-value of "Testing for Outliers with
Conformal p-values" (arXiv 2104.08279, equation 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from twofold.evaluation.neighbours import nearest
from twofold.randomness import permutation
from twofold.text import counted

MOST_SEEN = 10_000
"""Most training examples whose features are kept: 10 MB of 512 values."""
MOST_HELD = 2_000
"""Most held-out examples whose distances are kept."""
NEIGHBOURS = 10
"""k, or a tenth of the training examples where these are fewer than 100."""


@dataclass(frozen=True)
class Novelty:
    """Knows what training and held-out examples looked like to a classifier.

    Attributes:
        seen: [n, d] float16, features of training examples at length 1.
        held: [m] float32, distances of held-out examples to their k-th nearest of these, ascending.
        k: which neighbour.
    """

    seen: Tensor
    held: Tensor
    k: int

    @classmethod
    def of(cls, train: NDArray[Any], held_out: NDArray[Any]) -> Novelty:
        """From features [n, d] of training examples and [m, d] of held-out ones; of many a fixed choice is kept."""
        train, held_out = chosen(train, MOST_SEEN), chosen(held_out, MOST_HELD)
        seen = F.normalize(torch.from_numpy(np.asarray(train, np.float32)), dim=1).half()
        k = max(1, min(NEIGHBOURS, len(seen) // 10))
        plain = cls(seen, torch.empty(0), k)
        return cls(seen, plain.distances(held_out).sort().values, k)

    @classmethod
    def stored(cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor], width: int) -> Novelty | None:
        """What `facts` and `tensors` gave; None where there is nothing.

        Raises:
            ValueError: they do not fit each other, or features of `width` values.
        """
        if not {"seen", "held"} <= tensors.keys():
            return None
        seen, held, k = tensors["seen"], tensors["held"], facts.get("k")
        if seen.ndim != 2 or seen.shape[1] != width or held.ndim != 1 or not len(held):
            raise ValueError(f"seen {tuple(seen.shape)} and held {tuple(held.shape)} for features of {width} values")
        if type(k) is not int or not 1 <= k <= len(seen) or not bool((held[1:] >= held[:-1]).all()):
            raise ValueError(f"neighbour {k} of {len(seen)}")
        return cls(seen, held, k)

    def facts(self) -> dict[str, Any]:
        """Of a file."""
        return {"k": self.k}

    def tensors(self) -> dict[str, Tensor]:
        """Of a file."""
        return {"seen": self.seen, "held": self.held}

    def distances(self, x: NDArray[Any]) -> Tensor:
        """[n] 1 - cosine, in [0, 2], of features [n, d] to their k-th nearest training example."""
        if not len(x):
            return torch.empty(0)
        queries = torch.from_numpy(np.asarray(x, np.float32))
        return (1 - nearest(self.seen.float(), queries, self.k)[0][:, -1]).clamp(0, 2)

    def scores(self, x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Distances [n] and, of each, the share of the m held-out examples that lie nearer, in [0, m / (m + 1)].

        The share is 1 - (1 + held-out examples at least as far) / (m + 1): among examples like the held-out ones it
        exceeds any s in a share 1 - s of the cases at most.
        """
        found, m = self.distances(x), len(self.held)
        farther = m - torch.searchsorted(self.held, found, right=False)
        return found.double().numpy(), (1 - (1 + farther) / (m + 1)).double().numpy()

    def words(self) -> str:
        """For people."""
        which = "nearest neighbour" if self.k == 1 else f"neighbour number {self.k}"
        return (
            f"unlike: share of {counted(len(self.held), 'held-out example')} nearer to their {which} among "
            f"{counted(len(self.seen), 'training example')} (1 - cosine), 0 to {1 - 1 / (len(self.held) + 1):.3g}"
        )


def places(count: int, most: int) -> NDArray[np.int64]:
    """Positions of at most `most` of so many examples, always the same ones, ascending."""
    return np.sort(permutation(0, "novelty", 0, count)[:most]) if count > most else np.arange(count)


def chosen(x: NDArray[Any], most: int) -> NDArray[Any]:
    """At most so many rows, always the same ones."""
    kept: NDArray[Any] = x[places(len(x), most)]
    return kept
