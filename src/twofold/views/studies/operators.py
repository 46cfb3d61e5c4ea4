"""The operators of SimCLR's augmentation studies (paper, figure 4 and appendix B.2), one at a time.

Each is drawn first and applied to a whole batch afterwards, as all views are. The paper names them and published
neither their parameters nor its script (google-research/simclr issue 43), so **every default here is ours** unless
a docstring gives its source.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from twofold.errors import UserError
from twofold.randomness import Key, uniforms
from twofold.views.blur import BlurPadding, blur_radius, gaussian_blur
from twofold.views.boxes import TF_MIN_COVERED, CropRule, crop_boxes
from twofold.views.color import jitter, luma
from twofold.views.resample import Resample, crop_resize
from twofold.views.rows import operator_groups, to_device, update_rows

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Operator:
    """One operator: draws its parameters by address, applies them to float images [n, C, H, W] in [0, 1]."""

    probability: float = 1.0
    """Share of the images that it is applied to."""

    numbers: ClassVar[int] = 0
    """How many uniform numbers a row needs."""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise UserError(f"{type(self).__name__}: probability = {self.probability}, but it lies between 0 and 1")

    def draw(self, key: Key, stream: str, rows: NDArray[np.int64], side: int) -> Tensor:
        """float32 [n, 1 + k]: whether the operator is applied to a row (1 or 0), then its k parameters.

        Args:
            key, stream, rows: the address; each row's numbers do not depend on the others.
            side: of the views in pixels.
        """
        u = uniforms(key, stream, rows, 1 + self.numbers)
        parameters = self.parameters(u[:, 1:], side)
        return torch.from_numpy(np.column_stack([u[:, 0] < self.probability, parameters])).float()

    def apply(self, x: Tensor, drawn: Tensor) -> Tensor:
        """x with the operator applied where it was drawn; x itself stays as it is. `drawn` is on the CPU."""
        rows = drawn[:, 0].nonzero().flatten()
        if not len(rows):
            return x
        present = to_device(rows, x.device)
        return x.index_copy(0, present, self.operate(x.index_select(0, present), drawn[rows, 1:]).clamp(0, 1))

    def parameters(self, u: Floats, side: int) -> Floats:
        """[n, k] parameters from [n, numbers] uniforms: the uniforms themselves unless an operator says otherwise."""
        del side
        return u

    def operate(self, x: Tensor, parameters: Tensor) -> Tensor:
        """The operator on all of x [m, C, H, W] with parameters [m, k] on the CPU."""
        raise NotImplementedError


@dataclass(frozen=True)
class Crop(Operator):
    """A second crop and resize, on top of the one that both branches share."""

    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    rule: CropRule = "tf"
    resample: Resample = "tf2"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.area[0] > 0 and self.area[1] <= 1 and self.aspect[0] > 0):
            raise UserError(f"crop: area = {self.area} lies within (0, 1], aspect = {self.aspect} above 0")
        if self.rule == "tf" and self.area[1] < TF_MIN_COVERED:
            raise UserError(f"crop: area = {self.area}, but the tf rule refuses all below {TF_MIN_COVERED}")

    def draw(self, key: Key, stream: str, rows: NDArray[np.int64], side: int) -> Tensor:
        applied = super().draw(key, stream, rows, side)
        boxes = crop_boxes(key, f"{stream}/box", rows, side, side, rule=self.rule, area=self.area, aspect=self.aspect)
        return torch.cat([applied, torch.from_numpy(boxes).float()], 1)

    def operate(self, x: Tensor, parameters: Tensor) -> Tensor:
        return crop_resize(x, parameters.long(), (x.shape[2], x.shape[3]), self.resample)


@dataclass(frozen=True)
class Cutout(Operator):
    """A grey square with a uniformly random centre; it may reach over the border."""

    side: float = 0.5
    """Of the square, as a share of the image's."""
    fill: float = 0.5

    numbers: ClassVar[int] = 2

    def operate(self, x: Tensor, parameters: Tensor) -> Tensor:
        hidden = torch.ones(1, dtype=torch.bool, device=x.device)
        for axis in (0, 1):
            length = x.shape[2 + axis]
            square = round(self.side * length)
            start = to_device((parameters[:, axis] * length).long(), x.device)[:, None] - square // 2
            place = torch.arange(length, device=x.device)
            within = (place >= start) & (place < start + square)
            hidden = hidden & (within[:, None, :, None] if axis == 0 else within[:, None, None, :])
        return x.masked_fill(hidden, self.fill)


