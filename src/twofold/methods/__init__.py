"""What is trained and what one step is: one file a method, with its options. Who is imported here can be chosen."""

from twofold.methods.ablations import SimCLRAblation
from twofold.methods.base import (
    ClassifierMethod,
    ClassifierOutput,
    ContrastiveMethod,
    ContrastiveOutput,
    Inputs,
    Method,
    Output,
)
from twofold.methods.config import MethodConfig
from twofold.methods.memory import SimCLRMemory
from twofold.methods.moco import MoCo
from twofold.methods.simclr import SimCLR
from twofold.methods.speech_simclr import SpeechSimCLR

__all__ = [
    "ClassifierMethod",
    "ClassifierOutput",
    "ContrastiveMethod",
    "ContrastiveOutput",
    "Inputs",
    "Method",
    "MethodConfig",
    "MoCo",
    "Output",
    "SimCLR",
    "SimCLRAblation",
    "SimCLRMemory",
    "SpeechSimCLR",
]
