"""Judges that give points to each answer of a dialogue: a language model, or a rule that replaces an annotator."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from auris.completions import Endpoint, Message, ReplyLog
from auris.errors import UserError
from auris.metrics.judges.judge import Answers, UnratedError, Verdict
from auris.metrics.normalize import contains
from auris.text import chat
from auris.text.answer_formats import Labels

if TYPE_CHECKING:
    from rich.progress import Progress

_INSTRUCTION = (
    "You rate answers of an assistant that hears audio. You are given the conversation, in which [audio] stands for "
    "what only the assistant has heard, an answer that is known to be right, and the assistant's answer. Rate how "
    "helpful, relevant and correct the assistant's answer is, from 1 (useless) to 10 (perfect). Reply with the number "
    "alone."
)
_OUT_OF = re.compile(r"\s*(?:/|\bout of\b)\s*10(?![\w/]|\.\d)", re.ASCII)  # matches the scale, as in 8/10
_NUMBER = re.compile(r"(?<![\w.])([-\u2212\u2013]?)(\d+(?:\.\d+)?)(?!\w|\.\d)", re.ASCII)


class PointsJudge(ABC):
    """Judge of single answers; a subclass gives the points of an answer in `__call__`."""

    @property
    @abstractmethod
    def signature(self) -> str:
        """Which judge rates, and how."""

    @abstractmethod
    def __call__(self, labels: Labels, answer: str) -> float:
        """Return the points of a single answer; more is better."""

    @property
    def signatures(self) -> dict[str, str]:
        """The signature of the metric `judged`."""
        return {"judged": self.signature}

    def judge(self, answers: Answers, progress: Progress) -> list[Verdict | UnratedError]:
        """Return the verdict on each answer, or why there is none."""
        return [self._verdict(*answer) for answer in progress.track(answers, description="rating")]

    def _verdict(self, labels: Labels, answer: str) -> Verdict | UnratedError:
        try:
            return Verdict(stats={"judged": [float(self(labels, answer)), 1.0]}, reference=labels["text"])
        except UnratedError as error:
            return error


# Beginnings of polite answers in the synthetic dialogues; `rate` gives points for them.
POLITE_OPENINGS = ("Sure.", "Of course.")


def rate(answer: str, key: str, language: str) -> float:
    """Return 1 to 9 points: four for the right content, two for a whole sentence, two for a polite opening."""
    is_right = contains(answer, key, language)
    is_sentence, is_polite = answer.endswith("."), answer.startswith(POLITE_OPENINGS)
    return 1.0 + 4 * is_right + 2 * is_sentence + 2 * is_polite


class RuleJudge(PointsJudge):
    """Rule-based judge that replaces an annotator of the synthetic dialogues (`rate`).

    It understands no meaning, so it must not be used for real data.
    """

    @property
    def signature(self) -> str:
        """The rule in short."""
        return "judged|1-9|stand-in, a rule: 4 right content, 2 sentence, 2 polite"

    def __call__(self, labels: Labels, answer: str) -> float:
        """Return the points of an answer, given the row's key or text."""
        return rate(answer, labels.get("key") or labels["text"], labels.get("language") or "en")


class LanguageModelJudge(PointsJudge):
    """Language model behind an OpenAI-compatible endpoint, whose replies are recorded and replayed.

    Args:
        recording: JSONL file of the replies.
        url: Address of the endpoint (`completions.Endpoint`); None replays the recording only.
        model: Name of the model.
        key_env: Environment variable that holds the key.
        temperature: Sampling temperature.

    Raises:
        UserError: There is no recording, or an endpoint without a model.
        MissingFileError: The recording does not exist and there is no endpoint.
    """

    def __init__(
        self,
        *,
        recording: str | None,
        url: str | None = None,
        model: str | None = None,
        key_env: str | None = None,
        temperature: float = 0.0,
    ):
        if recording is None:
            raise UserError("judge.recording=null: expected a JSONL file in which the judge's replies are recorded")
        endpoint = None
        if url:
            if not model:
                raise UserError(f"judge.url={url} needs the name of a model: set judge.model=NAME")
            endpoint = Endpoint(url=url, model=model, key_env=key_env, temperature=temperature, config_key="judge")
        what = "the judge of auris evaluate and auris prefer"
        self.record = ReplyLog(
            Path(recording), endpoint, purpose=what, config_key="judge", advice="or do without (judge=null)"
        )
        self.models: set[str] = set()

    @property
    def signature(self) -> str:
        """The scale and the models that have replied; complete once answers have been rated."""
        return f"judged|1-10|{'+'.join(sorted(self.models)) or 'nobody'}"

    def __call__(self, labels: Labels, answer: str) -> float:
        """Return the points of an answer.

        Raises:
            UnratedError: The reply contains no number from 1 to 10, or several.
        """
        reply, model = self.record.ask(request(labels, answer))
        self.models.add(model)
        numbers = {-float(n) if minus else float(n) for minus, n in _NUMBER.findall(_OUT_OF.sub("", reply))}
        if len(numbers) != 1 or not numbers <= set(range(1, 11)):
            raise UnratedError(f"the judge's reply {reply!r:.80} is not one number from 1 to 10")
        return numbers.pop()


def request(labels: Labels, answer: str) -> list[Message]:
    """Return the messages that ask a model to rate an answer to a chat row."""
    facts = {
        "conversation": [{"role": message["role"], "text": _to_text(message)} for message in labels["messages"][:-1]],
        "right answer": labels["text"],
        "assistant's answer": answer,
    }
    return [
        {"role": "system", "content": _INSTRUCTION},
        {"role": "user", "content": json.dumps(facts, ensure_ascii=False)},
    ]


def _to_text(message: chat.Message) -> str:
    """Return a message as text, with [audio] in place of a clip."""
    if isinstance(message["content"], str):
        return message["content"]
    return " ".join(part.get("text", "[audio]") for part in message["content"])
