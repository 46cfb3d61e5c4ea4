"""What a result depends on: versions of packages."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def package_version(name: str) -> str:
    """The version of an installed package, or that there is none (a checkout that is run as it is, say)."""
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
