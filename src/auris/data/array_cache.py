"""Disk cache for arrays that are expensive to compute. Safe to delete."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from auris.files import open_atomic, tolerate_write_errors


def load(path: Path) -> dict[str, np.ndarray] | None:
    """Return the arrays in a file by name, or None if there is no file or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(f"{path} cannot be read and is computed again: {error}", stacklevel=2)
        return None


def save(path: Path, **arrays: Any) -> None:
    """Write arrays atomically, so that several runs may write the same file. A failure only gives a warning."""
    with tolerate_write_errors(path), open_atomic(path, "wb") as file:
        np.savez(file, **arrays)
