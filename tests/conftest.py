"""Settings that every test shares."""

import os

# Tests run beside each other on few cores (pytest-xdist): one thread each is faster than a fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
