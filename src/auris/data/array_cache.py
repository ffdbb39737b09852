"""Arrays that are kept because they take long to make: nothing depends on their being there.

What cannot be read is made anew; what cannot be written is made again the next time, and said.
"""

from __future__ import annotations

import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np


def load(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays in a file; None if there is none, or none that is whole."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(f"{path} cannot be read ({error}) and is made anew", stacklevel=2)
        return None


def save(path: Path, **arrays: Any) -> None:
    """Keep arrays in one move: several runs may make the same ones at once, on several machines."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, suffix=".tmp", delete=False) as partial:
            try:
                np.savez(partial, **arrays)
            except OSError:
                Path(partial.name).unlink()
                raise
        Path(partial.name).replace(path)
    except OSError as error:
        warnings.warn(f"{path} cannot be written ({error}): it is made again the next time", stacklevel=2)
