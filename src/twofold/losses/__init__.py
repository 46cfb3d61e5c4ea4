"""Losses and what to log beside them: pure functions of tensors."""

from twofold.losses.diagnostics import (
    ContrastiveMetrics,
    alignment,
    chance_level,
    contrastive_metrics,
    describe,
    effective_rank,
    negatives_per_anchor,
    retrieval_auc,
    uniformity,
)
from twofold.losses.distillation import distillation_loss
from twofold.losses.info_nce import info_nce
from twofold.losses.nt_xent import nt_xent
from twofold.losses.reconstruction import Reconstruction, interpolated, masked_reconstruction
from twofold.losses.studies import margin_triplet, nt_logistic

__all__ = [
    "ContrastiveMetrics",
    "Reconstruction",
    "alignment",
    "chance_level",
    "contrastive_metrics",
    "describe",
    "distillation_loss",
    "effective_rank",
    "retrieval_auc",
    "info_nce",
    "interpolated",
    "margin_triplet",
    "masked_reconstruction",
    "negatives_per_anchor",
    "nt_logistic",
    "nt_xent",
    "uniformity",
]
