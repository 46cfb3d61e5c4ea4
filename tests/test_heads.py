"""Projection heads against the published formulas, and starting values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from twofold.distributed import BatchNorm
from twofold.errors import UserError
from twofold.heads import Classifier, HeadConfig, ProjectionHead


def norm(x: Tensor) -> Tensor:
    """Batch normalisation with scale 1 and bias 0, by its formula."""
    return (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()


def by_hand(head: ProjectionHead, h: Tensor) -> list[Tensor]:
    """The head's layers as loops over the paper's formula (model_util.projection_head)."""
    outputs, dense = [h], [m for m in head.modules() if isinstance(m, nn.Linear)]
    for j, layer in enumerate(dense):
        x = outputs[-1] @ layer.weight.T
        x = norm(x) if head.config.norm else x + layer.bias
        outputs.append(x.clamp(min=0) if j < len(dense) - 1 else x)
    return outputs


@pytest.mark.parametrize("kind", ["none", "linear", "nonlinear"])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("with_norm", [True, False])
@pytest.mark.parametrize("hidden", [None, 24])
def test_every_head(kind: str, layers: int, with_norm: bool, hidden: int | None) -> None:
    """All outputs of every kind and depth; float64, so 1e-12 shows the same formula."""
    head = ProjectionHead(16, HeadConfig(kind, layers, 8, hidden, with_norm)).double()
    h = torch.randn(10, 16, dtype=torch.float64)
    outputs, want = head.outputs(h), by_hand(head, h)
    assert len(outputs) == len(want) == {"none": 1, "linear": 2, "nonlinear": layers + 1}[kind]
    for ours, theirs in zip(outputs, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert head.out_dim == head(h).shape[1] == (16 if kind == "none" else 8)
    widths = [output.shape[1] for output in outputs[1:-1]]
    assert widths == [hidden or 16] * len(widths)


def test_biases_and_starting_values() -> None:
    """With norm: no dense bias, no bias in the last norm, N(0, 0.01^2); without: torch's own start, with biases."""
    torch.manual_seed(0)
    head = ProjectionHead(512, HeadConfig(layers=3))
    dense = [m for m in head.modules() if isinstance(m, nn.Linear)]
    norms = [m for m in head.modules() if isinstance(m, BatchNorm)]
    assert [m.bias is None for m in dense] == [True] * 3
    assert [m.bias is None for m in norms] == [False, False, True]
    # 65,536 numbers or more know their deviation to 0.3 %
    assert [float(m.weight.detach().std()) for m in dense] == pytest.approx([0.01] * 3, rel=0.02)
    plain = ProjectionHead(512, HeadConfig(norm=False))
    dense = [m for m in plain.modules() if isinstance(m, nn.Linear)]
    assert all(m.bias is not None for m in dense)
    assert float(dense[0].weight.detach().std()) == pytest.approx(1 / (3 * 512) ** 0.5, rel=0.02)  # U(+-1/sqrt(512))


def test_classifier() -> None:
    """Normal or zero weights, zero bias."""
    torch.manual_seed(0)
    classifier = Classifier(512, 1000)
    assert float(classifier.weight.detach().std()) == pytest.approx(0.01, rel=0.01)
    assert not classifier.bias.any()
    zero = Classifier(8, 3, init="zero")
    assert not zero.weight.any()
    assert zero(torch.ones(2, 8)).shape == (2, 3)
    with pytest.raises(UserError, match="init='ones'"):
        Classifier(8, 3, init="ones")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"kind": "mlp"}, {"layers": 0}, {"layers": 5}, {"out_dim": 0}, {"hidden_dim": 0}])
def test_wrong_options_are_told(wrong: dict[str, object]) -> None:
    """Each names the option."""
    with pytest.raises(UserError, match=rf"head\.{next(iter(wrong))}"):
        HeadConfig(**wrong)  # type: ignore[arg-type]
