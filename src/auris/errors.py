"""Errors that a user can act on. The command line shows them as one line; every other exception keeps its traceback."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

_MENDABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_MENDABLE |= {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a part of a message that suggests the known name closest to a misspelt one; empty if none is close."""
    close = get_close_matches(name, known, n=1, cutoff=0.7)
    return f"did you mean {close[0]}? " if close else ""


@contextmanager
def user_output(key: str, path: str | None) -> Iterator[None]:
    """Turn an OSError that the user can mend (a full disk, no permission) into a UserError that names `key=path`.

    An error about a file elsewhere passes: it is not about this path. So does every error without a path.
    """
    try:
        yield
    except OSError as error:
        if path is None or isinstance(error, UserError) or error.errno not in _MENDABLE:
            raise
        if error.filename is not None and not Path(error.filename).resolve().is_relative_to(
            Path(path).resolve().parent
        ):
            raise
        raise UserError(f"{key}={path} cannot be written: {error}") from error
