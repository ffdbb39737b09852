"""AIR-Bench's chat protocol: a judge gives points to a model's answer and to the reference, in both orders.

A judge is asked twice about each answer, once with the reference first and once with the answer first, because the
order may influence the points. The prompt, the decoding settings, the parsing of replies and the averages follow
score_chat.py and cal_score.py (OFA-Sys/AIR-Bench). cal_score.py ignores replies that it cannot parse; here they are
also counted by reason, and the metric `judged_strict` counts them as 0 points.
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
from auris.errors import UserError, shorten
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

# Group and part of each task. The score of the group `mixed` is the mean over its two parts (AIR-Bench's README).
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
AVERAGE = "average"  # name of the group whose score is the mean of the four groups
ORDERS = ("reference first", "reference second")
# The last part of each metric's signature. It states how points are compared and how failures (invalid replies) are
# treated.
POLICIES = {
    "judged_official": "failures dropped",
    "judged_strict": "failures 0",
    "judge_wins": "more points than the reference|failures dropped",
    "judge_flips": "who is ahead differs between the orders|failures dropped",
    "judge_failed": "not two integers from 1 to 10",
}
METRICS = tuple(POLICIES)
MAX_POINTS = 10
MAX_TOKENS = 1024  # as in score_chat.py
# Temperatures in score_chat.py. About half of the requests, chosen at random, use the second one.
PUBLISHED_TEMPERATURES = (1.0, 2.0)
_CHARACTERS_PER_TOKEN = 4  # rough value for English, for the cost estimate
_REPLY_TOKENS = 4  # length of a reply with two numbers, for the cost estimate


def build_prompt(labels: Labels, answer: str, order: int) -> str:
    """Return the prompt for the judge, with the texts in the order ORDERS[order].

    Placeholders are replaced one after another as in score_chat.py, so a placeholder that occurs in one of the inserted
    texts is also replaced.
    """
    first, second = (labels["answer_gt"], answer) if order == 0 else (answer, labels["answer_gt"])
    prompt = _PROMPT.replace("XAudioX", labels["meta_info"]).replace("XQuestionX", labels["question"])
    return prompt.replace("XAssistant1X", first).replace("XAssistant2X", second)


def check_labels(labels: Labels) -> str | None:
    """Return the reason why a row cannot be judged by this protocol; None if it can."""
    for key in ("meta_info", "question", "answer_gt"):
        if not isinstance(labels.get(key), str):
            return f"the row has no `{key}`, which AIR-Bench's judge needs"
    if labels.get("task_name") not in GROUPS:
        return f"`task_name` is {shorten(labels.get('task_name'))}, expected one of {', '.join(GROUPS)}"
    return None


# --- replies ------------------------------------------------------------------------------------------------------


def parse_reply(reply: str) -> tuple[int, int] | None:
    """Return the two numbers that cal_score.py parses in a reply; None if it cannot parse the reply.

    A reply must consist of two integers up to 10, separated by one space. As in the script, 0, negative numbers and
    full-width digits are accepted, but two spaces are not.
    """
    parts = reply.strip().replace("\n", "").split(" ")
    try:
        first, second = map(int, parts)
    except ValueError:
        return None
    return (first, second) if max(first, second) <= MAX_POINTS else None


def answer_points(reply: str, order: int, strict: bool = False) -> int | None:
    """Return the points that a reply gives to the judged answer, as opposed to the reference.

    Args:
        reply: The judge's reply.
        order: Index into ORDERS: 0 if the reference came first.
        strict: Accept only replies with two numbers of at least 1.

    Returns:
        The points; None if the reply is not accepted.
    """
    numbers = parse_reply(reply)
    if numbers is None or (strict and min(numbers) < 1):
        return None
    return numbers[1 - order]


_NUMBERS = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?![\w]|\.\d)")
_REFUSAL = re.compile(r"\b(?:sorry|apologi[sz]e|can(?:not|'t|’t)|unable|as an ai|not able to|refuse)\b", re.IGNORECASE)


def find_failure(reply: str) -> str | None:
    """Return the reason why `judged_strict` counts a reply as 0 points; None if the reply is valid."""
    if answer_points(reply, 0, strict=True) is not None:
        return None
    if not reply.strip():
        return "empty"
    if _REFUSAL.search(reply):
        return "refusal"
    numbers = [float(number) for number in _NUMBERS.findall(re.sub(r"/\s*10\b", "", reply))]
    has_prose = re.search(r"[^\W\d_]", reply) is not None
    if len(numbers) < 2:
        return "one number" if numbers else "no number"
    if len(numbers) > 2:
        return "prose" if has_prose else "more than two numbers"
    if max(numbers) > MAX_POINTS:
        return "a number above 10"
    if min(numbers) < 1:
        return "a number below 1"
    return "prose" if has_prose else "two numbers in another form"


def row_statistics(metric: str, replies: Sequence[str], task_name: str) -> list[Any]:
    """Return the statistics that a row contributes to a metric, given the judge's replies in both orders."""
    match metric:
        case "judged_official":
            return [GROUPS[task_name], *(answer_points(reply, order) for order, reply in enumerate(replies))]
        case "judged_strict":
            return [GROUPS[task_name], *(answer_points(reply, order, True) or 0 for order, reply in enumerate(replies))]
        case "judge_failed":
            return [float(sum(find_failure(reply) is not None for reply in replies)), float(len(replies))]
    parsed = ((order, parse_reply(reply)) for order, reply in enumerate(replies))
    # The answer's points minus the reference's points, for each reply that can be parsed.
    leads = [pair[1 - order] - pair[order] for order, pair in parsed if pair]
    if metric == "judge_wins":
        return [float(sum(lead > 0 for lead in leads)), float(len(leads))]
    are_both_parsed = len(leads) == len(ORDERS)
    n_outcomes = len({(lead > 0) - (lead < 0) for lead in leads})  # the answer wins, the reference wins, or a tie
    return [float(are_both_parsed and n_outcomes > 1), float(are_both_parsed)]


