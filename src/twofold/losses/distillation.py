"""Distillation: a student learns a fixed teacher's class probabilities (arXiv 2006.10029, equations 2 and 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.distributed import all_reduce_mean
from twofold.errors import UserError
from twofold.losses.checks import check_temperature

UNLABELLED = -1


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    squared_temperature: bool = False,
    labels: Tensor | None = None,
    alpha: float | None = None,
) -> Tensor:
    """Cross entropy of the student's probabilities under the teacher's, both softened by the temperature.

    Args:
        student, teacher: [n, K] logits. No gradient reaches the teacher.
        temperature: tau > 0 of both softmaxes. SimCLR v2 uses 0.1 for self-distillation and 1 for smaller students.
        squared_temperature: multiply by tau^2, as the released notebook does and the paper's equation does not
            (add_kd_loss in colabs/distillation_self_training.ipynb of google-research/simclr).
        labels: [n] classes, -1 where unknown, to add supervision; needs alpha.
        alpha: share of distillation in [0, 1]; the rest goes to the labelled rows' plain cross entropy. The paper sums
            over two sets of images; here each part is a mean over its rows (the labelled part is 0 without any).

    Returns:
        Scalar in float32 or better, mean over rows: of this rank, but that the labelled part divides by the mean number
        of labelled rows on a rank, so that the mean over ranks is the loss of all rows together.

    Raises:
        UserError: temperature not above 0, alpha outside [0, 1], or only one of labels and alpha given.
        ValueError: the shapes do not fit.
    """
    check_temperature(temperature)
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(f"logits must be [n, K] each, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    if (labels is None) != (alpha is None):
        raise UserError("labels and alpha belong together: give both, or neither for distillation alone")
    if alpha is not None and not 0 <= alpha <= 1:
        raise UserError(f"alpha must lie in [0, 1], got {alpha}: it is the share of distillation in the loss")
    with torch.autocast(student.device.type, enabled=False):
        dtype = torch.promote_types(student.dtype, torch.float32)
        student, teacher = student.to(dtype), teacher.detach().to(dtype)
        loss = F.cross_entropy(student / temperature, F.softmax(teacher / temperature, 1))
        if squared_temperature:
            loss = loss * temperature**2
        if labels is None or alpha is None:
            return loss
        # The mean over ranks of these losses is that of all ranks' labelled rows, however they are spread.
        known = all_reduce_mean((labels != UNLABELLED).sum().to(dtype))
        known = torch.where(known > 0, known, 1.0)
        supervised = F.cross_entropy(student, labels, ignore_index=UNLABELLED, reduction="sum") / known
        return (1 - alpha) * supervised + alpha * loss
