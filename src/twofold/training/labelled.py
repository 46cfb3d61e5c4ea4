"""The one loop for methods that learn from labels: one view of each image, and its label."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from twofold.data.loader import Batch
from twofold.encoders.waves import Waves
from twofold.training.loop import Training


class LabelledTraining(Training):
    """A run whose method takes a view and labels instead of two views."""

    def look_twice(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The first view of a batch, [n, C, S, S] float or sounds, and its labels, [n] or [n, K], on the device."""
        device, draw = self.accelerator.device, batch.draws[0]
        if isinstance(batch.images, Waves):
            return self.views.one(batch.images.to(device), draw), cast(Tensor, batch.labels).to(device)
        images = (batch.images[0] if batch.cropped else batch.images).to(device, non_blocking=True)
        view = self.views.photometric(images if batch.cropped else self.views.crop(images, draw), draw)
        labels = cast(Tensor, batch.labels).to(device, non_blocking=True)
        return view.contiguous(memory_format=self.memory_format), labels
