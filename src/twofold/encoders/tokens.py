"""From the outputs of token models (vision transformers) to one vector an image."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from twofold.errors import UserError

Pooling = Literal["auto", "cls", "mean", "pooler"]
"""auto: what the module gives; cls: the class token; mean: over the patches' tokens, without class, distillation and
register tokens; pooler: the output of that name of Hugging Face's models."""
_MOST_PREFIX = 64
"""More tokens than that before those of patches are no class and register tokens."""


def pooled(module: nn.Module, output: Any, pooling: Pooling, sides: tuple[int, int], prefix: int | None = None) -> Any:
    """What `pooling` makes of a module's output: [N, d], or the output itself where it asks for nothing.

    Args:
        module: whose output it is.
        output: [N, d], [N, d, h, w], tokens [N, T, d], or an object with `last_hidden_state` [N, T, d] or
            [N, d, h, w] and perhaps `pooler_output`, as Hugging Face's models return.
        pooling: see `Pooling`.
        sides: height and width of the images.
        prefix: tokens before those of the patches; by default counted from `config.patch_size`, as Hugging Face's
            vision transformers have it.

    Raises:
        UserError: the output has no such thing, or nobody says which tokens are patches.
    """
    name, hidden = type(module).__name__, getattr(output, "last_hidden_state", output)
    if pooling == "auto":
        if hidden is not output or (isinstance(output, Tensor) and output.ndim == 3):
            raise UserError(
                f"{name} gives {'a hidden state' if hidden is not output else 'tokens'} {tuple(hidden.shape)} and no "
                "features: say how they are pooled with encoder.pooling (cls, mean or, where there is one, pooler)"
            )
        return output
    if pooling == "pooler":
        vector = getattr(output, "pooler_output", None)
        if vector is None:
            raise UserError(f"encoder.pooling pooler: {name} gives no pooler_output; choose cls or mean")
        return vector.flatten(1)
    if isinstance(hidden, Tensor) and hidden.ndim == 4 and pooling == "mean":
        return hidden.mean((2, 3))
    if not isinstance(hidden, Tensor) or hidden.ndim != 3:
        shape = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
        raise UserError(f"encoder.pooling {pooling}: {name} gives {shape}, which are no tokens: leave it out")
    if pooling == "cls":
        return hidden[:, 0]
    count = prefix_tokens(module, hidden.shape[1], sides) if prefix is None else prefix
    return mean_of_patches(name, hidden, count)


def mean_of_patches(name: str, tokens: Tensor, prefix: int) -> Tensor:
    """[N, T, d] -> [N, d], the mean of all but the first `prefix` tokens; UserError where that leaves none."""
    if not 0 <= prefix < tokens.shape[1]:
        raise UserError(f"{name} gives {tokens.shape[1]} tokens, of which {prefix} cannot come before the patches'")
    return tokens[:, prefix:].mean(1)


def prefix_tokens(module: nn.Module, count: int, sides: tuple[int, int]) -> int:
    """How many of `count` tokens are no patches: what is left of them beside the patches of `config.patch_size`."""
    size = getattr(getattr(module, "config", None), "patch_size", None)
    if isinstance(size, int | tuple | list):
        height, width = (size, size) if isinstance(size, int) else size
        prefix = count - (sides[0] // int(height)) * (sides[1] // int(width))
        if 0 <= prefix <= _MOST_PREFIX:
            return prefix
    raise UserError(
        f"encoder.pooling mean: {type(module).__name__} gives {count} tokens for images of {sides[0]} x {sides[1]} px, "
        "and does not say which are patches: give encoder.prefix_tokens, the number of class and register tokens that "
        "come first (0 where there are none)"
    )


def timm_tokens(model: Any, x: Tensor, pooling: Pooling, title: str) -> Tensor:
    """The pooled tokens of a model of timm; UserError where it has none, or no class token."""
    tokens: Tensor = model.forward_features(x)
    if tokens.ndim != 3:
        raise UserError(f"encoder.pooling {pooling}: {title} gives maps and no tokens: leave it out")
    has_class = getattr(model, "cls_token", None) is not None
    if pooling == "cls" and not has_class:
        raise UserError(f"encoder.pooling cls: {title} has no class token: choose mean")
    prefix = int(getattr(model, "num_prefix_tokens", has_class))
    vector = tokens[:, 0] if pooling == "cls" else mean_of_patches(title, tokens, prefix)
    norm = getattr(model, "fc_norm", None)  # of models that normalise after pooling, not before
    return vector if norm is None else norm(vector)


def torchvision_tokens(model: Any, x: Tensor, pooling: Pooling, title: str) -> Tensor:
    """The pooled tokens of a vision transformer of torchvision; UserError for any other model."""
    if not hasattr(model, "class_token"):
        raise UserError(f"encoder.pooling {pooling}: {title} has no tokens: leave it out")
    seen: list[Tensor] = []
    handle = model.encoder.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        class_token: Tensor = model(x)  # (the classifier is taken off)
    finally:
        handle.remove()
    return class_token if pooling == "cls" else mean_of_patches(title, seen[0], 1)
