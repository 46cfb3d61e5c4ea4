"""Other people's networks as encoders: timm's and torchvision's by name, or a module of your own.

They take floats in [0, 1] like every encoder; where pretrained weights expect normalised input, that happens inside.
Their batch norm layers see the batch of all ranks, so that several processes train as one does.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType, MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from twofold.distributed import batch_norm
from twofold.encoders.base import Encoder, InputSpec
from twofold.encoders.build import EncoderConfig, ImageEncoderConfig
from twofold.errors import UserError
from twofold.options import option

_BUILD_ERRORS = (RuntimeError, OSError, ValueError, TypeError, KeyError, AssertionError)
_IMAGENET_SIDE = 224
_USUAL_SIDES = (64, _IMAGENET_SIDE, 32, 28)


class Adapted(Encoder):
    """A network of another library: normalise, run, average over positions if any are left.

    Args:
        module: [N, channels, H, W] -> [N, d] or [N, d, h, w]; d is found by a dry run.
        channels: of the images.
        mean, std: per channel; inputs in [0, 1] become (x - mean) / std. None: 0 and 1.
        size: the one side H = W that the module takes; None where any will do.
        try_sizes: sides to try in the dry run where any will do.

    Raises:
        UserError: the module does not run, or gives no features.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        module: nn.Module,
        channels: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        size: int | None,
        try_sizes: Sequence[int],
    ) -> None:
        super().__init__(InputSpec(channels, size), feature_dim=0)
        self.module = module
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != channels:
                raise UserError(f"{name} has {len(values)} values for {channels} channel(s); give one for each")
            tensor = None if values is None else torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, tensor, persistent=False)  # in the specification, not among the weights
        _share_batch_norm(module)
        self.feature_dim = self._dry_run([size] if size is not None else try_sizes)

    def features(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, feature_dim]."""
        h = self._run(x)
        if h.shape[1] != self.feature_dim:
            raise UserError(
                f"{type(self.module).__name__} gives {h.shape[1]} features for images of {tuple(x.shape[2:])}, but "
                f"{self.feature_dim} for others; give the side of your images as `size`"
            )
        return h

    def _run(self, x: Tensor) -> Tensor:
        x = x if self.mean is None else x - self.mean.to(x.dtype)
        x = x if self.std is None else x / self.std.to(x.dtype)
        y = self.module(x)
        if not isinstance(y, Tensor) or y.ndim not in (2, 4) or len(y) != len(x):
            got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise UserError(
                f"{type(self.module).__name__} gives {got}; an encoder's module gives [N, d] or [N, d, h, w]"
            )
        return y.mean((2, 3)) if y.ndim == 4 else y

    def _dry_run(self, sizes: Iterable[int]) -> int:
        weight = next(self.module.parameters(), torch.empty(0))
        failures = []
        for size in sizes:
            x = torch.zeros(2, self.input.channels, size, size, dtype=weight.dtype, device=weight.device)
            try:
                with _evaluating(self.module), torch.no_grad():
                    return self._run(x).shape[1]
            except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
                failures.append(f"at {size} px: {(str(error) or type(error).__name__).splitlines()[0]}")
        raise UserError(
            f"{type(self.module).__name__} does not run on images of {self.input.channels} channel(s) "
            f"({'; '.join(failures)}); check the channels, or give the side that it takes as `size`"
        )

    def takes_any_of(self, sides: Iterable[int]) -> bool:
        """Whether the module gives as many features for images of another side, one of `sides`."""
        try:
            return self._dry_run(sides) == self.feature_dim
        except UserError:
            return False

    def _facts(self) -> dict[str, Any]:
        """What this class adds to the arguments of its subclasses."""
        mean, std = (None if b is None else b.flatten().tolist() for b in (self.mean, self.std))
        return {"channels": self.input.channels, "size": self.input.size, "mean": mean, "std": std}


@dataclass(frozen=True)
class LibraryConfig(ImageEncoderConfig):
    """Options of other libraries' models."""

    pretrained: bool = False
    """Start from the library's pretrained weights (they are downloaded)."""
    mean: tuple[float, ...] | None = option(None, when={"pretrained": (False,)})
    """One value a channel that is subtracted inside from images in [0, 1]; none = 0."""
    std: tuple[float, ...] | None = option(None, when={"pretrained": (False,)})
    """One value a channel that the encoder then divides by; none = 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is not None and not self.model():
            raise self.unknown(self.name)


class CustomEncoder(Adapted, kind="custom"):
    """A module of the user's own; see `adapt`."""

    @dataclass(frozen=True)
    class Config(EncoderConfig, variant="custom"):
        """A module of your own, given as `encoder` from Python."""

        kind = "image"

        name: str | None = "custom"

        def build(self, image_size: int | None = None) -> Encoder:  # noqa: ARG002
            """Options cannot hold a module: always a UserError."""
            raise UserError("encoder.name custom is a module of your own: give it as `encoder` from Python")

    def arguments(self) -> dict[str, Any]:
        """The specification names the module's class; the module itself must be given again."""
        return {"module": f"{type(self.module).__module__}.{type(self.module).__qualname__}", **self._facts()}

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any], module: nn.Module | None = None) -> Encoder:
        """Adapt `module` as the encoder of this specification was."""
        name = arguments.pop("module")
        if module is None:
            raise UserError(
                f"this encoder is a module of your own ({name}); give it again, from Python: as `encoder`, or as "
                "`module` to distill and load_encoder"
            )
        return adapt(module.module if isinstance(module, CustomEncoder) else module, **arguments)


