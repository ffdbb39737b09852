"""Benchmarks of speed and memory against named peers. Results are ratios of auris and the peer.

A benchmark is a module with `PRESETS` and one function: `compare(preset, **settings) -> Comparison` if there is a peer
to time, otherwise `report(preset, **settings) -> Report`. The keyword arguments are its settings on the command line,
and `CHOICES` lists the values of those settings that are not free text. `python -m benchmarks` checks that both sides
compute the same numbers, and times them only if they do. (`auris.evaluation.benchmarks` is something else: test sets.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


class SettingError(ValueError):
    """A setting does not exist or its value is invalid. The message says what was expected."""


def disagreements(errors: Mapping[str, float], limits: Mapping[str, float]) -> list[str]:
    """Return the names of the errors above their limits. A NaN counts as above."""
    return [name for name, error in errors.items() if not error <= limits[name]]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two implementations of the same computation, ready to be timed.

    Both have run once, to compute `errors`, so neither pays for its first call in the first round.

    Attributes:
        peer: Name and version of the peer.
        run_auris: Does the whole work once per call.
        run_peer: Does the same work with the peer.
        errors: Differences between the two results, by name.
        limits: The largest accepted value of each error.
        work: Amount of work of one call of `run_auris`, by unit; reported per CPU second.
        run_floor: Computes only the matrix products of `run_auris` (`benchmarks.floor`).
    """

    peer: str
    run_auris: Callable[[], object]
    run_peer: Callable[[], object]
    errors: Mapping[str, float]
    limits: Mapping[str, float]
    work: Mapping[str, float] = field(default_factory=dict)
    run_floor: Callable[[], object] | None = None

    def __post_init__(self) -> None:
        assert self.errors.keys() == self.limits.keys(), (self.errors, self.limits)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Measurements of a benchmark that does not time two sides against each other.

    Attributes:
        figures: The measurements. Those that `goals.TARGETS` names are numbers, or mappings with the key `median`.
        errors: As in `Comparison`.
        limits: As in `Comparison`.
        peer: Name and version of the peer, if there is one.
    """

    figures: Mapping[str, Any]
    errors: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    peer: str | None = None

    def __post_init__(self) -> None:
        assert self.errors.keys() == self.limits.keys(), (self.errors, self.limits)
