"""AIR-Bench's chat protocol: a judge compares a model's answer with the reference, in both orders, in points.

Message, decoding, reading of the reply and averages are those of score_chat.py and cal_score.py (OFA-Sys/AIR-Bench).
The script drops a reply that it cannot read; here such replies are counted and named, and stand in a strict score too.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auris.completions import Endpoint, Message, Record, Reply, Settings
from auris.errors import UserError
from auris.metrics.judges.judge import Answers, Unrated, Verdict
from auris.text.answer_formats import Labels
from auris.text.console import print_plain

if TYPE_CHECKING:
    from rich.progress import Progress

_PROMPT = (
    "You are a helpful and precise assistant for checking the quality of the answer.\n"
    "[Detailed Audio Description]\nXAudioX\n[Question]\nXQuestionX\n"
    "[The Start of Assistant 1s Answer]\nXAssistant1X\n[The End of Assistant 1s Answer]\n"
    "[The Start of Assistant 2s Answer]\nXAssistant2X\n[The End of Assistant 2s Answer]\n[System]\n"
    "We would like to request your feedback on the performance of two AI assistants in response to the user question "
    "and audio description displayed above. AI assistants are provided with detailed audio descriptions and questions."
    "\nPlease rate the helpfulness, relevance, accuracy, and comprehensiveness of their responses. "
    "Each assistant receives an overall score on a scale of 1 to 10, where a higher score indicates better overall "
    "performance. Please output a single line containing only two values indicating the scores for Assistant 1 and 2, "
    "respectively. The two scores are separated by a space."
)

# By task, its part of a group: the mixed group is the mean of its two (AIR-Bench's README).
GROUPS = {
    "speech_QA": "speech/speech",
    "speech_dialogue_QA": "speech/speech",
    "sound_QA": "sound/sound",
    "sound_generation_QA": "sound/sound",
    "music_QA": "music/music",
    "music_generation_analysis_QA": "music/music",
    "speech_and_sound_QA": "mixed/speech_and_sound",
    "speech_and_music_QA": "mixed/speech_and_music",
}
AVERAGE = "average"  # of the four groups
ORDERS = ("reference first", "reference second")
POLICIES = {  # of each metric, as its signature names it
    "judged_official": "failures dropped",
    "judged_strict": "failures 0",
    "judge_wins": "more points than the reference|failures dropped",
    "judge_flips": "who is ahead differs between the orders|failures dropped",
    "judge_failed": "not two integers from 1 to 10",
}
METRICS = tuple(POLICIES)
HIGHEST = 10
MAX_TOKENS = 1024  # score_chat.py
PUBLISHED = (1.0, 2.0)  # temperatures of score_chat.py: the second for the half that a coin says
_CHARACTERS_PER_TOKEN = 4  # of English, for an estimate
_REPLY_TOKENS = 4  # two numbers


def message(labels: Labels, answer: str, order: int) -> str:
    """What the judge reads: `order` 0 has the reference first. Names of places are replaced one after another, as in
    the script, so one that stands in a text is replaced too."""
    first, second = (labels["answer_gt"], answer) if order == 0 else (answer, labels["answer_gt"])
    said = _PROMPT.replace("XAudioX", labels["meta_info"]).replace("XQuestionX", labels["question"])
    return said.replace("XAssistant1X", first).replace("XAssistant2X", second)


def problem(labels: Labels) -> str | None:
    """Why a row cannot be judged so, if it cannot."""
    for key in ("meta_info", "question", "answer_gt"):
        if not isinstance(labels.get(key), str):
            return f"no `{key}` for AIR-Bench's judge"
    if labels.get("task_name") not in GROUPS:
        return f"`task_name` is {labels.get('task_name')!r:.40}, expected one of {', '.join(GROUPS)}"
    return None


# --- replies ------------------------------------------------------------------------------------------------------


def parse(reply: str) -> tuple[int, int] | None:
    """The two numbers as cal_score.py reads them: exactly two integers with one space between, at most 10 each. So 0,
    -3 and full-width digits pass, and two spaces do not."""
    parts = reply.strip().replace("\n", "").split(" ")
    try:
        first, second = map(int, parts)
    except ValueError:
        return None
    return (first, second) if max(first, second) <= HIGHEST else None


def points(reply: str, order: int, strict: bool = False) -> int | None:
    """The model's points; None if the reply has none. Strict: numbers below 1 are none either."""
    found = parse(reply)
    if found is None or (strict and min(found) < 1):
        return None
    return found[1 - order]


