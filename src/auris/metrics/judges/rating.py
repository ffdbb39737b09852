"""Judges that give each answer to a dialogue points: a language model, or the rule that stands in for a person."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from auris.completions import Endpoint, Message, Record
from auris.errors import UserError
from auris.metrics.judges.judge import Answers, Judge, Unrated, Verdict
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
_OUT_OF = re.compile(r"\s*(?:/|\bout of\b)\s*10(?![\w/]|\.\d)", re.ASCII)  # names the scale, as in 8/10
_NUMBER = re.compile(r"(?<![\w.])([-\u2212\u2013]?)(\d+(?:\.\d+)?)(?!\w|\.\d)", re.ASCII)


class PointsJudge(Judge):
    """Judges each answer by its points, which a subclass gives in `__call__`."""

    @property
    def signatures(self) -> dict[str, str]:
        return {"judged": self.signature}

    def judge(self, answers: Answers, progress: Progress) -> list[Verdict | Unrated]:
        return [self._verdict(*answer) for answer in progress.track(answers, description="rating")]

    def _verdict(self, labels: Labels, answer: str) -> Verdict | Unrated:
        try:
            return Verdict(stats={"judged": [float(self(labels, answer)), 1.0]}, reference=labels["text"])
        except Unrated as error:
            return error


# How a polite answer in the synthetic dialogues begins; `rate` gives points for it.
POLITE_OPENINGS = ("Sure.", "Of course.")


def rate(answer: str, key: str, language: str) -> float:
    """Return 1 to 9 points: four for the right content, two for a whole sentence, two for a polite opening."""
    right = contains(answer, key, language)
    sentence, polite = answer.endswith("."), answer.startswith(POLITE_OPENINGS)
    return 1.0 + 4 * right + 2 * sentence + 2 * polite


class Rule(PointsJudge):
    """The stand-in for the annotator of the synthetic dialogues: `rate`. It reads no meaning: not for real data."""

    signature = "judged|1-9|stand-in, a rule: 4 right content, 2 sentence, 2 polite"

    def __call__(self, labels: Labels, answer: str) -> float:
        return rate(answer, labels.get("key") or labels["text"], labels.get("language") or "en")


class LanguageModel(PointsJudge):
    """A language model behind an OpenAI-compatible endpoint, whose replies are kept in `recording` and replayed.

    Args:
        recording: JSONL file with the replies.
        url, model, key_env, temperature: of the endpoint (`completions.Endpoint`); `url=None`: the recording alone.

    Raises ValueError for an endpoint without a model or a recording, FileNotFoundError for neither recording nor url.
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
            raise UserError("judge.recording=null: expected a JSONL file in which the judge's replies are kept")
        if url and not model:
            raise UserError(f"judge.url={url} needs the name of a model: judge.model=NAME")
        asked = {"url": url, "model": model, "key_env": key_env, "temperature": temperature}
        endpoint = Endpoint(**asked, setting="judge") if url else None
        what = {"what": "the judge of auris evaluate and auris prefer", "setting": "judge"}
        self.record = Record(Path(recording), endpoint, **what, otherwise="or do without (judge=null)")
        self.models: set[str] = set()

    @property
    def signature(self) -> str:
        """Which models have rated: known when they have."""
        return f"judged|1-10|{'+'.join(sorted(self.models)) or 'nobody'}"

    def __call__(self, labels: Labels, answer: str) -> float:
        """Points of an answer. Raises Unrated if the reply holds no number from 1 to 10, or several."""
        reply, model = self.record.ask(request(labels, answer))
        self.models.add(model)
        found = {-float(n) if minus else float(n) for minus, n in _NUMBER.findall(_OUT_OF.sub("", reply))}
        if len(found) != 1 or not found <= set(range(1, 11)):
            raise Unrated(f"the judge's reply {reply!r:.80} is not one number from 1 to 10")
        return found.pop()


def request(labels: Labels, answer: str) -> list[Message]:
    """What a model is asked about an answer to a chat row."""
    facts = {
        "conversation": [{"role": message["role"], "text": _shown(message)} for message in labels["messages"][:-1]],
        "right answer": labels["text"],
        "assistant's answer": answer,
    }
    return [
        {"role": "system", "content": _INSTRUCTION},
        {"role": "user", "content": json.dumps(facts, ensure_ascii=False)},
    ]


def _shown(message: chat.Message) -> str:
    """A message as text, [audio] where it holds a clip."""
    if isinstance(message["content"], str):
        return message["content"]
    return " ".join(part.get("text", "[audio]") for part in message["content"])
