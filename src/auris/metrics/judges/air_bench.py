"""AIR-Bench's chat protocol: a judge gives points to a model's answer and to the reference, in both orders.

The prompt, the decoding settings, the parsing of replies and the averages are those of score_chat.py and cal_score.py
(OFA-Sys/AIR-Bench). The script drops replies that it cannot parse. Here they are also counted by reason, and a strict
score counts them as 0 points.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auris.completions import ChatModel, Endpoint, Message, Reply, ReplyLog, Settings
from auris.errors import UserError
from auris.metrics.judges.judge import Answers, UnratedError, Verdict
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

# Group and part of each task. The mixed group is the mean of its two parts (AIR-Bench's README).
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
AVERAGE = "average"  # name of the mean of the four groups
ORDERS = ("reference first", "reference second")
POLICIES = {  # the part of each metric's signature that is not the judge's
    "judged_official": "failures dropped",
    "judged_strict": "failures 0",
    "judge_wins": "more points than the reference|failures dropped",
    "judge_flips": "who is ahead differs between the orders|failures dropped",
    "judge_failed": "not two integers from 1 to 10",
}
METRICS = tuple(POLICIES)
HIGHEST = 10  # points
MAX_TOKENS = 1024  # score_chat.py
PUBLISHED = (1.0, 2.0)  # temperatures of score_chat.py: the second is used for a random half of the requests
_CHARACTERS_PER_TOKEN = 4  # rough value for English, for the estimate
_REPLY_TOKENS = 4  # two numbers


def build_prompt(labels: Labels, answer: str, order: int) -> str:
    """Return the judge's prompt; `order` 0 has the reference first.

    Placeholders are replaced one after another, as in the script, so a placeholder that occurs in a text is replaced
    too.
    """
    first, second = (labels["answer_gt"], answer) if order == 0 else (answer, labels["answer_gt"])
    prompt = _PROMPT.replace("XAudioX", labels["meta_info"]).replace("XQuestionX", labels["question"])
    return prompt.replace("XAssistant1X", first).replace("XAssistant2X", second)


def check_labels(labels: Labels) -> str | None:
    """Return why a row cannot be judged by this protocol, or None."""
    for key in ("meta_info", "question", "answer_gt"):
        if not isinstance(labels.get(key), str):
            return f"no `{key}`, which AIR-Bench's judge needs"
    if labels.get("task_name") not in GROUPS:
        return f"`task_name` is {labels.get('task_name')!r:.40}, expected one of {', '.join(GROUPS)}"
    return None


# --- replies ------------------------------------------------------------------------------------------------------


def parse(reply: str) -> tuple[int, int] | None:
    """Return the two numbers as cal_score.py parses them, or None.

    A reply must be two integers up to 10, separated by one space. Thus 0, -3 and full-width digits are accepted, two
    spaces are not.
    """
    parts = reply.strip().replace("\n", "").split(" ")
    try:
        first, second = map(int, parts)
    except ValueError:
        return None
    return (first, second) if max(first, second) <= HIGHEST else None


def points(reply: str, order: int, strict: bool = False) -> int | None:
    """Return the model's points; None if the reply cannot be parsed or, with `strict`, has a number below 1."""
    numbers = parse(reply)
    if numbers is None or (strict and min(numbers) < 1):
        return None
    return numbers[1 - order]


_NUMBERS = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?![\w]|\.\d)")
_REFUSAL = re.compile(r"\b(?:sorry|apologi[sz]e|can(?:not|'t|’t)|unable|as an ai|not able to|refuse)\b", re.IGNORECASE)


def find_failure(reply: str) -> str | None:
    """Return what is wrong with a reply that gives no points in the strict score; None if it is valid."""
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
    """Return what a row contributes to a metric, given the judge's replies in both orders."""
    match metric:
        case "judged_official":
            return [GROUPS[task_name], *(points(reply, order) for order, reply in enumerate(replies))]
        case "judged_strict":
            return [GROUPS[task_name], *(points(reply, order, True) or 0 for order, reply in enumerate(replies))]
        case "judge_failed":
            return [float(sum(find_failure(reply) is not None for reply in replies)), float(len(replies))]
    parsed = ((order, parse(reply)) for order, reply in enumerate(replies))
    # By how many points the model is ahead of the reference.
    leads = [pair[1 - order] - pair[order] for order, pair in parsed if pair]
    if metric == "judge_wins":
        return [float(sum(lead > 0 for lead in leads)), float(len(leads))]
    has_both = len(leads) == len(ORDERS)
    return [float(has_both and len({(lead > 0) - (lead < 0) for lead in leads}) > 1), float(has_both)]


