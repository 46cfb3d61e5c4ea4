"""The blocks of an encoder in the order of the forward pass, as far as its structure tells them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

_STAGES = ("layer1", "layer2", "layer3", "layer4")
_STACKS = ("blocks", "stages", "layers")


@dataclass(frozen=True)
class Blocks:
    """An encoder's stem and its blocks, from the input up. What comes after the last block is in neither.

    Attributes:
        stem: modules before the first block.
        blocks: the stages of a convolutional net, or the layers of a transformer.
        tokens: parameters that stand in no module, such as a class token and positions; they belong to the stem.
    """

    stem: tuple[nn.Module, ...]
    blocks: tuple[nn.Module, ...]
    tokens: tuple[nn.Parameter, ...] = ()

    def up_to(self, count: int) -> tuple[nn.Module, ...]:
        """The stem and the first `count` blocks."""
        return (*self.stem, *self.blocks[:count])

    def parameters(self, count: int) -> Iterator[nn.Parameter]:
        """The parameters of the stem and of the first `count` blocks."""
        yield from self.tokens
        for module in self.up_to(count):
            yield from module.parameters()


def blocks_in(module: nn.Module) -> Blocks | None:
    """The blocks of another library's net: torchvision's and timm's ResNets, timm's transformers and ConvNeXts.

    They are children named layer1 to layer4, or the children of one child named blocks, stages or layers; what is
    defined before them is the stem, as these libraries write their nets. None where there are no such children.
    """
    children = dict(module.named_children())
    if all(name in children for name in _STAGES):
        first, blocks = _STAGES[0], [children[name] for name in _STAGES]
    else:
        stacks = [name for name in _STACKS if isinstance(children.get(name), nn.Sequential | nn.ModuleList)]
        if len(stacks) != 1:
            return None
        first, blocks = stacks[0], list(children[stacks[0]].children())
    return Blocks(tuple(_before(first, children.items())), tuple(blocks), tuple(module.parameters(recurse=False)))


def _before(first: str, children: Iterable[tuple[str, nn.Module]]) -> Iterator[nn.Module]:
    for name, child in children:
        if name == first:
            return
        yield child
