"""Small stand-ins: an encoder whose features can be computed by hand, and a source that decodes image by image."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray

from twofold.data import BadImage, DataFacts
from twofold.data.base import SkipList
from twofold.encoders import Encoder, InputSpec


class Means(Encoder):
    """Mean over a grid of `cells` x `cells` of each channel, through a batch norm with fixed statistics."""

    def __init__(self, channels: int = 1, cells: int = 4, size: int | None = None) -> None:
        super().__init__(InputSpec(channels, size), channels * cells * cells)
        self.pool = torch.nn.AdaptiveAvgPool2d(cells)
        self.norm = torch.nn.BatchNorm1d(self.feature_dim)
        self.seen: list[tuple[int, ...]] = []

    def features(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(x.shape))
        out: torch.Tensor = self.norm(self.pool(x).flatten(1))
        return out


class LazySource:
    """Images in a list, read one by one; those given as None are broken files."""

    def __init__(
        self,
        images: list[NDArray[np.uint8] | None],
        labels: list[int] | None = None,
        classes: list[str] | None = None,
        max_skipped: float = 0.5,
    ) -> None:
        self.images, self.classes, self.name = images, classes, "lazy"
        self.labels = None if labels is None else np.array(labels, dtype=np.int64)
        self.channels = next(i.shape[2] for i in images if i is not None)
        self.skipped = SkipList(len(images), max_skipped)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> NDArray[np.uint8]:
        image = self.images[index]
        if image is None:
            raise BadImage(f"file{index}.png", "cut short")
        return image

    def size(self, index: int) -> tuple[int, int]:
        return self.read(index).shape[0], self.read(index).shape[1]

    def sizes(self) -> None:
        return None

    def facts(self) -> DataFacts:
        shapes = {i.shape[:2] for i in self.images if i is not None}
        height, width = sorted(shapes)[0]
        count = len(self.classes) if self.classes else None
        return DataFacts(len(self), height, width, self.channels, len(shapes) == 1, self.labels is not None, count)

    def fingerprint(self) -> str:
        return hashlib.sha256(b"".join(b"" if i is None else i.tobytes() for i in self.images)).hexdigest()