# --- the judge ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimate of the requests that are not in the recording yet.

    Attributes:
        requests: Number of requests to send.
        total: Number of all requests, with those in the recording.
        tokens_in: Tokens of the prompts.
        tokens_out: Tokens of the replies.
        cost: Price in USD; None if no price is configured.
    """

    requests: int
    total: int
    tokens_in: int
    tokens_out: int
    cost: float | None

    def __str__(self) -> str:
        price = "" if self.cost is None else f", about {self.cost:.3g} USD"
        return (
            f"{self.requests} of {self.total} requests to send: about {self.tokens_in} input tokens and "
            f"{self.tokens_out} output tokens (4 characters per token){price}"
        )


@dataclass(eq=False)
class AirBenchJudge:
    """Judge of AIR-Bench's chat questions, built by `openai`, `recorded` or `stub`.

    Attributes:
        record: Recorded replies, and the endpoint that gives the missing ones.
        model: Name of the model in the requests.
        temperature: A number, or `published`: 1 for a random half of the requests and 2 for the others. The draw
            depends on `seed` and the prompt only, so a request is the same in every run.
        max_tokens: Maximum length of a reply.
        workers: Number of simultaneous requests.
        price: USD per million tokens, {input, output}; None if unknown.
        max_cost: USD. If the estimate is higher, no request is sent.
        seed: Seed of the temperatures.
        models: Names of the models that have replied.
    """

    record: ReplyLog
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
        """The judge's part of the signatures; complete once replies have been read."""
        models = "+".join(sorted(self.models)) or "nobody"
        judge = f"stand-in, {self.record.stand_in}" if self.record.stand_in else models
        temperature = self.temperature
        if temperature == "published":
            temperature = " or ".join(f"{value:g}" for value in PUBLISHED)
        return f"1-{HIGHEST}|{judge}|temperature:{temperature}|both orders"

    @property
    def signatures(self) -> dict[str, str]:
        """The signature of each metric."""
        return {metric: f"{metric}|{self.signature}|{policy}" for metric, policy in POLICIES.items()}

    def __call__(self, labels: Labels, answer: str) -> float:
        """Raise UserError, because this judge cannot rate a single answer."""
        raise UserError("AIR-Bench's judge only compares answers with references: use judge=model or judge=rule")

    def requests(self, labels: Labels, answer: str) -> list[tuple[list[Message], Settings]]:
        """Return the requests about an answer, one in each order."""
        requests: list[tuple[list[Message], Settings]] = []
        for order in range(len(ORDERS)):
            content, temperature = build_prompt(labels, answer, order), self.temperature
            if temperature == "published":
                temperature = PUBLISHED[random.Random(f"{self.seed} {content}").random() < 0.5]
            settings = {"model": self.model, "temperature": float(temperature), "max_tokens": self.max_tokens}
            requests.append(([{"role": "user", "content": content}], settings))
        return requests

    def estimate(self, answers: Answers) -> Estimate:
        """Return what judging these answers costs."""
        requests = [request for labels, answer in answers for request in self.requests(labels, answer)]
        missing = [messages for messages, settings in requests if self.record.find(messages, settings) is None]
        tokens_in = sum(len(messages[0]["content"]) for messages in missing) // _CHARACTERS_PER_TOKEN
        tokens_out = _REPLY_TOKENS * len(missing)
        cost = None
        if self.price is not None:
            cost = (tokens_in * self.price["input"] + tokens_out * self.price["output"]) / 1e6
        return Estimate(
            requests=len(missing), total=len(requests), tokens_in=tokens_in, tokens_out=tokens_out, cost=cost
        )

    def replies(self, answers: Answers, done: Callable[[], None] = lambda: None) -> list[tuple[str, ...]]:
        """Return the replies about each answer, in both orders; only those not in the record are requested.

        Args:
            answers: The answers to judge.
            done: Called after each new reply.

        Raises:
            UserError: The estimate exceeds `max_cost`, a reply is missing without an endpoint, or the endpoint fails.
        """
        if self.max_cost is not None:
            estimate = self.estimate(answers)
            if estimate.cost is None:
                raise UserError("judge.max_cost needs judge.price={input: USD, output: USD}, per million tokens")
            if estimate.cost > self.max_cost:
                raise UserError(f"{estimate}: more than judge.max_cost={self.max_cost}")
        requests = [self.requests(labels, answer) for labels, answer in answers]
        self.record.ask_all([request for pair in requests for request in pair], workers=self.workers, done=done)
        replies = [[self.record.ask(*request) for request in pair] for pair in requests]
        self.models |= {model for pair in replies for _, model in pair}
        return [tuple(reply for reply, _ in pair) for pair in replies]

    def judge(self, answers: Answers, progress: Progress) -> list[Verdict | UnratedError]:
        """Compare each answer with its reference in both orders, and print the cost estimate and the failures.

        Raises:
            UserError: No row belongs to AIR-Bench's chat part.
        """
        problems = [check_labels(labels) for labels, _ in answers]
        usable = [answer for answer, reason in zip(answers, problems, strict=True) if reason is None]
        if not usable:
            reason = problems[0] if problems else "there are no dialogues"
            raise UserError(
                f"no dialogue is one of AIR-Bench's chat part ({reason}): use judge=model, which rates any dialogue"
            )
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
                failures=[find_failure(reply) for reply in replies],
            )
            for (labels, _), name, replies in zip(usable, names, all_replies, strict=True)
        ]
        for line in _summary(verdicts):
            print_plain(progress.console, line)
        remaining = iter(verdicts)
        return [next(remaining) if reason is None else UnratedError(reason) for reason in problems]


