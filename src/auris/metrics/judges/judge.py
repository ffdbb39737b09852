"""Protocol of the judges of free-form answers, and their verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from auris.errors import UserError
from auris.text.answer_formats import Labels

if TYPE_CHECKING:
    from rich.progress import Progress

Answers = Sequence[tuple[Labels, str]]  # the labels of a chat row and the answer to it


class UnratedError(UserError):
    """An answer without points from a judge; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A judge's verdict on one answer.

    Attributes:
        stats: What the answer contributes to each of the judge's metrics.
        reference: The text that the answer was compared with.
        groups: The groups of rows in which it counts; empty for the group of its task.
        replies: AIR-Bench: the judge's replies.
        failures: AIR-Bench: why a reply gives no points, None where it does.
    """

    stats: Mapping[str, Sequence[Any]]
    reference: str
    groups: Sequence[str] = ()
    replies: Sequence[str] | None = None
    failures: Sequence[str | None] | None = None


class Judge(Protocol):
    """Judge that rates answers to chat rows."""

    @property
    def signature(self) -> str:
        """Which judge rates, and how; complete once answers have been judged."""
        ...

    @property
    def signatures(self) -> Mapping[str, str]:
        """The signature of each of the judge's metrics."""
        ...

    def __call__(self, labels: Labels, answer: str) -> float:
        """Return the points of a single answer; more is better.

        Raises:
            UnratedError: The answer has none.
        """
        ...

    def judge(self, answers: Answers, progress: Progress) -> list[Verdict | UnratedError]:
        """Return the verdict on each answer, or why there is none."""
        ...
