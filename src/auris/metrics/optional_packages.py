"""Packages that only some metrics and reports need. They are installed by pip extras, such as `auris[speakers]`."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from auris.errors import UserError

# For each package, the extra in pyproject.toml that installs it.
EXTRAS = {
    "zhconv": "chinese",
    "pyannote": "speakers",
    "scipy": "speakers",
    "jinja2": "reports",
    "matplotlib": "reports",
    "pandas": "reports",
}


def import_package(package: str, user: str) -> ModuleType:
    """Import a package.

    Args:
        package: The name of the package or module.
        user: What needs the package, for the error message.

    Raises:
        UserError: The package is not installed; the message states the command that installs it.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise explain_missing_module(error, user) from None


def explain_missing_module(error: ModuleNotFoundError, user: str) -> Exception:
    """Return a UserError that states the extra to install, or the given error if no extra installs the module."""
    extra = EXTRAS.get(str(error.name).partition(".")[0])
    if extra is None:
        return error
    return UserError(f"{user} needs {error.name}, which is not installed: pip install 'auris[{extra}]'")


def describe_version(package: str) -> str:
    """Return a package's name and version for a signature, such as `zhconv1.4.3`; empty if it is not installed."""
    try:
        return package + version(package)
    except PackageNotFoundError:
        return ""