@dataclass(frozen=True)
class ColorJitter(Operator):
    """Colour jitter alone: SimCLR's, in random order, of the given strength (1 in the paper's study)."""

    strength: float = 1.0

    numbers: ClassVar[int] = 8

    def parameters(self, u: Floats, side: int) -> Floats:
        del side
        reach = self.strength * np.array([0.8, 0.8, 0.8, 0.2])
        low, high = np.maximum(1 - reach, 0), 1 + reach
        low[3], high[3] = -reach[3], reach[3]
        return np.column_stack([u[:, :4].argsort(axis=1), low + (high - low) * u[:, 4:]])

    def operate(self, x: Tensor, parameters: Tensor) -> Tensor:
        out = x.clone()
        for order, rows in operator_groups(x, torch.arange(len(x)), parameters[:, :4].long()):
            update_rows(out, rows, lambda part, factors, order=order: jitter(part, order, factors), parameters[:, 4:])
        return out


@dataclass(frozen=True)
class ChannelJitter(Operator):
    """Each channel brighter or darker by a factor of its own, drawn from 1 - strength to 1 + strength (never below 0).

    For images of any number of channels what hue and saturation are for RGB; ours, as no paper's rule is for them.
    """

    strength: float = 0.4

    numbers: ClassVar[int] = 2

    def parameters(self, u: Floats, side: int) -> Floats:
        del side
        return np.floor(u * 2**24)  # 24 bits are exact in float32

    def operate(self, x: Tensor, parameters: Tensor) -> Tensor:
        seeds = parameters.long()
        bits = _random_bits(to_device(seeds[:, 0] << 24 | seeds[:, 1], x.device), x.shape[1])
        u = (bits & 0xFFFFFF).float() * 2**-24
        factors = (1 - self.strength + 2 * self.strength * u).clamp_min_(0)
        return x * factors[:, :, None, None]


@dataclass(frozen=True)
class ColorDrop(Operator):
    """Grey instead of colour, in three channels."""

    def operate(self, x: Tensor, parameters: Tensor) -> Tensor:
        del parameters
        return luma(x).expand_as(x)


@dataclass(frozen=True)
class Color(Operator):
    """The "color" of the paper's study: jitter with probability 0.8, then grey with probability 0.2."""

    strength: float = 1.0

    def draw(self, key: Key, stream: str, rows: NDArray[np.int64], side: int) -> Tensor:
        parts = [part.draw(key, f"{stream}/{name}", rows, side) for name, part in self._parts().items()]
        return torch.cat([super().draw(key, stream, rows, side), *parts], 1)

    def operate(self, x: Tensor, parameters: Tensor) -> Tensor:
        parts = self._parts().values()
        for part, drawn in zip(parts, parameters.split([9, 1], 1), strict=True):
            x = part.apply(x, drawn)
        return x

    def _parts(self) -> dict[str, Operator]:
        return {"jitter": ColorJitter(0.8, self.strength), "drop": ColorDrop(0.2)}


@dataclass(frozen=True)
class Blur(Operator):
    """Gaussian blur alone, with the kernel and the sigmas of SimCLR's pipeline."""

    sigma: tuple[float, float] = (0.1, 2.0)
    padding: BlurPadding = "zero"

    numbers: ClassVar[int] = 1

    def parameters(self, u: Floats, side: int) -> Floats:
        del side
        return self.sigma[0] + (self.sigma[1] - self.sigma[0]) * u

    def operate(self, x: Tensor, parameters: Tensor) -> Tensor:
        return gaussian_blur(x, to_device(parameters[:, 0], x.device), blur_radius(x.shape[2]), self.padding)


@dataclass(frozen=True)
class Noise(Operator):
    """Gaussian noise on every value, with one standard deviation an image, drawn uniformly."""

    sigma: tuple[float, float] = (0.0, 0.1)

    numbers: ClassVar[int] = 3

    def parameters(self, u: Floats, side: int) -> Floats:
        del side
        sigma = self.sigma[0] + (self.sigma[1] - self.sigma[0]) * u[:, :1]
        return np.concatenate([sigma, np.floor(u[:, 1:] * 2**24)], axis=1)  # 24 bits are exact in float32

    def operate(self, x: Tensor, parameters: Tensor) -> Tensor:
        seeds = parameters[:, 1:].long()
        noise = _normals(to_device(seeds[:, 0] << 24 | seeds[:, 1], x.device), x[0].numel())
        return x + noise.view_as(x) * to_device(parameters[:, 0], x.device)[:, None, None, None]


