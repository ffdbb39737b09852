"""Speed against named peers, as ratios. A benchmark is a module with `PRESETS` and `compare(preset) -> Comparison`, or
without a peer with `report(preset)`, which prints and returns numbers.

`python -m benchmarks` checks that both sides compute the same, and times them only if they do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two ways to the same numbers, ready to be timed.

    Both sides have run once, for `errors`, so neither pays for its first call in the first round.

    Args:
        peer: who is compared with, with its version.
        ours, theirs: each call does the whole work again.
        errors: how far the two results are apart, by what is compared.
        limits: what each error may be at most.
    """

    peer: str
    ours: Callable[[], object]
    theirs: Callable[[], object]
    errors: Mapping[str, float]
    limits: Mapping[str, float]

    def __post_init__(self) -> None:
        assert self.errors.keys() == self.limits.keys(), (self.errors, self.limits)

    def disagreements(self) -> list[str]:
        """The names of the errors above their limits; an error that is no number counts as one."""
        return [name for name, error in self.errors.items() if not error <= self.limits[name]]
