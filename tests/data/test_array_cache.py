"""Tests of the disk cache: a damaged file is ignored, and a failed write is only a warning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from auris.data import array_cache


def test_saved_arrays_are_loaded_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.npz"
    assert array_cache.load(path) is None
    array_cache.save(path, numbers=np.arange(3), text="x")
    arrays = array_cache.load(path)
    assert arrays["numbers"].tolist() == [0, 1, 2] and str(arrays["text"]) == "x"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("n_bytes", [0, 1, 40, -1])
def test_a_truncated_file_is_a_warning_and_is_not_loaded(tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / "a.npz"
    array_cache.save(path, numbers=np.arange(100))
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.warns(UserWarning, match="a.npz cannot be read and is computed again"):
        assert array_cache.load(path) is None


def test_a_failed_write_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="was not written"):
        array_cache.save(tmp_path / "file" / "a.npz", numbers=np.arange(3))

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(array_cache.np, "savez", fail)
    with pytest.warns(UserWarning, match="No space left"):
        array_cache.save(tmp_path / "b.npz", numbers=np.arange(3))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
