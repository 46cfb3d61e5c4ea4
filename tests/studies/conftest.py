"""What several tests of studies begin with."""

import numpy as np
import pytest
from tiny import images

SHARED = """
encoder: {name: resnet10, width: 0.125, stem: cifar}
training: {device: cpu, precision: fp32, threads: 1}
monitor: {every: 0}
"""


@pytest.fixture
def small(tmp_path):
    """A folder with `data.npz`, 64 images to train on and 24 to test on, and `shared.yaml`, options of small runs."""
    x, y = images()
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=images(24, seed=1)[0], y_test=y[:24])
    (tmp_path / "shared.yaml").write_text(SHARED)
    return tmp_path
