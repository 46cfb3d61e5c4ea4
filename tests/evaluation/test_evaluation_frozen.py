"""Any change of any tensor shows, and nothing else does."""

import pytest
import torch
from torch import nn

from twofold.evaluation.frozen import NotFrozenError, assert_frozen, digest, frozen, tensor_digests


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


@pytest.mark.parametrize("name", list(net().state_dict()))
def test_changing_one_number_of_any_tensor_changes_the_digest(name: str) -> None:
    module = net()
    before, named = digest(module), tensor_digests(module)
    with torch.no_grad():
        tensor = module.state_dict()[name].reshape(-1)
        tensor[-1] = tensor[-1] + 1 if tensor.dtype == torch.int64 else torch.nextafter(tensor[-1], torch.tensor(9e9))
    assert digest(module) != before
    with pytest.raises(NotFrozenError, match=f"changed: {name.replace('.', '[.]')}$"):
        assert_frozen(named, tensor_digests(module))


def test_batch_norm_in_training_mode_is_caught_though_no_parameter_changes() -> None:
    module = net().train()
    with pytest.raises(NotFrozenError, match=r"running_mean.*running_var"), frozen(module):
        module(torch.randn(5, 3, 4, 4))
    module.eval()
    with frozen(module):
        module(torch.randn(5, 3, 4, 4))


def test_names_shapes_and_types_count() -> None:
    plain = nn.ParameterDict({"a": torch.zeros(4)})
    others = [
        nn.ParameterDict({"b": torch.zeros(4)}),
        nn.ParameterDict({"a": torch.zeros(2, 2)}),
        nn.ParameterDict({"a": torch.zeros(8, dtype=torch.bfloat16)}),  # as many bytes, all zero
        nn.ParameterDict({"a": torch.zeros(4), "b": torch.zeros(0)}),
    ]
    assert len({digest(module) for module in [plain, *others]}) == 5


def test_layout_mode_and_gradients_do_not_count() -> None:
    module = net()
    before = digest(module)
    module.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    assert digest(module) == before == digest(tensor_digests(module))


def test_unsaved_buffers_and_shared_parameters_are_covered() -> None:
    module = nn.Module()
    module.register_buffer("scratch", torch.zeros(2), persistent=False)
    module.first = module.second = nn.Linear(1, 1)
    assert set(tensor_digests(module)) == {"scratch", "first.weight", "first.bias", "second.weight", "second.bias"}


def test_added_and_removed_tensors_are_named() -> None:
    with pytest.raises(NotFrozenError, match="removed: old; added: new"):
        assert_frozen({"old": "1", "kept": "2"}, {"new": "1", "kept": "2"})


def test_an_error_inside_the_context_comes_out_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError), frozen(net()):
        1 / 0  # noqa: B018
