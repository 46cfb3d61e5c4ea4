"""k-nearest-neighbour classification of frozen features: what the representation knows without any training.

Weighted vote of Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (CVPR 2018), with
the numbers of MoCo's CIFAR-10 demo (k 200, temperature 0.1); without a temperature the plain majority vote.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twofold.errors import UserError
from twofold.evaluation.neighbours import nearest
from twofold.evaluation.protocols.classifier import ClassifierConfig, ClassifierProtocol, FitInputs, Outcome
from twofold.evaluation.scores import score
from twofold.text import counted

MOST_NEIGHBOURS = 200
"""Of those that are chosen: what MoCo's CIFAR-10 demo takes from a bank of 5,000 a class."""


def default_k(labels: NDArray[np.int64]) -> int:
    """How many neighbours vote where nobody says: no more than a class has in the bank.

    From a bank of 60 images of 6 classes, 200 neighbours are all of it, and the vote is hardly about the query.

    Args:
        labels: [N] of the bank.
    """
    return max(1, min(MOST_NEIGHBOURS, int(np.median(np.unique(labels, return_counts=True)[1]))))


class Knn(ClassifierProtocol):
    """Neighbours' votes."""

    @dataclass(frozen=True)
    class Config(ClassifierConfig, variant="knn"):
        """the vote of the nearest neighbours by cosine."""

        k: int | None = None
        """Neighbours that vote. When not given as many as the classes have examples (their median), 200 at most."""
        temperature: float | None = 0.1
        """A neighbour's vote weighs exp(cosine / temperature); null gives each one vote."""

    def fit(self, inputs: FitInputs) -> Outcome:
        """See `evaluate_knn`."""
        device = next(inputs.encoder.parameters(), torch.empty(0)).device
        return evaluate_knn(
            inputs.x, inputs.y, inputs.x_test, inputs.y_test, self.config.k, self.config.temperature, device,
            inputs.example,
        )  # fmt: skip


def knn_votes(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    k: int = 200,
    temperature: float | None = 0.1,
    classes: int | None = None,
    block: int | None = None,
    only_answers: bool = False,
) -> Tensor:
    """Class scores by the vote of the k nearest neighbours.

    Args:
        bank: [N, d] features whose labels are known.
        labels: [N] int64 in [0, classes).
        queries: [M, d].
        k: neighbours that vote, at most N.
        temperature: each neighbour weighs exp(cosine / temperature). None: one vote each, and of classes with equally
            many votes the one of higher total similarity wins.
        classes: number of columns; by default the highest label + 1.
        block: see `nearest`.
        only_answers: give a class without any vote -inf instead of 0: it is none of the answers.

    Returns:
        [M, classes] scores; only their order within a row has a meaning.
    """
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}; None gives the plain vote")
    similarity, index = nearest(bank, queries, k, block)
    if temperature is None:
        weight = 1 + similarity * (0.25 / k)  # the sum of the second terms cannot reach one vote's difference
    else:
        weight = ((similarity - similarity[:, :1]) / temperature).exp()  # minus the row's best: no overflow, same order
    voted = labels.to(index.device)[index]
    votes = weight.new_zeros(len(queries), classes or int(labels.max()) + 1).scatter_add_(1, voted, weight)
    if only_answers:
        counts = torch.zeros_like(votes).scatter_add_(1, voted, torch.ones_like(weight))
        votes.masked_fill_(counts == 0, -torch.inf)
    return votes


def knn_accuracy(
    bank: NDArray[np.float32],
    bank_labels: NDArray[np.int64],
    queries: NDArray[np.float32],
    labels: NDArray[np.int64],
    k: int | None = None,
    temperature: float | None = 0.1,
) -> float:
    """Top-1 accuracy in [0, 1] of the vote of `knn_votes`, with k clipped to the bank: one number to watch a run by."""
    classes, columns = np.unique(bank_labels, return_inverse=True)
    votes = knn_votes(
        torch.from_numpy(bank), torch.from_numpy(columns), torch.from_numpy(queries),
        min(k or default_k(bank_labels), len(bank)), temperature, len(classes),
    )  # fmt: skip
    return float(np.mean(classes[votes.argmax(dim=1).numpy()] == labels))


def evaluate_knn(
    train: NDArray[np.float32],
    train_labels: NDArray[np.int64],
    test: NDArray[np.float32],
    test_labels: NDArray[np.int64],
    k: int | None = None,
    temperature: float | None = 0.1,
    device: torch.device | str = "cpu",
    example: str = "image",
) -> Outcome:
    """Classify test features by their neighbours among the training features.

    Args:
        train: [N, d] features, the bank.
        train_labels: [N].
        test: [M, d].
        test_labels: [M], classes that occur in `train_labels`.
        k: neighbours that vote; see `default_k` when not given. A bank of fewer rows votes whole, and the text says so.
        temperature: see `knn_votes`.
        device: where the similarities are computed.
        example: what one example is called.

    Raises:
        UserError: k below 1 or a temperature that is not positive.
    """
    if k is not None and k < 1:
        raise UserError(f"k must be at least 1, got {k}")
    if temperature is not None and not temperature > 0:
        raise UserError(f"the kNN temperature must be positive, got {temperature}; leave it out for the plain vote")
    classes, columns = np.unique(train_labels, return_inverse=True)
    used = min(k or default_k(train_labels), len(train))
    votes = knn_votes(
        torch.from_numpy(train).to(device),
        torch.from_numpy(columns.astype(np.int64)),
        torch.from_numpy(test).to(device),
        used,
        temperature,
        len(classes),
        only_answers=True,
    )
    kind = "one vote each" if temperature is None else f"weighted by exp(cosine / {temperature:g})"
    clipped = ", as many as a class has there" if k is None else ""
    if k is not None and used < k:
        clipped = f" (k {k} was asked for, the bank has only {counted(len(train), example)})"
    text = (
        f"k nearest neighbours by cosine similarity: the {used} nearest of "
        f"{counted(len(train), f'training {example}')} vote, {kind}{clipped}; {counted(len(test), f'test {example}')}"
    )
    settings = {"k": used, "temperature": temperature, "bank": len(train)}
    return Outcome(score(votes.cpu().numpy(), classes, test_labels), settings, text)