_NUMBERS = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?![\w]|\.\d)")
_REFUSAL = re.compile(r"\b(?:sorry|apologi[sz]e|can(?:not|'t|’t)|unable|as an ai|not able to|refuse)\b", re.IGNORECASE)


def failure(reply: str) -> str | None:
    """What is wrong with a reply that the strict score has no points of; None for one that is as asked for."""
    if points(reply, 0, strict=True) is not None:
        return None
    if not reply.strip():
        return "empty"
    if _REFUSAL.search(reply):
        return "refusal"
    numbers = [float(number) for number in _NUMBERS.findall(re.sub(r"/\s*10\b", "", reply))]
    prose = re.search(r"[^\W\d_]", reply) is not None
    if len(numbers) < 2:
        return "one number" if numbers else "no number"
    if len(numbers) > 2:
        return "prose" if prose else "more than two numbers"
    if max(numbers) > HIGHEST:
        return "a number above 10"
    if min(numbers) < 1:
        return "a number below 1"
    return "prose" if prose else "two numbers in another form"


def count(metric: str, replies: Sequence[str], task_name: str) -> list[Any]:
    """What a row contributes to a metric, given the judge's replies in both orders."""
    match metric:
        case "judged_official":
            return [GROUPS[task_name], *(points(reply, order) for order, reply in enumerate(replies))]
        case "judged_strict":
            return [GROUPS[task_name], *(points(reply, order, True) or 0 for order, reply in enumerate(replies))]
        case "judge_failed":
            return [float(sum(failure(reply) is not None for reply in replies)), float(len(replies))]
    read = ((order, parse(reply)) for order, reply in enumerate(replies))
    # By how many points the model is ahead of the reference.
    leads = [pair[1 - order] - pair[order] for order, pair in read if pair]
    if metric == "judge_wins":
        return [float(sum(lead > 0 for lead in leads)), float(len(leads))]
    both = len(leads) == len(ORDERS)
    return [float(both and len({(lead > 0) - (lead < 0) for lead in leads}) > 1), float(both)]


# --- the judge ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is still to be asked: requests of how many, tokens, and their price in USD if one is known."""

    requests: int
    of: int
    tokens_in: int
    tokens_out: int
    cost: float | None

    def __str__(self) -> str:
        price = "" if self.cost is None else f", about {self.cost:.3g} USD"
        return (
            f"{self.requests} of {self.of} requests are still to be asked: about {self.tokens_in} tokens in and "
            f"{self.tokens_out} out (4 characters a token){price}"
        )


