"""What a result depends on: versions of packages."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version(name: str) -> str:
    """The version of an installed package, or that there is none (a checkout that is run as it is, say)."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed as a package"
