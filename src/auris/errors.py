"""Errors that a user can act on. The command line shows them as one line; every other exception keeps its traceback."""

from __future__ import annotations

import errno
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

# Error numbers of failed writes that a user can fix: a full disk, no permission, a wrong path.
_FIXABLE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_FIXABLE_ERRNOS |= {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


class UserError(ValueError):
    """A mistake in the user's input. The message shows the value, what was expected and what to type instead."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or directory that the user named does not exist."""

    def __str__(self) -> str:
        return str(self.args[0])  # FileNotFoundError would show an errno


class RowError(UserError):
    """A row cannot be used."""


class AudioError(UserError):
    """Audio cannot be used: it cannot be decoded, is empty, or is too long for the encoder."""


class RunStopped(UserError, RuntimeError):  # noqa: N818  # a run may also stop for a reason that is not an error
    """A run cannot continue although its config is valid. The message gives the reason and the remedy."""


class UsageError(UserError):
    """The command line or config is incomplete or contradictory. Nothing was started."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return a phrase for a message that suggests the valid name closest to `name`; empty if none is close."""
    matches = get_close_matches(name, valid, n=1, cutoff=0.7)
    return f"did you mean {matches[0]}? " if matches else ""


def shorten(value: object, limit: int = 80) -> str:
    """Return the `repr` of a value as one line with at most `limit` characters; a longer one ends with "…"."""
    text = repr(value).replace("\n", " ")  # arrays have several lines
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def count(number: int, noun: str) -> str:
    """Return a number with its noun in the right form, such as "1 row" or "2,048 rows"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@contextmanager
def explain_write_errors(key: str, path: str | None) -> Generator[None]:
    """Turn an OSError that the user can fix (a full disk, no permission) into a UserError that names `key=path`.

    The error is raised unchanged if `path` is None or if it concerns a file outside the parent directory of `path`.
    """
    try:
        yield
    except OSError as error:
        if path is None or isinstance(error, UserError) or error.errno not in _FIXABLE_ERRNOS:
            raise
        if error.filename is not None and not Path(error.filename).resolve().is_relative_to(
            Path(path).resolve().parent
        ):
            raise
        raise UserError(f"{key}={path} cannot be written: {error}") from error
