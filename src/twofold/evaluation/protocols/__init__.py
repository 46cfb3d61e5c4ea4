"""The protocols of `twofold evaluate`, one file each; importing this registers them."""

from twofold.evaluation.protocols.ctc import Ctc
from twofold.evaluation.protocols.imagenet import ImageNet
from twofold.evaluation.protocols.knn import Knn
from twofold.evaluation.protocols.linear import Linear
from twofold.evaluation.protocols.verification import SpeakerVerification
from twofold.evaluation.protocols.weighted import Weighted

__all__ = ["Ctc", "ImageNet", "Knn", "Linear", "SpeakerVerification", "Weighted"]