class TimmEncoder(Adapted, kind="timm"):
    """A model of timm by name, without its classifier.

    Args:
        name: as in `timm.create_model`, e.g. "convnext_tiny.fb_in1k".
        channels: of the images; timm adapts the first layer's weights.
        size: side of the images, for models that are built for one (vision transformers); others ignore it.
        mean, std: see Adapted.
        pretrained: load timm's weights (a download), and normalise inside as they expect.
    """

    @dataclass(frozen=True)
    class Config(LibraryConfig, variant="timm"):
        """Any model of timm."""

        forms = ("timm:NAME",)
        neutral = MappingProxyType({"stem": ("auto",)})

        def build(self, image_size: int | None = None) -> TimmEncoder:
            """The model; its side is `image_size` where it takes only one."""
            channels = self.channels_or_rgb()
            return TimmEncoder(self.model(), channels, image_size, self.mean, self.std, self.pretrained)

    def __init__(
        self,
        name: str,
        channels: int = 3,
        size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        pretrained: bool = False,
    ) -> None:
        timm = _import_timm(name)
        if not timm.is_model(name):
            raise UserError(_unknown("timm", name, timm.list_models()))
        facts = timm.get_pretrained_cfg(name)
        native = facts.input_size[-1]
        only = (size or native) if facts.fixed_input_size else None
        options = {"img_size": only} if only not in (None, native) else {}
        try:
            model = timm.create_model(name, pretrained, num_classes=0, in_chans=channels, **options)
        except _BUILD_ERRORS as error:
            hint = f"; it is built for {native} px" if options else ""
            raise UserError(f"timm cannot build '{name}' ({options or 'no options'}): {error}{hint}") from error
        if pretrained:
            mean, std = _spread(facts.mean, channels), _spread(facts.std, channels)
        self.name = name
        super().__init__(model, channels, mean, std, only, (64, native))

    def arguments(self) -> dict[str, Any]:
        """Rebuilds without pretrained weights, but normalising as they need."""
        return {"name": self.name, **self._facts()}


