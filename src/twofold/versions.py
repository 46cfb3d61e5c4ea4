"""What a result depends on: versions of packages."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def package_version(name: str) -> str:
    """The version of an installed package, or that there is none; of this one that of the code that runs.

    What is installed may be another: a checkout that is run as it is, or one that was installed at an earlier version.
    """
    if name == "twofold":
        own: str = sys.modules["twofold"].__version__  # below every layer, so that it is not imported here
        return own
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed as a package"


def environment() -> dict[str, Any]:
    """Versions that a result depends on."""
    versions = {"python": platform.python_version()}
    for package in ("twofold", "torch", "torchvision", "numpy", "pillow", "scikit-learn", "accelerate"):
        versions[package] = package_version(package)
    return {"versions": versions, "machine": platform.machine(), "system": platform.system()}
