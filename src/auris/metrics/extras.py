"""Packages that only some metrics need: optional extras of ours, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from auris.errors import UserError

# Package -> the extra that brings it (pyproject.toml).
EXTRAS = {"cn2an": "chinese", "zhconv": "chinese", "pyannote.metrics": "speakers", "scipy.optimize": "speakers"}


def require(package: str, what: str) -> ModuleType:
    """The package; ValueError saying what needs it and how to get it."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if not package.startswith(str(error.name)):
            raise  # it is there, and lacks something itself
        extra = EXTRAS[package]
        raise UserError(f"{what} needs {package}, which is not installed: pip install 'auris[{extra}]'") from None


def described(package: str) -> str:
    """Name and version for a score's signature, such as `zhconv1.4.3`; empty if it is not installed."""
    try:
        return package + version(package)
    except PackageNotFoundError:
        return ""