def _groups(task_name: str, is_complete: bool) -> list[str]:
    """Return the groups that a row counts in; the average only if no group is missing in the data."""
    group, _, part = GROUPS[task_name].partition("/")
    return [f"chat {name}" for name in dict.fromkeys((group, part, AVERAGE) if is_complete else (group, part))]


def _summary(verdicts: Sequence[Verdict]) -> list[str]:
    """Return lines that tell how many replies failed and why, and how often the order changes the verdict."""
    failures = Counter(failure for verdict in verdicts for failure in verdict.failures or () if failure)
    kinds = ", ".join(f"{kind} {n}" for kind, n in failures.most_common())
    flipped, total = (int(sum(verdict.stats["judge_flips"][k] for verdict in verdicts)) for k in (0, 1))
    return [
        f"judge: {failures.total()} of {len(ORDERS) * len(verdicts)} replies without points"
        + (f": {kinds}" if kinds else ""),
        f"judge: the order of the two answers changes the verdict on {flipped} of {total} rows with points in both",
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
) -> AirBenchJudge:
    """Build a judge that asks an OpenAI-compatible endpoint.

    Args:
        recording: JSONL file of the replies.
        url: Address of the endpoint (`completions.Endpoint`).
        model: Name of the model.
        key_env: Environment variable that holds the key.
        concurrency: Number of simultaneous requests.
        requests_per_minute: Limit of the rate; None for no limit.
        retries: How often a failed request is repeated.
        timeout: Seconds.
        stand_in: What replies if it is not a language model.
        **settings: Further attributes of `AirBenchJudge`.
    """
    endpoint = Endpoint(
        url=url,
        model=model,
        key_env=key_env,
        retries=retries,
        timeout=timeout,
        per_minute=requests_per_minute,
        accept_empty=True,
        stand_in=stand_in,
        config_key="judge",
    )
    return AirBenchJudge(_record(recording, endpoint), model=model, workers=concurrency, **settings)


def recorded(*, recording: str, model: str | None, **settings: Any) -> AirBenchJudge:
    """Build a judge that only replays a recording; `model=None` takes the model of the recording."""
    record = _record(recording, None)
    model = model or record.head.get("settings", {}).get("model")
    if model is None:
        raise UserError(f"judge.recording={recording} does not name the model that replied: set judge.model=NAME")
    return AirBenchJudge(record, model=model, **settings)


def stub(*, recording: str, **settings: Any) -> AirBenchJudge:
    """Build a judge whose replies come from a script (`Stub`), for testing everything else."""
    return AirBenchJudge(_record(recording, Stub()), model=_STUB.partition(",")[0], **settings)


def _record(path: str, endpoint: ChatModel | None) -> ReplyLog:
    what = "AIR-Bench's judge of auris evaluate"
    return ReplyLog(Path(path), endpoint, purpose=what, config_key="judge", advice="or do without (judge=null)")


_STUB = "a script, which counts words and understands nothing"


class Stub:
    """Endpoint that replies without a language model.

    The first answer gets 6 points. The second gets one point more or less for each word of the description that it has
    more or less than the first.
    """

    stand_in: str | None = _STUB

    def complete(self, messages: Sequence[Message], settings: Settings | None = None) -> Reply:
        """Return the points of the two answers in the last message."""
        parts = re.split(r"\[[^\]\n]+\]\n", messages[-1]["content"])  # before, description, question, answers
        description, *answers = (set(re.findall(r"\w+", part.lower())) for part in (parts[1], parts[3], parts[5]))
        lead = len(answers[1] & description) - len(answers[0] & description)
        return Reply(f"6 {min(HIGHEST, max(1, 6 + lead))}", _STUB)
