"""A run small enough to repeat in a test: 64 shaded discs and bars of 16 x 16, a ResNet-10 an eighth wide."""

import numpy as np
import torch

from twofold.encoders import ResNet, save_encoder

OPTIONS = {
    "epochs": 4,
    "batch": 16,
    "seed": 3,
    "encoder": {"name": "resnet10", "width": 0.125, "stem": "cifar"},
    "head": {"out_dim": 16},
    "training": {"device": "cpu", "precision": "fp32", "log_every": 2, "checkpoint_every": 4},
    "monitor": {"every": 2},
}


def images(n=64, side=16, channels=3, seed=0):
    """n images of two kinds: [n, side, side, channels] uint8, and which kind each is."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    labels = np.arange(n) % 2
    out = np.empty((n, side, side, channels), np.uint8)
    for i in range(n):
        cy, cx = rng.uniform(0.3, 0.7, 2)
        shape = (y - cy) ** 2 + (x - cx) ** 2 < 0.06 if labels[i] else abs(x - cx) < 0.12
        shade = rng.uniform(0.4, 1.0, channels)
        out[i] = 255 * np.clip(shape[..., None] * shade + rng.uniform(0, 0.2, (side, side, channels)), 0, 1)
    return out, labels


def encoder_file(path):
    """A new encoder of images of 16 x 16, with a random start that is always the same, written to a file."""
    torch.manual_seed(0)
    save_encoder(path, ResNet(10, 0.125, stem="cifar").eval(), extra={"options": {"views": {"size": 16}}})
    return path


def as_arguments(options, prefix=""):
    """Nested options as command-line words."""
    words = []
    for key, value in options.items():
        if isinstance(value, dict):
            words += as_arguments(value, f"{prefix}{key}.")
        else:
            words += [f"--{prefix}{key}", str(value)]
    return words
