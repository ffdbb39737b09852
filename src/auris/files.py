"""File helpers: atomic replacement, JSON Lines, locks and digests. An interrupted write leaves no damaged file."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

# --- atomic replacement -------------------------------------------------------------------------------------------


@contextmanager
def open_atomic(path: Path, mode: str = "w", *, sync: bool = False) -> Generator[IO[Any]]:
    """Open a temporary file that is renamed to `path` when the block ends without an exception.

    Readers see either the old or the new file, never a part of it. Several processes may write the same path.

    Args:
        path: The final name. Its directory is created.
        mode: `w` (UTF-8 text) or `wb`.
        sync: Wait until the content and then the directory entry are on the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if sync:
            sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, sync: bool = False) -> None:
    """Replace a text file atomically."""
    with open_atomic(path, sync=sync) as file:
        file.write(text)


@contextmanager
def create_directory(path: Path) -> Generator[Path]:
    """Create a temporary directory that is renamed to `path` when the block ends without an exception.

    The temporary directory is called `path` + `.partial`. If an interrupted run has left one, it is removed first.
    `path` itself must be empty or not exist.
    """
    temporary = path.with_name(path.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    if path.exists():
        path.rmdir()
    temporary.rename(path)


def sync_directory(path: Path) -> None:
    """Wait until a directory's entries are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def tolerate_write_errors(path: Path) -> Generator[None]:
    """Turn an error in writing an optional file (a full disk, no permission) into a warning."""
    try:
        yield
    except OSError as error:
        warnings.warn(f"{path} was not written: {error}", stacklevel=3)


# --- JSON and YAML ------------------------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Any, *, indent: int | None = 1) -> None:
    """Replace a JSON file atomically.

    Values without a JSON type (paths, dates) are written as strings, NaN and infinity as null.
    """
    write_text(path, _format_json(content, indent))


def _format_json(content: Any, indent: int | None = None) -> str:
    options: dict[str, Any] = {"ensure_ascii": False, "indent": indent, "default": str, "allow_nan": False}
    try:
        return json.dumps(content, **options) + "\n"
    except ValueError:  # NaN and infinity are not JSON
        return json.dumps(_without_nonfinite(content), **options) + "\n"


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nonfinite(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nonfinite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_yaml(path: Path) -> Any:
    """Read a YAML file."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the loader in C takes a tenth of the time
    return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a YAML file atomically, with the keys in the order of `content`."""
    write_text(path, yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))


def read_metadata(path: Path) -> Any:
    """Read a JSON or YAML file of a run; return an empty dict if the file is missing, empty or not valid JSON."""
    try:
        return (read_json(path) if path.suffix == ".json" else read_yaml(path)) or {}
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def read_jsonl(path: Path) -> list[Any]:
    """Read a JSON Lines file. An unfinished last line is ignored: its writer was killed, or is still writing."""
    content, _, _ = path.read_bytes().rpartition(b"\n")  # bytes, because an unfinished line may end within a character
    return [json.loads(line) for line in content.split(b"\n") if line]


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Replace a JSON Lines file atomically, with values as in `write_json`."""
    write_text(path, "".join(map(_format_json, rows)))


def append_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Append rows in one write, after removing an unfinished last line that a killed process has left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        _drop_unfinished_line(file)
        file.write("".join(map(_format_json, rows)).encode())


def _drop_unfinished_line(file: IO[bytes]) -> None:
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - 1))
    if file.read() not in (b"\n", b""):
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


# --- locks --------------------------------------------------------------------------------------------------------


@contextmanager
def file_lock(path: Path, *, timeout: float | None = None, owner: str = "") -> Generator[None]:
    """Hold an exclusive lock on `path` until the block ends or the process dies.

    The lock is the kernel's `fcntl.lockf`. A lock of `flock`, which the filelock package uses, would be inherited by
    forked loader workers, and a worker that outlives its parent would keep it. If the file system does not support
    locks, the block runs with a warning.

    Args:
        path: The lock file. It remains after the lock is released.
        timeout: Seconds to wait for another process; None waits forever.
        owner: Text to write into the file, which identifies the holder to other processes.

    Raises:
        TimeoutError: Another process still holds the lock. The message is the `owner` text of that process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not _try_lock(file):
            if deadline is not None and time.monotonic() > deadline:
                file.seek(0)
                raise TimeoutError(file.read())
            time.sleep(0.05)
        if owner:
            file.truncate(0)
            file.write(owner)
            file.flush()
        yield


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # another process holds it; the type of error depends on the system
        return False
    except OSError as error:
        warnings.warn(f"{file.name} cannot be locked ({error}): do not start a second process here", stacklevel=4)
    return True


# --- digests ------------------------------------------------------------------------------------------------------


def digest(value: Any, length: int = 24) -> str:
    """Return a hexadecimal SHA-256 digest of a JSON value with sorted keys; other objects are converted to `str`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:length]


def file_digest(path: Path) -> str:
    """Return the hexadecimal SHA-256 digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
