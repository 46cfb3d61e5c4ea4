"""Images from anywhere, in an order that can be resumed at any step."""

from twofold.data.arrays import ArraySource
from twofold.data.base import DataFacts, SkipList, Source
from twofold.data.config import DataConfig
from twofold.data.files import FileSource
from twofold.data.hub import HubSource
from twofold.data.loader import Batch, Loader
from twofold.data.opening import BadImage
from twofold.data.order import Order
from twofold.data.shards import ShardSource
from twofold.data.sound_loader import LengthOrder, SoundLoader
from twofold.data.sounds import BadSound, SoundSource
from twofold.data.sources import DatasetSource, Splits, open_source, splits_of
from twofold.data.torchvision_sets import NAMED_SETS

__all__ = [
    "ArraySource",
    "BadImage",
    "BadSound",
    "Batch",
    "DataConfig",
    "DataFacts",
    "DatasetSource",
    "FileSource",
    "HubSource",
    "LengthOrder",
    "Loader",
    "NAMED_SETS",
    "Order",
    "ShardSource",
    "SkipList",
    "SoundLoader",
    "SoundSource",
    "Source",
    "Splits",
    "open_source",
    "splits_of",
]
