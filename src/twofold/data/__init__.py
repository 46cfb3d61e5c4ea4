"""Images from anywhere, in an order that can be resumed at any step."""

from twofold.data.base import DataFacts, Format, SkipList, Source, Splits
from twofold.data.batches.audio import AudioLoader, LengthOrder
from twofold.data.batches.base import Batch, BatchLoader, BatchOrder
from twofold.data.batches.loader import Loader
from twofold.data.batches.order import Order
from twofold.data.config import DataConfig
from twofold.data.decoding.opening import BadImage
from twofold.data.decoding.recordings import BadRecording
from twofold.data.sources.arrays import ArraySource
from twofold.data.sources.audio import AudioSource
from twofold.data.sources.datasets import DatasetSource
from twofold.data.sources.encoded import EncodedSource
from twofold.data.sources.files import FileSource
from twofold.data.sources.hub import HubSource
from twofold.data.sources.open import FORMATS, open_source, splits_of
from twofold.data.sources.shards import ShardSource
from twofold.data.sources.torchvision_sets import NAMED_SETS

__all__ = [
    "ArraySource",
    "BadImage",
    "BadRecording",
    "Batch",
    "BatchLoader",
    "BatchOrder",
    "DataConfig",
    "DataFacts",
    "DatasetSource",
    "EncodedSource",
    "FORMATS",
    "FileSource",
    "Format",
    "HubSource",
    "LengthOrder",
    "Loader",
    "NAMED_SETS",
    "Order",
    "ShardSource",
    "SkipList",
    "AudioLoader",
    "AudioSource",
    "Source",
    "Splits",
    "open_source",
    "splits_of",
]
