"""Errors that a user can act on. The command line shows them as one line; every other exception keeps its traceback."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user gave: the message shows the value, what was expected and what to type instead."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or directory that the user named does not exist."""

    def __str__(self) -> str:
        return str(self.args[0])  # FileNotFoundError would show an errno


class RowError(UserError):
    """A row that cannot be used; the message says why."""


class AudioError(UserError):
    """Audio that cannot be used: it cannot be decoded, is empty, or is longer than the encoder can take."""


class RunStopped(UserError, RuntimeError):
    """A run that cannot continue although its configuration is valid; the message says why and what can be done."""


class UsageError(UserError):
    """A command line or config that says too little or contradicts itself; nothing was started."""
