"""Encoders: the published ResNets, any timm or torchvision model, speech encoders, or a module of your own."""

from twofold.encoders.adapters import CustomEncoder, TimmEncoder, TorchvisionEncoder, adapt
from twofold.encoders.audio.encoder import FilterbankEncoder, SpeechEncoder, UtteranceEncoder
from twofold.encoders.base import Encoder, InputSpec, build_encoder_from_spec
from twofold.encoders.build import EncoderConfig, build_encoder
from twofold.encoders.resnet import ResNet
from twofold.encoders.weights import (
    FilePart,
    load_classifier,
    load_encoder,
    load_head,
    load_part,
    read_header,
    save_encoder,
)
from twofold.waves import Waves

__all__ = [
    "CustomEncoder",
    "Encoder",
    "EncoderConfig",
    "FilePart",
    "FilterbankEncoder",
    "InputSpec",
    "ResNet",
    "SpeechEncoder",
    "TimmEncoder",
    "TorchvisionEncoder",
    "UtteranceEncoder",
    "Waves",
    "adapt",
    "build_encoder",
    "build_encoder_from_spec",
    "load_classifier",
    "load_encoder",
    "load_head",
    "load_part",
    "read_header",
    "save_encoder",
]