# --- the judge ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimate of the cost of the requests whose replies are not saved yet.

    Attributes:
        requests: Number of requests to send.
        total: Number of all requests, including those whose replies are saved.
        tokens_in: Number of tokens in the prompts.
        tokens_out: Number of tokens in the replies.
        cost: Cost in USD; None if no price is configured.
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
    """Judge for AIR-Bench's chat questions, built by `openai`, `recorded` or `stub`.

    Attributes:
        reply_log: Saved replies, and the endpoint that is asked for missing replies.
        model: Name of the model in the requests.
        temperature: A number, or `published`: 1 for a random half of the requests and 2 for the other half. The random
            choice depends only on `seed` and the prompt, so a request has the same temperature in every run.
        max_tokens: Maximum number of tokens in a reply.
        workers: Number of simultaneous requests.
        price: Price in USD per million tokens, as {input, output}; None if unknown.
        max_cost: Maximum cost in USD. If the estimate is higher, no request is sent. None: no limit.
        seed: Seed of the random choice of temperatures.
        models: Names of the models that have replied.
    """

    reply_log: ReplyLog
    _: KW_ONLY
    model: str
    temperature: float | str = "published"
    max_tokens: int = MAX_TOKENS
    workers: int = 1
    price: Mapping[str, float] | None = None
    max_cost: float | None = None
    seed: int = 0
    models: set[str] = field(default_factory=set, init=False)

    @property
    def signature(self) -> str:
        """The part of the signatures that describes the judge; read it after all answers have been judged."""
        models = "+".join(sorted(self.models)) or "nobody"
        judge = f"stand-in, {self.reply_log.stand_in}" if self.reply_log.stand_in else models
        temperature = self.temperature
        if temperature == "published":
            temperature = " or ".join(f"{value:g}" for value in PUBLISHED_TEMPERATURES)
        return f"1-{MAX_POINTS}|{judge}|temperature:{temperature}|both orders"

    @property
    def signatures(self) -> dict[str, str]:
        """The signatures of the judge's metrics, by metric."""
        return {metric: f"{metric}|{self.signature}|{policy}" for metric, policy in POLICIES.items()}

    def __call__(self, labels: Labels, answer: str) -> float:
        """Raise a UserError, because this judge cannot rate an answer without comparing it to a reference."""
        raise UserError("AIR-Bench's judge only compares answers with references: use judge=model or judge=rule")

    def requests(self, labels: Labels, answer: str) -> list[tuple[list[Message], Settings]]:
        """Return the two requests about an answer, one for each order."""
        requests: list[tuple[list[Message], Settings]] = []
        for order in range(len(ORDERS)):
            content, temperature = build_prompt(labels, answer, order), self.temperature
            if temperature == "published":
                temperature = PUBLISHED_TEMPERATURES[random.Random(f"{self.seed} {content}").random() < 0.5]
            settings = {"model": self.model, "temperature": float(temperature), "max_tokens": self.max_tokens}
            requests.append(([{"role": "user", "content": content}], settings))
        return requests

    def estimate(self, answers: Answers) -> Estimate:
        """Return an estimate of the cost of judging these answers."""
        requests = [request for labels, answer in answers for request in self.requests(labels, answer)]
        missing = [messages for messages, settings in requests if self.reply_log.find(messages, settings) is None]
        tokens_in = sum(len(messages[0]["content"]) for messages in missing) // _CHARACTERS_PER_TOKEN
        tokens_out = _REPLY_TOKENS * len(missing)
        cost = None
        if self.price is not None:
            cost = (tokens_in * self.price["input"] + tokens_out * self.price["output"]) / 1e6
        return Estimate(
            requests=len(missing), total=len(requests), tokens_in=tokens_in, tokens_out=tokens_out, cost=cost
        )

    def replies(self, answers: Answers, done: Callable[[], None] = lambda: None) -> list[tuple[str, ...]]:
        """Return the replies about each answer, in both orders. Only replies that are not saved yet are requested.

        Args:
            answers: The answers to judge.
            done: Function to call after each new reply.

        Raises:
            UserError: The cost estimate exceeds `max_cost`, a reply is not saved and there is no endpoint, or the
                endpoint fails.
        """
        if self.max_cost is not None:
            estimate = self.estimate(answers)
            if estimate.cost is None:
                raise UserError(
                    "judge.max_cost needs prices in USD per million tokens: set judge.price={input: N, output: N}"
                )
            if estimate.cost > self.max_cost:
                raise UserError(f"{estimate}: the cost exceeds judge.max_cost={self.max_cost}")
        requests = [self.requests(labels, answer) for labels, answer in answers]
        self.reply_log.ask_all([request for pair in requests for request in pair], workers=self.workers, done=done)
        replies = [[self.reply_log.ask(*request) for request in pair] for pair in requests]
        self.models |= {model for pair in replies for _, model in pair}
        return [tuple(reply for reply, _ in pair) for pair in replies]

    def judge(self, answers: Answers, progress: Progress) -> list[Verdict | UnratedError]:
        """Compare each answer with its reference in both orders. Print the cost estimate and the number of failures.

        Raises:
            UserError: None of the rows comes from AIR-Bench's chat part.
        """
        problems = [check_labels(labels) for labels, _ in answers]
        usable = [answer for answer, reason in zip(answers, problems, strict=True) if reason is None]
        if not usable:
            reason = problems[0] if problems else "there are no dialogues"
            raise UserError(
                f"none of the dialogues comes from AIR-Bench's chat part ({reason}): use judge=model, which rates any "
                "dialogue"
            )
        estimate = self.estimate(usable)
        print_plain(progress.console, f"judge: {estimate}")
        task = progress.add_task("judging", total=estimate.requests)
        all_replies = self.replies(usable, done=lambda: progress.advance(task))
        task_names = [labels["task_name"] for labels, _ in usable]
        has_all_groups = {GROUPS[name] for name in task_names} == set(GROUPS.values())
        verdicts = [
            Verdict(
                stats={metric: row_statistics(metric, replies, name) for metric in METRICS},
                reference=labels["answer_gt"],
                groups=_groups(name, has_all_groups),
                replies=list(replies),
                failures=[find_failure(reply) for reply in replies],
            )
            for (labels, _), name, replies in zip(usable, task_names, all_replies, strict=True)
        ]
        for line in _summary(verdicts):
            print_plain(progress.console, line)
        remaining = iter(verdicts)
        return [next(remaining) if reason is None else UnratedError(reason) for reason in problems]


