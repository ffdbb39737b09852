"""Import of packages that only some metrics need; pip extras of auris install them."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from auris.errors import UserError

# The extra (pyproject.toml) that installs each package.
EXTRAS = {"cn2an": "chinese", "zhconv": "chinese", "pyannote.metrics": "speakers", "scipy.optimize": "speakers"}


def require(package: str, user: str) -> ModuleType:
    """Import a package.

    Raises:
        UserError: It is not installed; the message names its `user` and the command that installs it.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if not package.startswith(str(error.name)):
            raise  # the package is there, but one of its own dependencies is not
        extra = EXTRAS[package]
        raise UserError(f"{user} needs {package}, which is not installed: pip install 'auris[{extra}]'") from None


def describe(package: str) -> str:
    """Return name and version for a signature, such as `zhconv1.4.3`; empty if the package is not installed."""
    try:
        return package + version(package)
    except PackageNotFoundError:
        return ""
