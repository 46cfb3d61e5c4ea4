"""Other people's networks as encoders: timm's and torchvision's by name, or a module of your own.

They take floats in [0, 1] like every encoder; where pretrained weights expect normalised input, that happens inside.
Their batch norm layers see the batch of all ranks, so that several processes train as one does.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from twofold.encoders.base import Encoder, InputSpec
from twofold.encoders.blocks import Blocks, blocks_in
from twofold.encoders.build import EncoderConfig, ImageEncoderConfig
from twofold.encoders.surgery import (
    adapt_first_convolution,
    drop_classifier,
    guard_tiny_maps,
    share_batch_norm,
    use_cifar_stem,
)
from twofold.encoders.tokens import Pooling, pooled, timm_tokens, torchvision_tokens
from twofold.errors import UserError
from twofold.options import option
from twofold.reading import hub_or_cache

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
        pooling: of a module that gives tokens, see `tokens.Pooling`.
        prefix_tokens: how many tokens come before those of patches; None where the module says so itself.

    Raises:
        UserError: the module does not run, or gives no features.
    """

    mean: Tensor | None
    std: Tensor | None
    classifier_name: str = ""
    """Name of the last linear layer, which was taken off; empty where there is none."""

    def __init__(
        self,
        module: nn.Module,
        channels: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        size: int | None,
        try_sizes: Sequence[int],
        pooling: Pooling = "auto",
        prefix_tokens: int | None = None,
    ) -> None:
        super().__init__(InputSpec(channels, size), feature_dim=0)
        self.module, self.pooling, self.prefix_tokens = module, pooling, prefix_tokens
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != channels:
                raise UserError(f"{name} has {len(values)} values for {channels} channel(s); give one for each")
            tensor = None if values is None else torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, tensor, persistent=False)  # in the specification, not among the weights
        share_batch_norm(module)
        guard_tiny_maps(module)
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
        y = self._output(x)
        if not isinstance(y, Tensor) or y.ndim not in (2, 4) or y.shape[0] != x.shape[0]:
            got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise UserError(
                f"{type(self.module).__name__} gives {got}; an encoder's module gives [N, d] or [N, d, h, w]"
            )
        return y.mean((2, 3)) if y.ndim == 4 else y

    def _output(self, x: Tensor) -> Any:
        """What the module gives for normalised images, pooled if it is tokens."""
        sides = (x.shape[2], x.shape[3])
        return pooled(self.module, self.module(x), self.pooling, sides, self.prefix_tokens)

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

    def blocks(self) -> Blocks | None:
        """Those of the module, see `blocks_in`."""
        return blocks_in(self.module)

    def takes_any_of(self, sides: Iterable[int]) -> bool:
        """Whether the module gives as many features for images of another side, one of `sides`."""
        try:
            return self._dry_run(sides) == self.feature_dim
        except UserError:
            return False

    def _facts(self) -> dict[str, Any]:
        """What this class adds to the arguments of its subclasses."""
        mean, std = (None if b is None else b.flatten().tolist() for b in (self.mean, self.std))
        facts = {"channels": self.input.channels, "size": self.input.size, "mean": mean, "std": std}
        tokens = {"pooling": self.pooling} if self.pooling != "auto" else {}
        return facts | tokens | ({} if self.prefix_tokens is None else {"prefix_tokens": self.prefix_tokens})


@dataclass(frozen=True)
class LibraryConfig(ImageEncoderConfig):
    """Options of other libraries' models."""

    pretrained: bool = False
    """Start from the library's pretrained weights (they are downloaded)."""
    mean: tuple[float, ...] | None = option(None, when={"pretrained": (False,)})
    """One value a channel that is subtracted inside from images in [0, 1]; none = 0."""
    std: tuple[float, ...] | None = option(None, when={"pretrained": (False,)})
    """One value a channel that the encoder then divides by; none = 1."""
    pooling: Pooling = "auto"
    """Features of a vision transformer: its class token (cls), the mean of its patches' tokens without class,
    distillation and register tokens (mean), or what the library makes of them (auto)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is not None and not self.model():
            raise self.unknown(self.name)
        if self.pooling == "pooler":
            raise UserError(f"--encoder.pooling pooler is an output of Hugging Face's models, and {self.name} is none")

    def chosen(
        self, count: int, channels: int, sample_rate: int | None, size: int | None, gpu: bool
    ) -> tuple[Self, list[str]]:  # fmt: skip
        """The data's channels, and what that makes of pretrained weights."""
        config, reasons = super().chosen(count, channels, sample_rate, size, gpu)
        if self.pretrained and config.channels not in (None, 3):
            reasons.append(
                f"encoder.channels {config.channels}: the pretrained weights of the first layer, which are for RGB, "
                + ("are summed" if config.channels == 1 else f"are repeated over {config.channels} channels and scaled")
            )
        return config, reasons