@dataclass(eq=False)
class Judge:
    """Rates answers to AIR-Bench's chat questions. Made by `openai`, `recorded` or `stub`.

    Attributes:
        record: the replies, and who gives those that are missing.
        model: who is asked.
        temperature: a number, or `published`: 1, and 2 for the half of the requests that a coin says. The coin is
            tossed by `seed` and what is asked, so that a request is the same in every run.
        max_tokens: of a reply.
        workers: how many requests at a time.
        price: USD per million tokens, {input, output}; null: unknown.
        max_cost: USD above which nothing is asked.
        models: who has answered.
    """

    record: Record
    _: KW_ONLY
    model: str
    temperature: float | str = "published"
    max_tokens: int = MAX_TOKENS
    workers: int = 1
    price: Mapping[str, float] | None = None
    max_cost: float | None = None
    seed: int = 0
    models: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        if isinstance(self.temperature, str) and self.temperature != "published":
            raise UserError(f"judge.temperature={self.temperature}: expected a number, or published")
        if self.workers < 1:
            raise UserError(f"judge.concurrency={self.workers}: expected 1 or more")

    @property
    def signature(self) -> str:
        """Who has judged and how: known when they have."""
        answered = "+".join(sorted(self.models)) or "nobody"
        who = f"stand-in, {self.record.stand_in}" if self.record.stand_in else answered
        hot = " or ".join(f"{one:g}" for one in PUBLISHED) if self.temperature == "published" else self.temperature
        return f"1-{HIGHEST}|{who}|temperature:{hot}|both orders"

    @property
    def signatures(self) -> dict[str, str]:
        """By metric."""
        return {metric: f"{metric}|{self.signature}|{policy}" for metric, policy in POLICIES.items()}

    def __call__(self, labels: Labels, answer: str) -> float:
        """No points of one answer alone: raises ValueError."""
        raise UserError("AIR-Bench's judge compares answers with AIR-Bench's own: use judge=model or judge=rule")

    def requests(self, labels: Labels, answer: str) -> list[tuple[list[Message], Settings]]:
        """The requests about an answer, one in each order."""
        asked = []
        for order in range(len(ORDERS)):
            content, temperature = message(labels, answer, order), self.temperature
            if temperature == "published":
                temperature = PUBLISHED[random.Random(f"{self.seed} {content}").random() < 0.5]
            settings = {"model": self.model, "temperature": float(temperature), "max_tokens": self.max_tokens}
            asked.append(([{"role": "user", "content": content}], settings))
        return asked

    def estimate(self, answers: Answers) -> Estimate:
        """What it takes to judge these answers."""
        asked = [request for labels, answer in answers for request in self.requests(labels, answer)]
        missing = [messages for messages, settings in asked if self.record.find(messages, settings) is None]
        tokens_in = sum(len(messages[0]["content"]) for messages in missing) // _CHARACTERS_PER_TOKEN
        tokens_out = _REPLY_TOKENS * len(missing)
        cost = None
        if self.price is not None:
            cost = (tokens_in * self.price["input"] + tokens_out * self.price["output"]) / 1e6
        return Estimate(requests=len(missing), of=len(asked), tokens_in=tokens_in, tokens_out=tokens_out, cost=cost)

    def replies(self, answers: Answers, done: Callable[[], None] = lambda: None) -> list[tuple[str, str]]:
        """The replies about each answer, in both orders; what is in the record is not asked for again.

        Raises ValueError for more than `max_cost`, a reply that is missing and cannot be asked for, or an endpoint
        that fails.
        """
        if self.max_cost is not None:
            estimate = self.estimate(answers)
            if estimate.cost is None:
                raise UserError("judge.max_cost needs judge.price={input: USD, output: USD}, per million tokens")
            if estimate.cost > self.max_cost:
                raise UserError(f"{estimate}: more than judge.max_cost={self.max_cost}")
        asked = [self.requests(labels, answer) for labels, answer in answers]
        self.record.ask_all([request for pair in asked for request in pair], workers=self.workers, done=done)
        replies = [[self.record.ask(*request) for request in pair] for pair in asked]
        self.models |= {model for pair in replies for _, model in pair}
        return [tuple(reply for reply, _ in pair) for pair in replies]

    def judge(self, answers: Answers, progress: Progress) -> list[Verdict | Unrated]:
        """Compare each answer with AIR-Bench's own, in both orders, and print the estimate and what failed.

        Raises:
            UserError: No row belongs to AIR-Bench's chat part.
        """
        problems = [problem(labels) for labels, _ in answers]
        usable = [answer for answer, reason in zip(answers, problems, strict=True) if reason is None]
        if not usable:
            reason = problems[0] if problems else "there are none"
            raise UserError(f"no dialogue is one of AIR-Bench's chat part ({reason}): judge=model rates any dialogue")
        estimate = self.estimate(usable)
        print_plain(progress.console, f"judge: {estimate}")
        task = progress.add_task("judging", total=estimate.requests)
        all_replies = self.replies(usable, done=lambda: progress.advance(task))
        names = [labels["task_name"] for labels, _ in usable]
        is_complete = {GROUPS[name] for name in names} == set(GROUPS.values())
        verdicts = [
            Verdict(
                stats={metric: count(metric, replies, name) for metric in METRICS},
                reference=labels["answer_gt"],
                groups=_groups(name, is_complete),
                replies=list(replies),
                failures=[failure(reply) for reply in replies],
            )
            for (labels, _), name, replies in zip(usable, names, all_replies, strict=True)
        ]
        for line in _summary(verdicts):
            print_plain(progress.console, line)
        waiting = iter(verdicts)
        return [next(waiting) if reason is None else Unrated(reason) for reason in problems]