def _normals(seeds: Tensor, count: int) -> Tensor:
    """Standard normals float32 [n, count], a pure function of each seed on any device, by Box and Muller's cosine."""
    z = _random_bits(seeds, count)
    radius = (((z & 0xFFFFFF).float() + 0.5) * 2**-24).log_().mul_(-2).sqrt_()
    return radius * ((z >> 24 & 0xFFFFFF).float() * (2 * math.pi * 2**-24)).cos_()


def _random_bits(seeds: Tensor, count: int) -> Tensor:
    """int64 [n, count], a pure function of each seed on any device.

    They are SplitMix64's (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014) at
    consecutive counters.
    """
    z = (seeds[:, None] << 16) + torch.arange(1, count + 1, device=seeds.device)
    z = z * (0x9E3779B97F4A7C15 - 2**64)  # int64 wraps as uint64 does; only the shifts must not carry the sign
    for shift, factor in ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64)):
        z = (z ^ (z >> shift & 2 ** (64 - shift) - 1)) * factor
    return z ^ (z >> 31 & 2**33 - 1)


@dataclass(frozen=True)
class Rotate(Operator):
    """A rotation by 0, 90, 180 or 270 degrees, as the paper studies it. Images are square."""

    numbers: ClassVar[int] = 1

    def parameters(self, u: Floats, side: int) -> Floats:
        del side
        return np.floor(u * 4)  # quarter turns, anticlockwise

    def operate(self, x: Tensor, parameters: Tensor) -> Tensor:
        out = x.clone()
        for turns in (1, 2, 3):
            update_rows(out, parameters[:, 0] == turns, lambda part, turns=turns: part.rot90(turns, (2, 3)))
        return out


@dataclass(frozen=True)
class Sobel(Operator):
    """The magnitude of each channel's Sobel gradient, scaled so that an image's largest is 1."""

    def operate(self, x: Tensor, parameters: Tensor) -> Tensor:
        del parameters
        channels = x.shape[1]
        across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=x.device)
        kernels = torch.stack([across, across.T])[:, None].repeat(channels, 1, 1, 1)
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        gradient = F.conv2d(padded, kernels, groups=channels).unflatten(1, (channels, 2))
        magnitude: Tensor = gradient.square().sum(2).sqrt()
        return magnitude / magnitude.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)


@dataclass(frozen=True)
class Solarize(Operator):
    """Values from a threshold on are inverted (as PIL.ImageOps.solarize); the threshold is drawn uniformly."""

    threshold: tuple[float, float] = (0.5, 0.5)

    numbers: ClassVar[int] = 1

    def parameters(self, u: Floats, side: int) -> Floats:
        del side
        return self.threshold[0] + (self.threshold[1] - self.threshold[0]) * u

    def operate(self, x: Tensor, parameters: Tensor) -> Tensor:
        return torch.where(x >= to_device(parameters[:, 0], x.device)[:, None, None, None], 1 - x, x)