def _groups(task_name: str, has_all_groups: bool) -> list[str]:
    """Return the groups in which a row counts. It counts in the average only if the data contain all groups."""
    group, _, part = GROUPS[task_name].partition("/")
    return [f"chat {name}" for name in dict.fromkeys((group, part, AVERAGE) if has_all_groups else (group, part))]


def _summary(verdicts: Sequence[Verdict]) -> list[str]:
    """Return two lines: the number of invalid replies by reason, and how often the order changes who is ahead."""
    failures = Counter(failure for verdict in verdicts for failure in verdict.failures or () if failure)
    kinds = ", ".join(f"{kind} {n}" for kind, n in failures.most_common())
    flipped, total = (int(sum(verdict.stats["judge_flips"][k] for verdict in verdicts)) for k in (0, 1))
    return [
        f"judge: {failures.total()} of {len(ORDERS) * len(verdicts)} replies without points"
        + (f": {kinds}" if kinds else ""),
        f"judge: the order of the two answers changes which one has more points on {flipped} of {total} rows that have "
        "points in both orders",
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
        recording: JSONL file in which the replies are saved.
        url: Address of the endpoint (`completions.Endpoint`).
        model: Name of the model.
        key_env: Environment variable that contains the endpoint's key.
        concurrency: Number of simultaneous requests.
        requests_per_minute: Maximum number of requests per minute; None for no limit.
        retries: Maximum number of times that a failed request is repeated.
        timeout: Time limit of a request in seconds.
        stand_in: Description of the server if it is not a language model; otherwise None.
        **settings: Other attributes of `AirBenchJudge`.
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
    return AirBenchJudge(_open_reply_log(recording, endpoint), model=model, workers=concurrency, **settings)


def recorded(*, recording: str, model: str | None, **settings: Any) -> AirBenchJudge:
    """Build a judge that only uses saved replies; `model=None` means the model that the file of replies names."""
    reply_log = _open_reply_log(recording, None)
    model = model or reply_log.head.get("settings", {}).get("model")
    if model is None:
        raise UserError(f"judge.recording={recording} does not name the model that replied: set judge.model=NAME")
    return AirBenchJudge(reply_log, model=model, **settings)


def stub(*, recording: str, **settings: Any) -> AirBenchJudge:
    """Build a judge that counts words instead of asking a language model (`Stub`), to test the rest of the pipeline."""
    return AirBenchJudge(_open_reply_log(recording, Stub()), model=_STUB.partition(",")[0], **settings)


def _open_reply_log(path: str, endpoint: ChatModel | None) -> ReplyLog:
    purpose = "AIR-Bench's judge of auris evaluate"
    return ReplyLog(Path(path), endpoint, purpose=purpose, config_key="judge", advice="or use no judge (judge=null)")


_STUB = "a script, which counts words and understands nothing"


class Stub:
    """Endpoint that counts words instead of asking a language model.

    The first answer gets 6 points. The second answer gets 6 points, plus the number of words that it shares with the
    audio's description, minus the number of words that the first answer shares with it, limited to 1 to 10 points.
    """

    stand_in: str | None = _STUB

    def complete(self, messages: Sequence[Message], settings: Settings | None = None) -> Reply:
        """Return points for the two answers in the last message."""
        # Parts of the prompt between its [headings]: 1 is the description, 3 and 5 are the answers.
        parts = re.split(r"\[[^\]\n]+\]\n", messages[-1]["content"])
        description, *answers = (set(re.findall(r"\w+", part.lower())) for part in (parts[1], parts[3], parts[5]))
        lead = len(answers[1] & description) - len(answers[0] & description)
        return Reply(f"6 {min(MAX_POINTS, max(1, 6 + lead))}", _STUB)