class TorchvisionEncoder(Adapted, kind="torchvision"):
    """A classification model of torchvision by name, its last linear layer taken off.

    Args:
        name: as in `models.get_model`, e.g. "resnet50".
        channels: of the images; the first convolution's weights are adapted as timm does it.
        size: ignored unless the model is built for one side (vision transformers take 224 only).
        mean, std: see Adapted.
        pretrained: load torchvision's default weights (a download), and normalise inside as they expect.
        stem: "cifar" puts a 3x3 convolution of stride 1 in the place of a ResNet's 7x7/2 and pooling, for images of
            about 32 px (MoCo's CIFAR-10 demo).
    """

    @dataclass(frozen=True)
    class Config(LibraryConfig, variant="torchvision"):
        """Any classification model of torchvision."""

        forms = ("torchvision:NAME",)

        stem: Literal["auto", "imagenet", "cifar", "small"] | None = None
        """ResNets of torchvision: imagenet, and cifar if asked."""

        @classmethod
        def names(cls) -> Iterable[str]:
            """All that torchvision lists."""
            return [f"torchvision:{name}" for name in torchvision_names()]

        def build(self, image_size: int | None = None) -> TorchvisionEncoder:
            """The model; auto is its own stem."""
            stem = "imagenet" if self.stem in (None, "auto") else str(self.stem)
            channels = self.channels_or_rgb()
            return TorchvisionEncoder(self.model(), channels, image_size, self.mean, self.std, self.pretrained, stem)

    def __init__(
        self,
        name: str,
        channels: int = 3,
        size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        pretrained: bool = False,
        stem: str = "imagenet",
    ) -> None:
        from torchvision import models  # seconds to import, so only where needed

        if name not in torchvision_names():
            raise UserError(_unknown("torchvision", name, torchvision_names()))
        try:
            weights = models.get_model_weights(name).DEFAULT if pretrained else None
            # Inception's auxiliary classifiers have no use without labels.
            extra = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
            model = models.get_model(name, weights=weights, **({} if pretrained else extra))
        except _BUILD_ERRORS as error:
            raise UserError(f"torchvision cannot build '{name}': {error}") from error
        if pretrained and extra:
            model.aux_logits = False
            model.AuxLogits = model.aux1 = model.aux2 = None
        _drop_classifier(model)
        if stem != "imagenet":
            _use_cifar_stem(model, name, stem, pretrained)
        if channels != 3:
            _adapt_first_convolution(model, channels)
        if weights is not None:
            transform = weights.transforms()
            mean, std = _spread(transform.mean, channels), _spread(transform.std, channels)
        self.name, self.stem = name, stem
        only = _IMAGENET_SIDE if name.startswith(("vit_", "maxvit")) else None
        if size is not None and only is not None and size != only:
            raise UserError(f"torchvision:{name} takes images of {only} px only, not {size}; use timm's, or resize")
        super().__init__(model, channels, mean, std, only, (64, _IMAGENET_SIDE, 299))

    def arguments(self) -> dict[str, Any]:
        """Rebuilds without pretrained weights, but normalising as they need."""
        return {"name": self.name, **self._facts(), **({} if self.stem == "imagenet" else {"stem": self.stem})}


def adapt(
    module: nn.Module,
    channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | None = None,
    image_size: int | None = None,
) -> Encoder:
    """Make an encoder of your own module.

    Args:
        module: takes [N, channels, H, W], gives [N, d] or [N, d, h, w], which is averaged over positions. It is used
            as it is, not copied; its batch norm layers will see the batch of all ranks.
        channels: of the images.
        mean, std: one value a channel; images in [0, 1] become (x - mean) / std first. None: they go in as they are.
        size: the side H = W of images, where the module takes only one.
        image_size: the side that it will be given, where it is not known whether it takes others: of a module that
            does not, it becomes `size`.

    Returns:
        The encoder; a module that is an encoder already comes back unchanged.

    Raises:
        UserError: the module does not run on such images, or gives no features.
    """
    if isinstance(module, Encoder):
        if module.input.channels != channels or (mean, std, size) != (None, None, None):
            raise UserError("the module is an encoder already, with its own input; give it alone")
        return module
    sides = [side for side in _USUAL_SIDES if side != image_size]
    if size is None and image_size is not None:
        encoder = CustomEncoder(module, channels, mean, std, size, [image_size, *sides])
        if encoder.takes_any_of(sides):
            return encoder
        size = image_size
    return CustomEncoder(module, channels, mean, std, size, sides)


