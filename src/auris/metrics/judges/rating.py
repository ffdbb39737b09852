"""Judges that give points to answers in dialogues: a language model, or a rule for the synthetic dialogues."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from auris.completions import Endpoint, Message, ReplyLog
from auris.errors import UserError, shorten
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
_SCALE = re.compile(r"\s*(?:/|\bout of\b)\s*10(?![\w/]|\.\d)", re.ASCII)  # matches `/10` in the reply `8/10`
_NUMBER = re.compile(r"(?<![\w.])([-\u2212\u2013]?)(\d+(?:\.\d+)?)(?!\w|\.\d)", re.ASCII)


class PointsJudge(ABC):
    """Base class of judges that give points to single answers. A subclass implements `signature` and `__call__`."""

    @property
    @abstractmethod
    def signature(self) -> str:
        """Signature of the metric `judged`: the metric, the scale of the points, and the judge."""

    @abstractmethod
    def __call__(self, labels: Labels, answer: str) -> float:
        """Return the points of a single answer; more is better."""

    @property
    def signatures(self) -> dict[str, str]:
        """The signatures of the judge's metrics, by metric; the only metric is `judged`."""
        return {"judged": self.signature}

    def judge(self, answers: Answers, progress: Progress) -> list[Verdict | UnratedError]:
        """Return a verdict on each answer, or an error with the reason if an answer has no points."""
        return [self._verdict(*answer) for answer in progress.track(answers, description="rating")]

    def _verdict(self, labels: Labels, answer: str) -> Verdict | UnratedError:
        try:
            return Verdict(stats={"judged": [float(self(labels, answer)), 1.0]}, reference=labels["text"])
        except UnratedError as error:
            return error


# Beginnings of polite answers in the synthetic dialogues; `rate` gives points for these beginnings.
POLITE_OPENINGS = ("Sure.", "Of course.")


def rate(answer: str, required_words: str, language: str) -> float:
    """Return 1 to 9 points for an answer.

    Any answer gets 1 point. It gets 4 more if it contains the required words, 2 more if it ends with a full stop, and 2
    more if it begins politely.
    """
    is_right = contains(answer, required_words, language)
    is_sentence, is_polite = answer.endswith("."), answer.startswith(POLITE_OPENINGS)
    return 1.0 + 4 * is_right + 2 * is_sentence + 2 * is_polite


class RuleJudge(PointsJudge):
    """Judge that rates answers in the synthetic dialogues by a rule (`rate`), in place of a human annotator.

    The rule only compares strings, so it must not be used for real data.
    """

    @property
    def signature(self) -> str:
        """The rule in one line."""
        return "judged|1-9|stand-in, a rule: 4 right content, 2 sentence, 2 polite"

    def __call__(self, labels: Labels, answer: str) -> float:
        """Return the points of an answer. The words that it must contain are the label `key`, or else the text."""
        return rate(answer, labels.get("key") or labels["text"], labels.get("language") or "en")


class LanguageModelJudge(PointsJudge):
    """Language model behind an OpenAI-compatible endpoint. Replies are saved in a file and reused from there.

    Args:
        recording: JSONL file in which the replies are saved.
        url: Address of the endpoint (`completions.Endpoint`). None: only saved replies are used.
        model: Name of the model.
        key_env: Environment variable that contains the endpoint's key.
        temperature: Sampling temperature.

    Raises:
        UserError: `recording` is None, or there is a `url` but no `model`.
        MissingFileError: The file `recording` does not exist and there is no endpoint.
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
            raise UserError("judge.recording=null: expected a JSONL file in which the judge's replies are saved")
        endpoint = None
        if url:
            if not model:
                raise UserError(f"judge.url={url} needs the name of a model: set judge.model=NAME")
            endpoint = Endpoint(url=url, model=model, key_env=key_env, temperature=temperature, config_key="judge")
        purpose = "the judge of auris evaluate and auris prefer"
        self.reply_log = ReplyLog(
            Path(recording), endpoint, purpose=purpose, config_key="judge", advice="or use no judge (judge=null)"
        )
        self.models: set[str] = set()

    @property
    def signature(self) -> str:
        """The scale and the names of the models that have replied; read it after all answers have been rated."""
        return f"judged|1-10|{'+'.join(sorted(self.models)) or 'nobody'}"

    def __call__(self, labels: Labels, answer: str) -> float:
        """Return the points of an answer.

        Raises:
            UnratedError: The reply does not contain exactly one integer from 1 to 10.
        """
        reply, model = self.reply_log.ask(rating_messages(labels, answer))
        self.models.add(model)
        numbers = {-float(n) if minus else float(n) for minus, n in _NUMBER.findall(_SCALE.sub("", reply))}
        if len(numbers) != 1 or not numbers <= set(range(1, 11)):
            raise UnratedError(f"the judge's reply {shorten(reply)} does not contain exactly one integer from 1 to 10")
        return numbers.pop()


def rating_messages(labels: Labels, answer: str) -> list[Message]:
    """Return the messages that ask a model to rate an answer to a dialogue.

    Args:
        labels: The labels of the dialogue's row.
        answer: The answer to rate.
    """
    content = {
        "conversation": [{"role": message["role"], "text": _to_text(message)} for message in labels["messages"][:-1]],
        "right answer": labels["text"],
        "assistant's answer": answer,
    }
    return [
        {"role": "system", "content": _INSTRUCTION},
        {"role": "user", "content": json.dumps(content, ensure_ascii=False)},
    ]


def _to_text(message: chat.Message) -> str:
    """Return a message as text, with `[audio]` in place of each clip."""
    if isinstance(message["content"], str):
        return message["content"]
    return " ".join(part.get("text", "[audio]") for part in message["content"])