class CustomEncoder(Adapted, kind="custom"):
    """A module of the user's own; see `adapt`."""

    @dataclass(frozen=True)
    class Config(EncoderConfig, variant="custom"):
        """A module of your own, given as `encoder` from Python."""

        kind = "image"

        name: str | None = "custom"
        pooling: Pooling = "auto"
        """Features of a module that gives tokens [N, T, d], or a hidden state as Hugging Face's models do: the first
        token (cls), the mean of the patches' tokens (mean), or their pooler_output (pooler)."""
        prefix_tokens: int | None = option(None, when={"pooling": ("mean",)})
        """Class and register tokens before those of patches; counted from config.patch_size when not given."""

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
        pooling: of a vision transformer, "cls" or "mean"; "auto" is the model's own.
    """

    @dataclass(frozen=True)
    class Config(LibraryConfig, variant="timm"):
        """Any model of timm."""

        forms = ("timm:NAME",)
        neutral = MappingProxyType({**LibraryConfig.neutral, "stem": ("auto",)})

        def build(self, image_size: int | None = None) -> TimmEncoder:
            """The model; its side is `image_size` where it takes only one."""
            channels = self.channels_or_rgb()
            return TimmEncoder(self.model(), channels, image_size, self.mean, self.std, self.pretrained, self.pooling)

    def __init__(
        self,
        name: str,
        channels: int = 3,
        size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        pretrained: bool = False,
        pooling: Pooling = "auto",
    ) -> None:
        timm = _import_timm(name)
        if not timm.is_model(name):
            raise UserError(_unknown("timm", name, timm.list_models()))
        facts = timm.get_pretrained_cfg(name)
        native = facts.input_size[-1]
        only = (size or native) if facts.fixed_input_size else None
        options = {"img_size": only} if only not in (None, native) else {}
        try:
            with hub_or_cache() if pretrained else nullcontext():
                model = timm.create_model(name, pretrained, num_classes=0, in_chans=channels, **options)
        except _BUILD_ERRORS as error:
            hint = f"; it is built for {native} px" if options else ""
            raise UserError(f"timm cannot build '{name}' ({options or 'no options'}): {error}{hint}") from error
        if pretrained:
            mean, std = spread(facts.mean, channels), spread(facts.std, channels)
        self.name, self.statistics = name, (tuple(facts.mean), tuple(facts.std))  # that its weights expect
        self.classifier_name = facts.classifier if isinstance(facts.classifier, str) else ""
        super().__init__(model, channels, mean, std, only, (64, native), pooling)

    def _output(self, x: Tensor) -> Any:
        auto = self.pooling == "auto"
        return self.module(x) if auto else timm_tokens(self.module, x, self.pooling, f"timm:{self.name}")

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
        pooling: of a vision transformer, "cls" or "mean"; "auto" is its class token.
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
            return TorchvisionEncoder(
                self.model(), channels, image_size, self.mean, self.std, self.pretrained, stem, self.pooling
            )

    def __init__(
        self,
        name: str,
        channels: int = 3,
        size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        pretrained: bool = False,
        stem: str = "imagenet",
        pooling: Pooling = "auto",
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
        classifier_name = drop_classifier(model)
        if stem != "imagenet":
            use_cifar_stem(model, name, stem, pretrained)
        if channels != 3:
            adapt_first_convolution(model, channels)
        if weights is not None:
            transform = weights.transforms()
            mean, std = spread(transform.mean, channels), spread(transform.std, channels)
        self.name, self.stem, self.classifier_name = name, stem, classifier_name
        only = _IMAGENET_SIDE if name.startswith(("vit_", "maxvit")) else None
        if size is not None and only is not None and size != only:
            raise UserError(f"torchvision:{name} takes images of {only} px only, not {size}; use timm's, or resize")
        super().__init__(model, channels, mean, std, only, (64, _IMAGENET_SIDE, 299), pooling)

    def _output(self, x: Tensor) -> Any:
        auto = self.pooling == "auto"
        return self.module(x) if auto else torchvision_tokens(self.module, x, self.pooling, f"torchvision:{self.name}")

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
    pooling: Pooling = "auto",
    prefix_tokens: int | None = None,
) -> Encoder:
    """Make an encoder of your own module.

    Args:
        module: takes [N, channels, H, W], gives [N, d] or [N, d, h, w], which is averaged over positions; with
            `pooling` also tokens [N, T, d], or what Hugging Face's models return. It is used as it is, not copied; its
            batch norm layers will see the batch of all ranks.
        channels: of the images.
        mean, std: one value a channel; images in [0, 1] become (x - mean) / std first. None: they go in as they are.
        size: the side H = W of images, where the module takes only one.
        image_size: the side that it will be given, where it is not known whether it takes others: of a module that
            does not, it becomes `size`.
        pooling: how tokens become features, see `tokens.Pooling`.
        prefix_tokens: with the pooling "mean", how many tokens come before those of patches, where the module has no
            `config.patch_size` to count them by.

    Returns:
        The encoder; a module that is an encoder already comes back unchanged.

    Raises:
        UserError: the module does not run on such images, or gives no features.
    """
    if isinstance(module, Encoder):
        asked = (mean, std, size, prefix_tokens) != (None, None, None, None) or pooling != "auto"
        if module.input.channels != channels or asked:
            raise UserError("the module is an encoder already, with its own input; give it alone")
        return module
    sides = [side for side in _USUAL_SIDES if side != image_size]
    if size is None and image_size is not None:
        encoder = CustomEncoder(module, channels, mean, std, size, [image_size, *sides], pooling, prefix_tokens)
        if encoder.takes_any_of(sides):
            return encoder
        size = image_size
    return CustomEncoder(module, channels, mean, std, size, sides, pooling, prefix_tokens)


def adapt_as(config: EncoderConfig, module: nn.Module, channels: int, image_size: int | None) -> Encoder:
    """Make an encoder of a run's own module, pooled as the run's options say."""
    own = config if isinstance(config, CustomEncoder.Config) else CustomEncoder.Config()
    return adapt(module, channels, image_size=image_size, pooling=own.pooling, prefix_tokens=own.prefix_tokens)


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


def spread(values: Sequence[float], channels: int) -> list[float]:
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