def _groups(task_name: str, is_complete: bool) -> list[str]:
    """Return the groups that a row counts in; the average only if no group is missing in the data."""
    group, _, part = GROUPS[task_name].partition("/")
    return [f"chat {name}" for name in dict.fromkeys((group, part, AVERAGE) if is_complete else (group, part))]


def _summary(verdicts: Sequence[Verdict]) -> list[str]:
    """Return how many replies failed and why, and how often the order of the answers changes the verdict."""
    failures = Counter(failure for verdict in verdicts for failure in verdict.failures or () if failure)
    kinds = ", ".join(f"{kind} {n}" for kind, n in failures.most_common())
    flipped, read = (int(sum(verdict.stats["judge_flips"][k] for verdict in verdicts)) for k in (0, 1))
    return [
        f"judge: {failures.total()} of {len(ORDERS) * len(verdicts)} replies without points"
        + (f": {kinds}" if kinds else ""),
        f"judge: the order of the two answers turns the verdict on {flipped} of {read} rows read in both",
    ]


def openai(
    *,
    recording: str,
    url: str,
    model: str,
    key_env: str | None,
    concurrency: int,
    requests_per_minute: float | None,
    retries: int,
    timeout: float,
    stand_in: str | None,
    **settings: Any,
) -> Judge:
    """A judge behind an OpenAI-compatible endpoint (`completions.Endpoint`), with further `settings` of `Judge`."""
    limits = {"retries": retries, "timeout": timeout, "per_minute": requests_per_minute}
    endpoint = Endpoint(url=url, model=model, key_env=key_env, blank=True, stand_in=stand_in, setting="judge", **limits)
    return Judge(_record(recording, endpoint), model=model, workers=concurrency, **settings)


def recorded(*, recording: str, model: str | None, **settings: Any) -> Judge:
    """The judge of a recording, which answers only what it was asked; `model=None`: the one it was made with."""
    record = _record(recording, None)
    model = model or record.head.get("settings", {}).get("model")
    if model is None:
        raise UserError(f"judge.recording={recording} does not say which model was asked: judge.model=NAME")
    return Judge(record, model=model, **settings)


def stub(*, recording: str, **settings: Any) -> Judge:
    """A script in the place of a judge, to try everything else: it counts common words, and says that it does."""
    return Judge(_record(recording, Stub()), model=Stub.stand_in.partition(",")[0], **settings)


def _record(path: str, endpoint: Endpoint | Stub | None) -> Record:
    what = "AIR-Bench's judge of auris evaluate"
    return Record(Path(path), endpoint, what=what, setting="judge", otherwise="or do without (judge=null)")


class Stub:
    """6 points for the answer in the first place, and for the second as many more or less as it has more or fewer of
    the words of the description. It understands nothing."""

    stand_in = "a script, which counts words and understands nothing"

    def complete(self, messages: Sequence[Message], settings: Settings | None = None) -> Reply:
        parts = re.split(r"\[[^\]\n]+\]\n", messages[-1]["content"])  # before, description, question, answers
        described, *answers = (set(re.findall(r"\w+", part.lower())) for part in (parts[1], parts[3], parts[5]))
        ahead = len(answers[1] & described) - len(answers[0] & described)
        return Reply(f"6 {min(HIGHEST, max(1, 6 + ahead))}", self.stand_in)
