"""Speed and memory against named peers, as ratios. A benchmark is a module with `PRESETS` and either
`compare(preset, **settings) -> Comparison` or, where nothing is raced, `report(preset, **settings) -> Report`.

The keyword arguments are its settings on the command line, `CHOICES` the values of those that are no free text.
`python -m benchmarks` checks that both sides compute the same, and times them only if they do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


class SettingError(ValueError):
    """A setting that does not exist or has no such value; the message says what was expected."""


def disagreements(errors: Mapping[str, float], limits: Mapping[str, float]) -> list[str]:
    """The names of the errors above their limits; an error that is no number counts as one."""
    return [name for name, error in errors.items() if not error <= limits[name]]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two ways to the same numbers, ready to be timed.

    Both sides have run once, for `errors`, so neither pays for its first call in the first round.

    Args:
        peer: who is compared with, with its version.
        ours, theirs: each call does the whole work again.
        errors: how far the two results are apart, by what is compared.
        limits: what each error may be at most.
        work: how much one call of ours does, by unit: reported per CPU second.
    """

    peer: str
    ours: Callable[[], object]
    theirs: Callable[[], object]
    errors: Mapping[str, float]
    limits: Mapping[str, float]
    work: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.errors.keys() == self.limits.keys(), (self.errors, self.limits)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Numbers that no clock gives.

    Args:
        figures: what is stored; those that `goals.TARGETS` names are numbers.
        errors, limits: as in `Comparison`.
        peer: who is compared with, if anybody.
    """

    figures: Mapping[str, Any]
    errors: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    peer: str | None = None

    def __post_init__(self) -> None:
        assert self.errors.keys() == self.limits.keys(), (self.errors, self.limits)
