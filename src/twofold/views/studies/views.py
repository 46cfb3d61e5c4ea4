"""Views for SimCLR's augmentation studies: operators on one branch only, after a crop that both branches share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from twofold.errors import UserError
from twofold.randomness import Key
from twofold.views.blur import blur_radius
from twofold.views.config import ViewsConfig
from twofold.views.images import ImageDraw, ImageViews, strength_of
from twofold.views.studies.operators import AutoAugment, Blur, Color, ColorDrop, ColorJitter, Operator, make_operator


@dataclass(frozen=True)
class StudyDraw(ImageDraw):
    """An `ImageDraw`, and what each study operator drew for each row."""

    operators: Tensor  # float32 [n, k] what the operators drew, side by side


class StudyViews(ImageViews):
    """Views as `ImageViews` makes them, and then study operators: usable wherever `ImageViews` is.

    The protocol of figure 5 (paper, section 3.1) is the default: one crop (and flip) for both branches, the operators
    on the first branch, the other branch left as it is. Switch the colour and the blur of the configuration off for it
    (`color_strength=0, blur=0`): they come first, on both branches. That the crop is shared is our inference: single
    operators reach 2 to 5 % in the figure, which independent crops would not give.

    With ``branch="both", shared_crop=False`` the operators extend the usual pipeline, as the broader policy of
    appendix B.2 (Sobel, equalize, solarize and motion blur; its probabilities are unpublished).
    """

    def __init__(
        self,
        config: ViewsConfig,
        operators: Sequence[Operator | str | Mapping[str, Any]],
        branch: Literal["first", "both"] = "first",
        shared_crop: bool = True,
    ) -> None:
        """Args: the operators, first to last, or what `make_operator` makes of them; see the class for the rest."""
        super().__init__(config)
        self.operators = [each if isinstance(each, Operator) else make_operator(each) for each in operators]
        if any(isinstance(each, Blur) for each in self.operators) and blur_radius(self.size) == 0:
            raise UserError(
                f"views.operators has blur, which does nothing at views.size {self.size}: its kernel, a tenth of the "
                "side, is one pixel below 20 px; leave it out or take larger views"
            )
        nothing = np.empty(0, dtype=np.int64)
        self.widths = [operator.draw(Key(0, 0), "", nothing, self.size).shape[1] for operator in self.operators]
        self.branch = branch
        self.shared_crop = shared_crop

    def draw(self, key: Key, rows: ArrayLike, heights: ArrayLike, widths: ArrayLike) -> tuple[StudyDraw, StudyDraw]:
        """As `ImageViews.draw`; the second branch's operators are drawn as not applied unless they act on both."""
        first, second = super().draw(key, rows, heights, widths)
        if self.shared_crop:
            second = dataclasses.replace(second, box=first.box, flip=first.flip)
        a, b = (self._draw_operators(key, view, rows) for view in ("a", "b"))
        if self.branch == "first":
            b = torch.zeros_like(b)
        return StudyDraw(**vars(first), operators=a), StudyDraw(**vars(second), operators=b)

    def _draw_operators(self, key: Key, view: str, rows: ArrayLike) -> Tensor:
        rows = np.asarray(rows, dtype=np.int64).reshape(-1)
        drawn = [torch.zeros(len(rows), 0)]
        for place, operator in enumerate(self.operators):
            drawn.append(operator.draw(key, f"{view}/{place}/{type(operator).__name__}", rows, self.size))
        return torch.cat(drawn, 1)

    def _finish(self, x: Tensor, draw: ImageDraw) -> Tensor:
        if not isinstance(draw, StudyDraw):
            raise TypeError("StudyViews applies what its own draw() returned, not an ImageDraw")
        x = super()._finish(x, draw)
        for operator, drawn in zip(self.operators, draw.operators.cpu().split(self.widths, 1), strict=True):
            x = operator.apply(x, drawn)
        return x


def build_views(config: ViewsConfig) -> ImageViews:
    """The views that a configuration asks for: SimCLR's, and study operators or a shared crop where it names them."""
    if not config.operators and not config.shared_crop:
        return ImageViews(config)
    return StudyViews(config, config.operators, config.operators_on, config.shared_crop)


def left_out(config: ViewsConfig, channels: int) -> str:
    """What of the views does not apply to images of so many channels, in a sentence; "" where all applies.

    Raises:
        UserError: an operator would do nothing.
    """
    if channels in (1, 3):
        return ""
    operators = [make_operator(each) for each in config.operators]
    for kind, words in ((ColorDrop, "drop, which makes RGB grey"), (AutoAugment, "autoaugment, which is for RGB")):
        if any(isinstance(each, kind) for each in operators):
            raise UserError(f"views.operators has {words}, and the images have {channels} channels: leave it out")
    wanted = strength_of(config) > 0 and bool(config.grayscale or (config.jitter and max(config.jitter_ranges[2:]) > 0))
    if not wanted and not any(isinstance(each, Color | ColorJitter) for each in operators):
        return ""
    return (
        f"the images have {channels} channels: of the views saturation, hue and grayscale are left out, which are "
        "defined for RGB; brightness and contrast change all channels of an image by the same factor (views.operators "
        "channel_jitter changes each by its own)"
    )
