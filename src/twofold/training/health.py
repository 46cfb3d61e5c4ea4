"""Plain warnings when training goes wrong in one of the ways that contrastive learning knows."""

from __future__ import annotations

from collections.abc import Mapping


class Health:
    """Watches the logged metrics and gives each advice once.

    Args:
        total: steps of the run; nothing is judged in the first tenth (at least 50 steps).
        batch: images per step, which sets the chance level of the contrastive accuracy.
    """

    def __init__(self, total: int, batch: int) -> None:
        self.patience = max(total // 10, 50)
        self.chance_top1 = 1 / max(batch, 1)
        self._told: set[str] = set()

    def advice(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """New warnings, in words, given the metrics logged at `step`."""
        result = {}
        if step >= self.patience and "contrastive_top1" in metrics:  # other objectives have other symptoms
            at_chance = metrics["loss"] > 0.98 * metrics["chance"]
            if at_chance and metrics["contrastive_top1"] < 5 * self.chance_top1:
                result["chance"] = (
                    f"the loss ({metrics['loss']:.3f}) sits at its chance level ({metrics['chance']:.3f}) after {step} "
                    "steps: nothing is being learned. Try a lower --optim.lr, a longer --optim.warmup_epochs, or "
                    "milder views (larger --views.crop_area, smaller --views.color_strength)"
                )
            if metrics["effective_rank"] < 2 or metrics["uniformity"] > -0.02:
                result["collapse"] = (
                    f"the embedding has collapsed (effective rank {metrics['effective_rank']:.1f}): images look alike "
                    "to the encoder. Try a lower --optim.lr, a larger --batch, or a lower --method.temperature"
                )
            if metrics["contrastive_top1"] > 0.999 and metrics["loss"] < 0.01 * metrics["chance"]:
                result["easy"] = (
                    "the two views are told apart from all others without effort: the task teaches little. Try "
                    "stronger views (smaller lower bound of --views.crop_area, larger --views.color_strength)"
                )
        fresh = [text for name, text in result.items() if name not in self._told]
        self._told.update(result)
        return fresh