def torchvision_names() -> list[str]:
    """The names of torchvision's classification models."""
    from torchvision import models

    names: list[str] = models.list_models(module=models)
    return names


def _import_timm(name: str) -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise UserError(f"encoder 'timm:{name}' needs timm: pip install 'twofold[timm]'") from error


def _unknown(library: str, name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    meant = (
        f"did you mean {' or '.join(f'{library}:{match}' for match in close)}?" if close else "see its list of models"
    )
    return f"{library} has no model '{name}'; {meant}"


def _spread(values: Sequence[float], channels: int) -> list[float]:
    """RGB statistics for another number of channels, as the first layer's weights are spread."""
    if channels == 1:
        return [sum(values) / len(values)]
    return [values[c % len(values)] for c in range(channels)]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Inference mode, each submodule's own mode restored after it."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def _drop_classifier(model: nn.Module) -> None:
    """Replace the last layer that gives the 1,000 classes of ImageNet by the identity."""
    last = ""
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear) and part.out_features == 1000:
            last = name
        if isinstance(part, nn.Conv2d) and part.out_channels == 1000:  # SqueezeNet's
            last = name
    parent, _, leaf = last.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Identity())


def _use_cifar_stem(model: nn.Module, name: str, stem: str, pretrained: bool) -> None:
    """Let a ResNet see small images as they are: a 3x3 convolution of stride 1, and no pooling."""
    first = getattr(model, "conv1", None)
    if stem != "cifar" or pretrained or not isinstance(first, nn.Conv2d) or not hasattr(model, "maxpool"):
        raise UserError(
            f"torchvision:{name} has no stem {stem!r}{' with pretrained weights' if pretrained else ''}: only its "
            "ResNets without weights take cifar; leave encoder.stem out"
        )
    model.conv1 = nn.Conv2d(3, first.out_channels, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()


def _adapt_first_convolution(model: nn.Module, channels: int) -> None:
    """Let the first convolution take `channels`: one channel sums RGB's weights, more repeat them, scaled to fit."""
    first = next(part for part in model.modules() if isinstance(part, nn.Conv2d))
    with torch.no_grad():
        if channels == 1:
            weight = first.weight.sum(1, keepdim=True)
        else:
            weight = torch.empty(first.out_channels, channels, *first.kernel_size, dtype=first.weight.dtype)
            weight = torch.index_select(first.weight, 1, torch.arange(channels) % 3, out=weight) * (3 / channels)
    first.in_channels, first.weight = channels, nn.Parameter(weight)


def _over_all_ranks(self: Any, x: Tensor) -> Any:
    """Forward pass of torch's batch norm (and timm's, with activation) whose statistics are those of all ranks."""
    if not self.training:
        return type(self).forward(self, x)
    y = batch_norm(
        x,
        self.running_mean,
        self.running_var,
        self.weight,
        self.bias,
        self.momentum,
        self.eps,
        unbiased=True,
        synchronized=self.synchronized,
        splits=self.splits,
    )
    return self.act(self.drop(y)) if hasattr(self, "act") else y


def _share_batch_norm(module: nn.Module) -> None:
    """Make the batch norm layers of `module` see the batch of all ranks; names and values of their tensors stay."""
    for part in module.modules():
        kind = type(part)
        known = kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) or kind.__qualname__ == "BatchNormAct2d"
        if known and part.momentum is not None and part.track_running_stats:
            vars(part).update(synchronized=True, splits=1)  # `distributed.keep_batch_norm_local` changes them
            part.forward = MethodType(_over_all_ranks, part)
