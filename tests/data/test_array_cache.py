"""Arrays on disk: what is damaged is made anew, what cannot be written stops nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from auris.data import array_cache


def test_arrays_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.npz"
    assert array_cache.load(path) is None
    array_cache.save(path, numbers=np.arange(3), text="x")
    found = array_cache.load(path)
    assert found["numbers"].tolist() == [0, 1, 2] and str(found["text"]) == "x"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("left", [0, 1, 40, -1])
def test_damaged_arrays_are_reported_and_ignored(tmp_path: Path, left: int) -> None:
    path = tmp_path / "a.npz"
    array_cache.save(path, numbers=np.arange(100))
    path.write_bytes(path.read_bytes()[:left])
    with pytest.warns(UserWarning, match="a.npz cannot be read and is computed again"):
        assert array_cache.load(path) is None


def test_a_disk_that_takes_nothing_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="was not written"):
        array_cache.save(tmp_path / "file" / "a.npz", numbers=np.arange(3))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(array_cache.np, "savez", full)
    with pytest.warns(UserWarning, match="No space left"):
        array_cache.save(tmp_path / "b.npz", numbers=np.arange(3))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
