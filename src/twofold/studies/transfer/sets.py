"""The 12 data sets of SimCLR's transfer study: how each is divided and scored, and what the paper reports for it.

Source: arXiv 2002.05709, section 6, appendix B.8 and its tables (ResNet-50 at widths 1x and 4x).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Metric = Literal["top1", "mean_per_class", "map11"]
Protocol = Literal["linear", "finetune", "random"]
"""random: the whole network from a random start, the control of fine-tuning."""
Start = Literal["run", "supervised"]
"""Whose encoder is measured: that of the run, or the one that was trained with labels beside it."""
STARTS: dict[Start, str] = {"run": "this run", "supervised": "supervised"}
METRICS: dict[Metric, str] = {"top1": "top-1", "mean_per_class": "mean per class", "map11": "11-point mAP"}


@dataclass(frozen=True)
class TransferSet:
    """One data set of the study.

    Attributes:
        title: its name.
        metric: what is reported.
        fit, validation: splits that settings are chosen with; validation None: a part of `fit` is held out.
        whole: the split that the final classifier is fitted on: training and validation images together.
        note: where our numbers are not quite those of the set's official evaluation; told with each result.
    """

    title: str
    metric: Metric
    fit: str = "train"
    validation: str | None = None
    whole: str = "train"
    note: str = ""


_DIFFICULT = (
    "an object marked as difficult counts as one of its class, where the official evaluation leaves out the images in "
    "which a class has no others"
)
SETS: dict[str, TransferSet] = {
    "food101": TransferSet("Food-101", "top1"),
    "cifar10": TransferSet("CIFAR-10", "top1"),
    "cifar100": TransferSet("CIFAR-100", "top1"),
    "birdsnap": TransferSet("Birdsnap", "top1"),
    "sun397": TransferSet("SUN397", "top1"),
    "cars": TransferSet("Stanford Cars", "top1"),
    "aircraft": TransferSet("FGVC Aircraft", "mean_per_class", validation="val", whole="trainval"),
    "voc2007": TransferSet("VOC 2007", "map11", validation="val", whole="trainval", note=_DIFFICULT),
    "dtd": TransferSet("DTD", "top1", validation="val", whole="trainval"),
    "pets": TransferSet("Oxford-IIIT Pets", "mean_per_class", fit="trainval", whole="trainval"),
    "caltech101": TransferSet("Caltech-101", "mean_per_class"),
    "flowers": TransferSet("Oxford 102 Flowers", "mean_per_class", validation="val", whole="trainval"),
}
"""In the paper's order."""

_REPORTED: dict[str, tuple[float, ...]] = {
    "linear SimCLR 1x": (68.4, 90.6, 71.6, 37.4, 58.8, 50.3, 50.3, 80.5, 74.5, 83.6, 90.3, 91.2),
    "linear supervised 1x": (72.3, 93.6, 78.3, 53.7, 61.9, 66.7, 61.0, 82.8, 74.9, 91.5, 94.5, 94.7),
    "linear SimCLR 4x": (76.9, 95.3, 80.2, 48.4, 65.9, 60.0, 61.2, 84.2, 78.9, 89.2, 93.9, 95.0),
    "linear supervised 4x": (75.2, 95.7, 81.2, 56.4, 64.9, 68.8, 63.8, 83.8, 78.7, 92.3, 94.1, 94.2),
    "finetune SimCLR 1x": (88.2, 97.7, 85.9, 75.9, 63.5, 91.3, 88.1, 84.1, 73.2, 89.2, 92.1, 97.0),
    "finetune supervised 1x": (88.3, 97.5, 86.4, 75.8, 64.3, 92.1, 86.0, 85.0, 74.6, 92.1, 93.3, 97.6),
    "finetune random start 1x": (86.9, 95.9, 80.2, 76.1, 53.6, 91.4, 85.9, 67.3, 64.8, 81.5, 72.6, 92.0),
    "finetune SimCLR 4x": (89.4, 98.6, 89.0, 78.2, 68.1, 92.1, 87.0, 86.6, 77.8, 92.1, 94.1, 97.6),
    "finetune supervised 4x": (88.7, 98.3, 88.7, 77.8, 67.0, 91.4, 88.0, 86.5, 78.8, 93.2, 94.2, 98.0),
    "finetune random start 4x": (88.3, 96.0, 81.9, 77.0, 53.7, 91.3, 84.8, 69.4, 64.1, 82.7, 72.5, 92.5),
}


def reported(name: str, protocol: Protocol, start: Start = "run") -> dict[str, float]:
    """The paper's numbers in % for a data set: what was transferred -> result.

    Those of fine-tuning hold its control, those of the control itself alone; beside a supervised encoder of the user's
    stand the paper's supervised ones.
    """
    place = list(SETS).index(name)
    family = "finetune" if protocol == "random" else protocol
    found = {key.removeprefix(f"{family} "): values[place] for key, values in _REPORTED.items()
             if key.startswith(family)}  # fmt: skip
    only = "random start" if protocol == "random" else "supervised" if start == "supervised" else ""
    return {key: value for key, value in found.items() if key.startswith(only)}
