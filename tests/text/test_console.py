"""Progress in a log file."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from auris.text import console


def test_progress_without_a_terminal_is_a_line_a_minute(monkeypatch: pytest.MonkeyPatch):
    seconds, output = [0.0], io.StringIO()
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    for _ in console.track(range(5), "answering", console=Console(file=output)):
        seconds[0] += 40.0
    assert output.getvalue() == "answering: 2 of 5, about 2 min left\nanswering: 4 of 5, about 40 s left\n"
