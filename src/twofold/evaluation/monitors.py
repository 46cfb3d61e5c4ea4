"""What watches a run through labels: an online linear probe and a kNN monitor. Neither trains the encoder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from twofold.data import Source
from twofold.data.base import class_count
from twofold.distributed import all_gather
from twofold.encoders import Encoder
from twofold.encoders.composed import EncoderWithHead
from twofold.errors import UserError
from twofold.evaluation.feature_cache import Features
from twofold.evaluation.features import Extractor
from twofold.evaluation.protocols.knn import knn_accuracy
from twofold.heads import Classifier
from twofold.methods import ContrastiveMethod, ContrastiveOutput, Method, Output
from twofold.optim import OptimConfig, build_optimizer, classifier_decay
from twofold.options import option, refuse_unused
from twofold.randomness import permutation
from twofold.text import counted

EXTRACTOR = Extractor(batch=512)
"""How a run's monitors extract features, but for the size and the interpolation of its views."""


@dataclass(frozen=True)
class ProbeRule:
    """How a run trains, for a probe that is trained in the same way: tf2/model.py and tf2/run.py.

    Attributes:
        optim: of the run, with name and rate set.
        batch: of the run.
        rate: gives the learning rate of the step that is being made.
    """

    optim: OptimConfig
    batch: int
    rate: Callable[[], float]

    def decay(self, classifier: Classifier) -> Tensor | float:
        """What LARS leaves of the weight decay to the loss; other optimisers decay by themselves."""
        return classifier_decay(classifier, self.optim.weight_decay or 0.0) if self.optim.name == "lars" else 0.0