@dataclass(frozen=True)
class Equalize(Operator):
    """Each channel's histogram made flat, over 256 levels (as PIL.ImageOps.equalize)."""

    def operate(self, x: Tensor, parameters: Tensor) -> Tensor:
        del parameters
        n, channels = x.shape[:2]
        level = (x * 255).round_().long().clamp_(0, 255).view(n * channels, -1)
        count = torch.zeros(n * channels, 256, dtype=torch.long, device=x.device)
        count.scatter_add_(1, level, torch.ones_like(level))
        # Pillow's step: how many pixels go to one level, the pixels of the highest level that occurs left out.
        step = (level.shape[1] - count.gather(1, level.amax(1, keepdim=True))) // 255
        below = count.cumsum(1) - count
        table = ((below + step // 2) // step.clamp_min(1)).clamp_(0, 255)
        table = torch.where(step > 0, table, torch.arange(256, device=x.device))
        return table.gather(1, level).view_as(x) / 255


@dataclass(frozen=True)
class MotionBlur(Operator):
    """The mean along a line through each pixel, in a uniformly random direction; borders repeat."""

    length: float = 0.1
    """Of the line, as a share of the image's side; at least 3 pixels."""

    numbers: ClassVar[int] = 1

    def parameters(self, u: Floats, side: int) -> Floats:
        del side
        return math.pi * u

    def operate(self, x: Tensor, parameters: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        radius = max(1, round(self.length * height / 2))
        direction = to_device(parameters, x.device)
        along = torch.linspace(-radius, radius, 4 * radius + 1, device=x.device)
        grid = torch.arange(-radius, radius + 1, device=x.device)[None, :, None]
        # Each sample of the line is shared bilinearly among the pixels around it: [n, side, samples] along each axis.
        down = (1 - (grid - direction.sin()[:, :, None] * along).abs()).clamp_min(0)
        across = (1 - (grid - direction.cos()[:, :, None] * along).abs()).clamp_min(0)
        kernel = down @ across.transpose(1, 2)
        kernel = (kernel / kernel.sum((1, 2), keepdim=True)).repeat_interleave(channels, 0)[:, None]
        padded = F.pad(x, (radius,) * 4, mode="replicate").view(1, n * channels, height + 2 * radius, -1)
        return F.conv2d(padded, kernel, groups=n * channels).view(n, channels, height, width)


@dataclass(frozen=True)
class AutoAugment(Operator):
    """A policy of AutoAugment (arXiv 1805.09501), image by image, as torchvision has it; images of 1 or 3 channels.

    The paper of SimCLR compares with it in its Table 1, and does not say which of the policies it took.
    """

    policy: Literal["imagenet", "cifar10", "svhn"] = "imagenet"

    numbers: ClassVar[int] = 2

    def parameters(self, u: Floats, side: int) -> Floats:
        del side
        return np.floor(u * 2**24)  # 24 bits are exact in float32

    def operate(self, x: Tensor, parameters: Tensor) -> Tensor:
        from torchvision.transforms import autoaugment  # takes a second to load

        if x.shape[1] not in (1, 3):
            raise UserError(f"autoaugment is for images of 1 or 3 channels, and these have {x.shape[1]}: leave it out")
        change = autoaugment.AutoAugment(autoaugment.AutoAugmentPolicy(self.policy))
        seeds, out = parameters.long(), []
        with torch.random.fork_rng(devices=[]):  # it draws from torch's own numbers, on the CPU
            for image, (first, second) in zip((x * 255).round_().to(torch.uint8), seeds.tolist(), strict=True):
                torch.manual_seed(first << 24 | second)
                out.append(change(image))
        return torch.stack(out).float() / 255


OPERATORS: dict[str, type[Operator]] = {
    "crop": Crop,
    "cutout": Cutout,
    "color": Color,
    "jitter": ColorJitter,
    "drop": ColorDrop,
    "sobel": Sobel,
    "noise": Noise,
    "blur": Blur,
    "rotate": Rotate,
    "solarize": Solarize,
    "equalize": Equalize,
    "motion_blur": MotionBlur,
    "channel_jitter": ChannelJitter,
    "autoaugment": AutoAugment,
}
"""The operators by name. Figure 5's axes are crop, cutout, color, sobel, noise, blur and rotate."""


def make_operator(wanted: str | Mapping[str, Any]) -> Operator:
    """The operator that an option names: "cutout", or {"name": "cutout", "side": 0.25, "probability": 0.5}.

    Raises:
        UserError: there is no such operator or parameter, or the value is not of its kind.
    """
    given = {"name": wanted} if isinstance(wanted, str) else dict(wanted)
    name = given.pop("name", None)
    if name not in OPERATORS:
        raise UserError(f"there is no study operator {name!r}: choose from {', '.join(OPERATORS)}")
    kind = OPERATORS[name]
    types = {field.name: get_type_hints(kind)[field.name] for field in dataclasses.fields(kind)}
    for parameter, value in given.items():
        if parameter not in types:
            raise UserError(f"the operator {name} has no parameter {parameter!r}: it has {', '.join(types)}")
        given[parameter] = _as_kind(value, types[parameter], f"{name}: {parameter} = {value!r}")
    return kind(**given)


def _as_kind(value: Any, kind: Any, what: str) -> Any:
    """A value from a file or the command line as the number, range or choice that an operator takes."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise UserError(f"{what}, but it is one of {', '.join(get_args(kind))}")
        return value
    numbers = list(value) if isinstance(value, list | tuple) and kind is not float else [value]
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x < math.inf for x in numbers):
        raise UserError(f"{what}, but it takes numbers of 0 or more")
    if kind is float:
        return float(value)
    if len(numbers) != 2 or numbers[0] > numbers[1]:
        raise UserError(f"{what}, but it is a range: two numbers, least <= most")
    return float(numbers[0]), float(numbers[1])
