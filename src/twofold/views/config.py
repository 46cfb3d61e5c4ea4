"""The options of the views of images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from twofold.errors import UserError
from twofold.views.blur import BlurPadding
from twofold.views.boxes import TF_MIN_COVERED, CropRule
from twofold.views.color import BrightnessRule, ColorRule
from twofold.views.resample import Resample
from twofold.views.studies.operators import make_operator

CROP_AREA = (0.08, 1.0)
"""SimCLR's, of ImageNet's and of CIFAR-10's crops."""
UNBLURRED, SOFT = 32, 64
"""Sides of a view up to which nothing is blurred, and up to which colours change half as much: the paper's choice at
32 pixels (arXiv 2002.05709, appendix B.9), the second ours up to 64 (docs/defaults.md)."""
TINY, TINY_CROP_AREA = 16, (0.3, 1.0)
"""Side of a view up to which crops are larger: of 16 pixels, 0.08 leaves 5 (ours, docs/defaults.md)."""


@dataclass(frozen=True)
class ViewsConfig:
    """How the two views of an image are made. The defaults are SimCLR's, but for `resample` and `blur_sigma_per`."""

    size: int | None = None
    """Side of a view in pixels; chosen from the data if not given."""
    crop_area: tuple[float, float] | None = None
    """Range of a crop's share of the image's area (the tf rule never goes under 0.1). When not given, [0.08, 1], and
    [0.3, 1] for views of 16 pixels and less."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of a crop's width / height."""
    crop_rule: CropRule = "tf"
    """How a crop is drawn: "tf" as the SimCLR code (uniform height), "torchvision" as its RandomResizedCrop (area)."""
    resample: Resample = "antialias"
    """Resizing: "tf2" and "tf1" are bicubic as the two versions of the SimCLR code, which alias; "antialias" is bicubic
    without; "bilinear" is Pillow's, torchvision's default and MoCo's, to the bit."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    rotation: float = 0.0
    """Largest angle of a small random rotation, in degrees; 0 is none (ours: SimCLR has none)."""
    color_strength: float | None = None
    """The paper's s, which scales jitter_ranges; 0 or less switches jitter and grayscale off. When not given, 1, and
    0.5 for views of 64 pixels and less."""
    jitter: float = 0.8
    """Probability of colour jitter."""
    jitter_ranges: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)
    """Strength of brightness, contrast, saturation and hue at color_strength 1."""
    jitter_order: Literal["random", "fixed"] = "random"
    """Order of the four within an image's jitter; "fixed" is the order above."""
    brightness_rule: BrightnessRule = "multiplicative"
    """Brightness of the second version of SimCLR ("multiplicative") or the first ("additive")."""
    color_rule: ColorRule = "tf"
    """Contrast about channel means and HSV saturation ("tf"), or both relative to the grey image ("torchvision"), which
    is the mean of all channels where there are not three."""
    grayscale: float = 0.2
    """Probability of dropping the colour; of images of 1 or 3 channels, as are saturation and hue."""
    blur: float | None = None
    """Probability of Gaussian blur, with a kernel of a tenth of the side. When not given, 0.5, and 0 for views of 32
    pixels and less, as the paper's."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation in pixels."""
    blur_sigma_per: Literal["image", "batch"] = "image"
    """Draw sigma for each image, as the paper says, or one for a view's whole batch, as its code does."""
    blur_padding: BlurPadding = "zero"
    """Beyond the border: "zero" as the SimCLR code (borders darken), or "reflect"."""
    operators: tuple[str | dict[str, Any], ...] = ()
    """Operators of the paper's studies, applied in this order after all of the above, such as '[cutout, sobel]' or
    '[{name: noise, sigma: [0, 0.2], probability: 0.5}]': crop, cutout, color, jitter, drop, sobel, noise, blur, rotate,
    solarize, equalize, motion_blur, autoaugment; and channel_jitter, for images of any number of channels."""
    operators_on: Literal["both", "first"] = "both"
    """Apply the operators to both views, or to the first alone, as in the paper's figure 5."""
    shared_crop: bool = False
    """Give both views one crop and flip: what the paper's figure 5 compares operators on."""

    def suited(self, size: int) -> ViewsConfig:
        """These options for views of `size` pixels, with what is left open as it suits so many."""
        suits: dict[str, Any] = {
            "color_strength": 0.5 if size <= SOFT else 1.0,
            "blur": 0.0 if size <= UNBLURRED else 0.5,
            "crop_area": TINY_CROP_AREA if size <= TINY else CROP_AREA,
        }
        return replace(self, size=size, **{name: fit for name, fit in suits.items() if getattr(self, name) is None})

    def __post_init__(self) -> None:
        def check(good: bool, name: str, wanted: str) -> None:
            if not good:
                raise UserError(f"views.{name} = {getattr(self, name)} will not do: give {wanted}")

        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal:
                check(getattr(self, name) in get_args(kind), name, f"one of {', '.join(get_args(kind))}")
        check(self.size is None or self.size > 0, "size", "a number of pixels")
        for name in ("flip", "jitter", "grayscale", "blur"):
            value = getattr(self, name)
            check(value is None or 0 <= value <= 1, name, "a probability between 0 and 1")
        least, most = self.crop_area or CROP_AREA
        check(0 < least <= most <= 1, "crop_area", "two shares, 0 < least <= most <= 1")
        if self.crop_rule == "tf":
            words = f"a largest share of {TF_MIN_COVERED} or more, or views.crop_rule = torchvision"
            check(most >= TF_MIN_COVERED, "crop_area", words)
        for name in ("crop_aspect", "blur_sigma"):
            low, high = getattr(self, name)
            check(0 < low <= high, name, "two numbers, 0 < least <= most")
        check(len(self.jitter_ranges) == 4 and min(self.jitter_ranges) >= 0, "jitter_ranges", "four numbers, 0 or more")
        check(0 <= self.rotation <= 180, "rotation", "an angle between 0 and 180 degrees")
        for operator in self.operators:
            try:
                make_operator(operator)
            except UserError as error:
                raise UserError(f"views.operators: {error}") from error
        if not self.operators:
            check(self.operators_on == "both", "operators_on", "views.operators too, or leave it out")