class LabelMonitor:
    """Online linear probe and kNN accuracy on held-out images.

    The probe is a linear classifier on the detached representation of both views (section B.6 of the paper finds it as
    telling as one trained afterwards). It has an optimiser of its own, so that it cannot change the encoder's course:
    AdamW on features of mean 0 and variance 1, or, as the official code with `lineareval_while_pretraining`, one like
    the run's on features as they are.

    Args:
        method: what is being trained; its encoder is read only.
        bank: labelled images that neighbours are taken from.
        queries: labelled images that are classified; none of them is in the bank.
        probe, knn: which of the two to run.
        extractor: how images are brought to the encoder's size.
        autocast: gives the context of mixed precision that training uses.
        lr: of the probe's AdamW.
        k, temperature, features: of the kNN vote, see `knn_votes`; features "z" are the head's output, as MoCo's demo
            has it, "h" the encoder's.
        classes: how many there are in all data, of which the bank may lack some; counted in the bank when not given.
        complete: every image that is trained on has a label, so that a step need not ask a GPU which ones have.
        layer: the output of the projection head that the probe reads; 0 is h (`ft_proj_selector`).
        rule: how the run trains, for a probe that is trained likewise; None for AdamW.

    Raises:
        UserError: the method's head has no such output.
    """

    def __init__(
        self,
        method: Method,
        bank: Source,
        queries: Source,
        probe: bool = True,
        knn: bool = True,
        extractor: Extractor = EXTRACTOR,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        lr: float = 2e-3,
        k: int | None = None,
        temperature: float | None = 0.1,
        features: Literal["h", "z"] = "h",
        classes: int | None = None,
        complete: bool = False,
        layer: int = 0,
        rule: ProbeRule | None = None,
    ) -> None:
        self.method, self.bank, self.queries, self.knn = method, bank, queries, knn
        self.extractor, self.autocast = extractor, autocast
        self.k, self.temperature, self.features, self.complete = k, temperature, features, complete
        self.head = method.head if isinstance(method, ContrastiveMethod) and features == "z" else None
        if features == "z" and self.head is None:
            raise UserError(
                f"--monitor.knn_features z is what a projection head gives, and {type(method).__name__} has none: "
                "give h"
            )
        self.classifier: Classifier | None = None
        self.layer, self.rule = layer, rule
        if probe:
            classes = classes or class_count(bank.labels, bank.classes) or 1
            device, width = next(method.parameters()).device, _width(method, layer)
            self.norm = (nn.Identity() if rule else nn.BatchNorm1d(width, affine=False)).to(device)
            self.classifier = Classifier(width, classes).to(device)
            self.optimizer: torch.optim.Optimizer = (
                build_optimizer(rule.optim, self.classifier, rule.batch)
                if rule
                else torch.optim.AdamW(self.classifier.parameters(), lr=lr, weight_decay=1e-4)
            )

    @property
    def looked_at(self) -> int:
        """Images whose neighbours are looked at; 0 without kNN."""
        return len(self.queries) if self.knn else 0

    def after_step(self, output: Output, labels: Tensor | None) -> None:
        """One step of the probe on the step's representations; images without a label (below 0) do not count."""
        if self.classifier is None or labels is None:
            return
        both = labels.repeat(len(output.h) // len(labels))  # of one view or two
        both = all_gather(both.to(output.h.device, non_blocking=output.h.is_cuda))
        own = output.output(self.layer) if isinstance(output, ContrastiveOutput) else output.h
        h = all_gather(own)  # every rank trains the same probe on the whole batch
        h = h.to(torch.promote_types(h.dtype, torch.float32))
        if not self.complete:
            known = both >= 0
            if known.sum() < 2:
                return
            h, both = h[known], both[known]
        with torch.enable_grad():
            loss = nn.functional.cross_entropy(self.classifier(self.norm(h)), both)
            if self.rule:
                loss = loss + self.rule.decay(self.classifier)
                for group in self.optimizer.param_groups:
                    group["lr"] = self.rule.rate()
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Held-out accuracies now: `probe_top1` and `knn_top1`, in [0, 1]."""
        row: dict[str, float] = {}
        encoder = self.method.encoder
        at_h = (self.classifier is not None and self.layer == 0) or (self.knn and self.features == "h")
        queries = self._features(encoder, self.queries) if at_h else None
        if self.classifier is not None:
            probed = self._features(self._below_probe(), self.queries) if self.layer else queries
            assert probed is not None
            h = torch.as_tensor(probed.h, device=self.classifier.weight.device)
            self.norm.eval()
            predicted = self.classifier(self.norm(h)).argmax(1).cpu().numpy()
            self.norm.train()
            row["probe_top1"] = float((predicted == probed.labels).mean())
        if self.knn:
            if queries is None or self.features == "z":
                encoder = EncoderWithHead(encoder, self.head, self.head.out_dim) if self.head else encoder
                queries = self._features(encoder, self.queries)
            bank = self._features(encoder, self.bank)
            y, y_bank = np.asarray(queries.labels), np.asarray(bank.labels)
            row["knn_top1"] = knn_accuracy(bank.h, y_bank, queries.h, y, self.k, self.temperature)
        return row

    def _below_probe(self) -> Encoder:
        """Encoder and head up to what the probe reads."""
        assert isinstance(self.method, ContrastiveMethod)
        head = self.method.head
        return EncoderWithHead(self.method.encoder, nn.Sequential(*head.layers[: self.layer]), head.widths[self.layer])

    def _features(self, encoder: Encoder, source: Source) -> Features:
        with self.autocast():
            return self.extractor.extract(encoder, source)

    def state_dict(self) -> dict[str, Any]:
        """The probe's weights and optimiser."""
        if self.classifier is None:
            return {}
        probe: dict[str, Any] = {"norm": self.norm.state_dict(), "classifier": self.classifier.state_dict()}
        return probe | {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved probe."""
        if self.classifier is not None:
            self.norm.load_state_dict(state["norm"])
            self.classifier.load_state_dict(state["classifier"])
            self.optimizer.load_state_dict(state["optimizer"])


def _width(method: Method, layer: int) -> int:
    """Length of what a probe of this layer reads; UserError where there is none."""
    widths = method.head.widths if isinstance(method, ContrastiveMethod) else [method.encoder.feature_dim]
    if layer >= len(widths):
        raise UserError(
            f"--monitor.probe_layer {layer}: the projection head has {counted(len(widths) - 1, 'layer')}; give 0 (the "
            f"encoder's features) to {len(widths) - 1}"
        )
    return widths[layer]


def hold_out(
    labels: np.ndarray, seed: int, share: float, most: int | tuple[int, int], groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint indices (bank, queries) of labelled images for a monitor, at most `most` of each, or of the one and the
    other; fewer are some of those that more would be.

    With `groups` [N] the queries are whole groups, in random order until they have their share; none of one group.
    """
    of_bank, of_queries = (most, most) if isinstance(most, int) else most
    labelled = np.flatnonzero(labels >= 0) if labels.ndim == 1 else np.arange(len(labels))
    if groups is not None:
        own = groups[labelled]
        different, counts = np.unique(own, return_counts=True)
        turn = permutation(seed, "monitor/groups", 0, len(different))
        wanted = np.cumsum(counts[turn]) - counts[turn] < share * len(labelled)
        wanted[-1:] = False  # one group is left to the bank
        asked = np.isin(own, different[turn[wanted]])
        bank, queries = (
            each[permutation(seed, "monitor", 0, len(each))] for each in (labelled[~asked], labelled[asked])
        )
        return np.sort(bank[:of_bank]), np.sort(queries[:of_queries])
    order = labelled[permutation(seed, "monitor", 0, len(labelled))]
    cut = max(1, int(len(order) * share))
    return np.sort(order[cut:][:of_bank]), np.sort(order[:cut][:of_queries])


@dataclass(frozen=True)
class MonitorConfig:
    """What is watched beside the loss. Labels, where there are any, are used here and nowhere else."""

    every: int | None = None
    """Epochs between two looks; when not given a twentieth of the run, or as many as keep the looks within 5 % of it; 0
    switches them off."""
    probe: bool = True
    """Train a linear classifier on the representation beside it; no gradient reaches the encoder."""
    probe_layer: int = option(0, when={"probe": (True,)})
    """Output of the projection head that the probe reads, the official `ft_proj_selector`: 0 the encoder's features."""
    probe_rule: Literal["adamw", "run"] = option("adamw", when={"probe": (True,)})
    """How the probe is trained: adamw, on features of mean 0 and variance 1; run: by the run's own optimiser, rate and
    weight decay on features as they are, as the official `lineareval_while_pretraining`."""
    knn: bool = True
    """Classify held-out images by their nearest neighbours."""
    knn_features: Literal["h", "z"] = "h"
    """What neighbours are compared by: h, the encoder's output; z, the head's, as in MoCo's CIFAR-10 demo."""
    knn_k: int | None = None
    """Neighbours that vote; a smaller bank votes whole. When not given as many as a class has there, 200 at most."""
    knn_temperature: float | None = 0.1
    """A neighbour's vote weighs exp(cosine / temperature); null gives each one vote."""
    samples: int | None = None
    """Most images that a look takes from each of the two sides, bank and queries. When not given 5,000, or as many as
    keep the looks within 5 % of the training."""

    def __post_init__(self) -> None:
        refuse_unused(self, "monitor.")
        if self.probe_layer < 0:
            raise UserError(f"--monitor.probe_layer must be at least 0, got {self.probe_layer}")
        if self.knn_k is not None and self.knn_k < 1:
            raise UserError(f"--monitor.knn_k must be at least 1, got {self.knn_k}")
        if self.knn_temperature is not None and not self.knn_temperature > 0:
            raise UserError(f"--monitor.knn_temperature must be above 0, got {self.knn_temperature}; null: plain votes")
