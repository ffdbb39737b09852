"""`auris prefer`: preference pairs from a model's own answers, ranked by a metric or a judge, or from annotated files.

Rows that give no pair are counted by reason. The counts are printed, and written to a statistics file next to the
pairs. The statistics include the lengths of the answers, because a model learns to give long answers if the chosen
answer is usually the longer one.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from auris import config as configs
from auris.config import Config
from auris.data.batches import pack_by_length
from auris.data.lengths import measure_lengths
from auris.data.manifests import read_manifests
from auris.data.rows import EQUAL_ANSWERS, Row, answer_language, are_equal, is_scored, row_seed
from auris.errors import AudioError, UserError
from auris.evaluation.answering import Request, answer_share, build_samples, split_into_shares
from auris.files import write_json, write_jsonl
from auris.inference import load as pretrained
from auris.metrics import measures
from auris.metrics.judges.judge import Judge, UnratedError
from auris.metrics.measures import metric_in_language, row_stats
from auris.metrics.statistics import bootstrap_interval
from auris.text.chat import escape_audio_marks, map_audios
from auris.text.console import numbers_table, print_plain, track

METRICS = ("wer", "accuracy", "contains", "judged")

# Reasons why the answers to a row give no pair.
TIE = "all answers are equally good"
CLOSE = "the best and the worst answer are closer than the margin"
EMPTY = "fewer than two answers are not empty"

# Labels of the answered row that a preference row does not keep.
_REPLACED_LABELS = {"task", "text", "messages", "chosen", "rejected"}
_MAX_LISTED = 20  # largest number of unusable rows that are listed


@dataclass(frozen=True)
class Pair:
    """Two answers to a row. The optional attributes are None for a pair from an annotated file.

    Attributes:
        row: The row with the question.
        chosen: The better answer.
        rejected: The worse answer.
        metric: Name of the metric that ranked the answers.
        scores: The scores of the chosen and the rejected answer.
        answered_by: Name of the run whose model gave the answers.
        judge: Signature of the judge that ranked the answers, which states how it is asked; None without a judge.
    """

    row: Row
    chosen: str
    rejected: str
    metric: str | None = None
    scores: tuple[float, float] | None = None
    answered_by: str | None = None
    judge: str | None = None

    def to_json(self, directory: Path) -> dict[str, object]:
        """Return the pair as a row of a manifest: question, answers, and the other labels of the answered row.

        Args:
            directory: Directory of the manifest, to which the paths of audio files are relative.
        """
        labels = self.row.labels
        # The last message of a dialogue is its correct answer.
        question = labels["messages"][:-1] if labels["task"] == "chat" else labels["messages"]
        clips = iter(self.row.clips)
        messages = map_audios(lambda _: os.path.relpath(str(next(clips).path), directory), question)
        ranking = {name: getattr(self, name) for name in ("metric", "scores", "answered_by", "judge")}
        return {
            "id": self.row.id,
            "messages": escape_audio_marks(messages),
            "chosen": self.chosen,
            "rejected": self.rejected,
            **{key: value for key, value in labels.items() if key not in _REPLACED_LABELS},
            **{key: value for key, value in ranking.items() if value is not None},
        }


@dataclass(frozen=True)
class Outcome:
    """The pairs, and the reasons why other rows give no pair.

    Attributes:
        pairs: The pairs.
        without_pair: Number of usable rows that give no pair, by reason.
        unusable: Reasons why rows cannot be used, by row id.
    """

    pairs: Sequence[Pair]
    without_pair: Mapping[str, int]
    unusable: Mapping[str, str]


# --- a model's own answers ----------------------------------------------------------------------------------------


def sample_pairs(config: Config, console: Console) -> Outcome:
    """Sample answers of a model to each dialogue of `data.test`, and pair the best with the worst answer."""
    _check_config(config)
    judge = configs.build(config["judge"])
    model = pretrained.load(config["checkpoint"], which=config["which"], device=config["accelerator"])
    model.check_can_respond()
    generation = model.settings(chat=True, **config["generation"])
    if not generation.do_sample:
        raise UserError("generation.do_sample=false: expected true, otherwise all answers to a row are the same")
    console.print(f"{config['n_samples']} answers to each row with {generation}", highlight=False)
    test = config["data"]["test"]
    manifests = read_manifests(test if isinstance(test, list) else [test], key="data.test")
    samples = build_samples(model, "chat", config["long_audio"])
    request = Request(
        kind="chat", manifests=manifests, windows={}, samples=samples, generation=generation, seed=config["seed"]
    )
    rows = request.rows
    lengths = measure_lengths(manifests, samples, Path(model.config["data"]["cache_dir"]))
    unusable = {rows[number].id: reason for number, reason in lengths.problems.items()}
    for number in np.flatnonzero(lengths.tokens):
        row = rows[number]
        has_question = is_scored(row)  # plain text and preferences have none
        no_question = None if has_question else f"task {row.labels['task']!r} has no question: expected dialogues"
        if problem := no_question or _audio_problem(row):
            unusable[row.id] = problem
            lengths.tokens[number] = 0  # no pack contains the row
    pairs: dict[int, Pair] = {}
    without_pair: Counter[str] = Counter()
    # Lists of a few packs that are answered together.
    chunks = split_into_shares(pack_by_length(lengths, config["token_budget"]))
    for chunk in track(chunks, "answering", console=console):
        answers: dict[int, list[str]] = {}
        for draw in range(config["n_samples"]):
            # The seed is the same for all chunks, so that a row's answers do not depend on its pack.
            seeded_request = replace(request, seed=row_seed(config["seed"], draw, ""))
            responses, skipped = answer_share(model, seeded_request, rows, chunk)
            unusable |= skipped
            for number, (text, *_) in responses.items():
                answers.setdefault(number, []).append(str(text))
        for number, texts in answers.items():
            try:
                metric, scores = score_answers(samples.scored_row(rows[number]), texts, config["metric"], judge)
            except UnratedError as error:
                unusable[rows[number].id] = str(error)
                continue
            choice = choose_pair(texts, metric, scores, config["margin"])
            if any(map(math.isnan, scores)):
                unusable[rows[number].id] = f"{metric} has nothing to count in the row's correct answer"
            elif isinstance(choice, str):
                without_pair[choice] += 1
            else:
                best, worst = choice
                ranking = (metric, (scores[best], scores[worst]), model.name, judge and judge.signature)
                pairs[number] = Pair(rows[number], texts[best], texts[worst], *ranking)
    return Outcome([pairs[number] for number in sorted(pairs)], without_pair, unusable)


def _audio_problem(row: Row) -> str | None:
    """Return the reason why a pair cannot refer to the audio of a row; None if it can."""
    are_files = all(isinstance(clip.path, Path) for clip in row.clips)
    return None if are_files else "its audio is in a Parquet shard, but a pair needs the path of an audio file"


def _check_config(config: Config) -> None:
    def expect(key: str, is_valid: bool, expected: str) -> None:
        if not is_valid:
            raise UserError(f"{key}={config[key]}: expected {expected}")

    needs_judge = config["metric"] == "judged"
    expect("metric", config["metric"] in METRICS, " or ".join(METRICS))
    valid_judges = "judge=rule or judge=model with metric=judged, judge=null with any other metric"
    expect("judge", needs_judge == (config["judge"] is not None), valid_judges)
    if not config["data"]["test"]:
        raise UserError(f"data.test={config['data']['test']}: expected [FILE.jsonl] with dialogues to answer")


def score_answers(row: Row, answers: Sequence[str], metric: str, judge: Judge | None = None) -> tuple[str, list[float]]:
    """Score each answer to a row.

    Returns:
        The name of the metric for the row's language (`measures.metric_in_language`), and the score of each answer. A
        score is NaN if there is nothing to count in the correct answer.

    Raises:
        UnratedError: The judge gives no points to an answer.
    """
    if judge is not None:
        return metric, [judge(row.labels, answer) for answer in answers]
    metric_for_language = metric_in_language(metric, answer_language(row))
    correct = row.labels["text"]
    if metric == "contains":
        correct = row.labels.get("key") or correct
    stats = [row_stats(metric_for_language, answer, correct, answer_language(row)) for answer in answers]
    return metric_for_language, [measures.score_from_sums(metric_for_language, answer_stats) for answer_stats in stats]


def choose_pair(answers: Sequence[str], metric: str, scores: Sequence[float], margin: float) -> tuple[int, int] | str:
    """Choose the best and the worst answer. Among equally good answers, the first one is taken.

    Empty answers are ignored, because a message of a dialogue must not be empty.

    Args:
        answers: The answers.
        metric: Name of the metric.
        scores: The score of each answer.
        margin: Smallest difference of the scores of a pair.

    Returns:
        The indices of the chosen and the rejected answer, or the reason why there is no pair.
    """
    usable = [index for index, answer in enumerate(answers) if answer.strip()]
    if len(usable) < 2:
        return EMPTY
    sign = 1 if measures.find_measure(metric).higher_is_better else -1
    best, worst = (pick(usable, key=lambda index: sign * scores[index]) for pick in (max, min))
    gap = abs(scores[best] - scores[worst])
    if gap == 0:
        return TIE
    if are_equal(answers[best], answers[worst]):  # equal except for spaces, which the metric may count
        return EQUAL_ANSWERS
    return (best, worst) if gap > margin or math.isclose(gap, margin) else CLOSE


# --- annotated pairs ----------------------------------------------------------------------------------------------


def read_pairs(path: str | Path) -> Outcome:
    """Read the pairs of an annotated file in any supported format, and check that their audio can be read."""
    [manifest] = read_manifests([path], key="from")
    pairs: list[Pair] = []
    without_pair: Counter[str] = Counter()
    unusable: dict[str, str] = {}
    for row in manifest.rows:
        problem = row.problem or _pair_problem(row)
        if problem is None:
            pairs.append(Pair(row, row.labels["chosen"], row.labels["rejected"]))
        elif problem.startswith(EQUAL_ANSWERS):
            without_pair[EQUAL_ANSWERS] += 1
        else:
            unusable[row.id] = problem
    return Outcome(pairs, without_pair, unusable)


def _pair_problem(row: Row) -> str | None:
    """Return the reason why a row cannot be used as a pair; None if it can be used."""
    if (task := row.labels["task"]) != "preference":
        return f"task {task!r} is not a preference: expected `chosen` and `rejected`"
    if problem := _audio_problem(row):
        return problem
    try:
        for clip in row.clips:
            clip.n_samples()
    except AudioError as error:
        return str(error)
    return None


# --- statistics ---------------------------------------------------------------------------------------------------


def compute_statistics(outcome: Outcome) -> dict[str, Any]:
    """Return the content of the statistics file: counts of rows, and lengths and scores of the answers.

    `chosen_longer` is the share of pairs whose chosen answer is longer than the rejected answer, with a 95 % bootstrap
    interval; pairs of equally long answers count half. If the share is far from 50 %, the length alone predicts which
    answer was chosen.
    """
    pairs, without_pair, n_unusable = outcome.pairs, dict(outcome.without_pair), len(outcome.unusable)
    n_rows = len(pairs) + sum(without_pair.values()) + n_unusable
    counts = {"rows": n_rows, "pairs": len(pairs), "without_pair": without_pair, "unusable": n_unusable}
    if not pairs:
        return counts
    n_characters = np.array([(len(pair.chosen), len(pair.rejected)) for pair in pairs], dtype=float)  # (pairs, 2)
    n_chosen, n_rejected = n_characters.T
    chosen_is_longer = np.where(n_chosen == n_rejected, 0.5, n_chosen > n_rejected)
    # A share is a ratio of two sums, like accuracy.
    low, high = bootstrap_interval([[is_longer, 1.0] for is_longer in chosen_is_longer.tolist()], "accuracy")
    scores: dict[str, list[tuple[float, float]]] = {}
    for pair in pairs:
        if pair.metric and pair.scores:
            scores.setdefault(pair.metric, []).append(pair.scores)
    rankers = (pair.judge if pair.metric else pair.row.labels.get("annotator") for pair in pairs)
    return {
        **counts,
        "ranked_by": dict(Counter(str(ranker) for ranker in rankers if ranker)),
        "characters": _mean_by_answer(n_characters),
        "chosen_longer": {"value": float(chosen_is_longer.mean()), "low": low, "high": high},
        "scores": {metric: _mean_by_answer(np.array(values)) for metric, values in scores.items()},
    }


def _mean_by_answer(values: np.ndarray) -> dict[str, float]:
    """Return the mean of the values (pairs, 2) of the chosen answers and of the rejected answers."""
    return dict(zip(("chosen", "rejected"), map(float, values.mean(0)), strict=True))


def print_statistics(console: Console, statistics: Mapping[str, Any], unusable: Mapping[str, str]) -> None:
    """Print the statistics and the reasons why rows cannot be used.

    Args:
        console: Console to print on.
        statistics: The result of `compute_statistics`.
        unusable: Reasons why rows cannot be used, by row id.
    """
    table = numbers_table("rows", str(statistics["rows"]), title="preference pairs")
    table.add_row("pairs", str(statistics["pairs"]))
    for reason, number in statistics["without_pair"].items():
        table.add_row(f"no pair: {reason}", str(number))
    table.add_row("rows that cannot be used", str(statistics["unusable"]))
    if statistics["pairs"]:
        table.add_section()
        table.add_row(
            "characters, chosen / rejected", "{chosen:.1f} / {rejected:.1f}".format(**statistics["characters"])
        )
        percentages = (100 * statistics["chosen_longer"][key] for key in ("value", "low", "high"))
        table.add_row("the chosen answer is the longer one", "{:.1f} % [{:.1f}, {:.1f}]".format(*percentages))
        for ranker, number in statistics["ranked_by"].items():
            table.add_row(f"ranked by {ranker}", str(number))
        for metric, means in statistics["scores"].items():
            table.add_row(f"{metric}, chosen / rejected", "{chosen:.3f} / {rejected:.3f}".format(**means))
    console.print(table)
    for row_id, reason in list(unusable.items())[:_MAX_LISTED]:
        print_plain(console, f"  {row_id}: {reason}")


# --- the command --------------------------------------------------------------------------------------------------


def run(config: Config) -> None:
    """Run `auris prefer`: write the pairs to `out`, and their statistics next to it."""
    console = Console()
    out = Path(config["out"])
    if (config["checkpoint"] is None) == (config["from"] is None):
        raise UserError(
            f"checkpoint={config['checkpoint']} and from={config['from']}: expected either checkpoint=RUN, whose "
            "answers are ranked, or from=FILE.jsonl with annotated pairs"
        )
    if out.exists():
        raise UserError(f"out={out}: the file exists, expected the name of a new file")
    outcome = sample_pairs(config, console) if config["from"] is None else read_pairs(config["from"])
    statistics = compute_statistics(outcome)
    print_statistics(console, statistics, outcome.unusable)
    if not outcome.pairs:
        raise UserError(
            "there is no pair to write. For a model's answers, set a larger n_samples=... to get more different "
            "answers, or a smaller margin=... to accept answers with closer scores"
        )
    write_jsonl(out, (pair.to_json(out.parent) for pair in outcome.pairs))
    statistics_file = out.with_suffix(".statistics.json")
    write_json(statistics_file, statistics)
    print_plain(console, f"wrote {out} and {statistics_file.name}")
