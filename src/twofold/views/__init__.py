"""Views: how an example is turned into two, with the random numbers drawn apart from their use."""

from twofold.views.config import ViewsConfig
from twofold.views.images import ImageDraw, ImageViews
from twofold.views.pairs import two_views, views_of
from twofold.views.resample import center_crop, crop_resize, crop_resize_image, letterbox
from twofold.views.studies.operators import OPERATORS, Operator, make_operator
from twofold.views.studies.views import StudyDraw, StudyViews, build_views, left_out

__all__ = [
    "OPERATORS",
    "ImageDraw",
    "ImageViews",
    "Operator",
    "StudyDraw",
    "StudyViews",
    "ViewsConfig",
    "build_views",
    "center_crop",
    "crop_resize",
    "crop_resize_image",
    "left_out",
    "letterbox",
    "make_operator",
    "two_views",
    "views_of",
]
