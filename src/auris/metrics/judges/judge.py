"""Interface of the judges that rate free-form answers, and the verdicts that judges return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from auris.errors import UserError
from auris.text.answer_formats import Labels

if TYPE_CHECKING:
    from rich.progress import Progress

Answers = Sequence[tuple[Labels, str]]  # for each dialogue, the labels of its row and the answer to judge


class UnratedError(UserError):
    """A judge gave no points to an answer; the message states the reason."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A judge's verdict on one answer.

    Attributes:
        stats: The statistics that the answer contributes to the judge's metrics, by metric.
        reference: The text with which the answer was compared.
        groups: The groups of rows in which the answer counts; if empty, it counts in the group of its task.
        replies: Only with AIR-Bench's judge: the judge's replies.
        failures: Only with AIR-Bench's judge: for each reply, the reason why it contains no valid points, or None.
    """

    stats: Mapping[str, Sequence[Any]]
    reference: str
    groups: Sequence[str] = ()
    replies: Sequence[str] | None = None
    failures: Sequence[str | None] | None = None


class Judge(Protocol):
    """Judge that rates answers in dialogues."""

    @property
    def signature(self) -> str:
        """The scale of the points and the name of the judge; read it after all answers have been judged."""
        ...

    @property
    def signatures(self) -> Mapping[str, str]:
        """The signatures of the judge's metrics, by metric."""
        ...

    def __call__(self, labels: Labels, answer: str) -> float:
        """Return the points of a single answer; more is better.

        Raises:
            UnratedError: The judge gives no points to the answer.
        """
        ...

    def judge(self, answers: Answers, progress: Progress) -> list[Verdict | UnratedError]:
        """Return a verdict on each answer, or an error with the reason if an answer has no points."""
        ...
