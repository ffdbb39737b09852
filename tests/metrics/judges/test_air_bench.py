"""Prompts and scores of AIR-Bench chat equal those of the released scripts; malformed replies are classified."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest

from auris import config
from auris.completions import Endpoint, ReplyLog
from auris.metrics.judges import air_bench
from auris.metrics.judges.air_bench import AirBenchJudge, answer_points, find_failure, parse_reply, row_statistics
from auris.metrics.measures import score
from auris.metrics.official import ScriptError
from auris.metrics.published import published_scores
from support import air_bench_scripts, mock_llm

LABELS = {"task_name": "sound_QA", "meta_info": "A dog barks.", "question": "What is it?", "answer_gt": "a dog"}


@pytest.fixture(scope="module")
def golden(shared_data):
    def read(kind: str) -> list[dict]:
        lines = (shared_data / "golden/official_scoring/airbench_chat.jsonl").read_text(encoding="utf-8").splitlines()
        return [row for row in map(json.loads, lines) if row["kind"] == kind]

    return read


def test_the_judge_prompt_equals_the_prompt_of_the_script(golden):
    for row in golden("prompt"):
        if row["written"]:
            content = air_bench.build_prompt(row["row"], row["row"]["response"], 0)
            assert hashlib.sha256(content.encode()).hexdigest() == row["sha256"]
            temperature = (
                air_bench.PUBLISHED_TEMPERATURES[1] if random.Random(row["python_random_seed"]).random() < 0.5 else None
            )
            assert temperature == row["temperature_override"]
        elif row["error"]:
            assert "meta_info" in air_bench.check_labels({**LABELS, **row["row"]})
    first, second = (air_bench.build_prompt(LABELS, "a cat", order) for order in (0, 1))
    assert "1s Answer]\na dog\n" in first and "2s Answer]\na cat\n" in first
    assert "1s Answer]\na cat\n" in second and "2s Answer]\na dog\n" in second


def test_replies_are_parsed_like_the_script(golden):
    replies = golden("reply")
    assert len(replies) == 40
    for row in replies:
        for order, name in enumerate(("normal", "swapped")):
            expected = row[name]["parsed"]
            assert parse_reply(row["reply"]) == (expected and tuple(expected)), row["reply"]
            assert answer_points(row["reply"], order) == (expected and expected[1 - order])
        assert find_failure(row["reply"]) is not None or parse_reply(row["reply"])


def test_counts_equal_those_that_the_script_prints(golden):
    for row in golden("cal_score"):
        records = [(record["task_name"], record["reply"]) for record in row["records"]]
        order = ("normal", "swapped").index(row["order"])
        if row["error"]:
            with pytest.raises(ScriptError) as caught:
                air_bench_scripts.verdicts(records, order)
            assert str(caught.value).split(":")[0] == row["error"].split(":")[0]
            continue
        verdicts = air_bench_scripts.verdicts(records, order)
        assert (verdicts.total, verdicts.wins, verdicts.first, verdicts.second) == (
            row["total"],
            row["win"],
            row["first_sum"],
            row["second_sum"],
        )
        assert (verdicts.failed, verdicts.counted) == (row["fail_num"], row["total_sum"])


def test_points_are_the_mean_of_the_script_s_points_in_both_orders(golden):
    [row] = [row for row in golden("cal_score") if row["name"] == "full" and row["order"] == "normal"]
    records = [(record["task_name"], record["reply"]) for record in row["records"]]
    rows = [row_statistics("judged_official", (reply, reply), task) for task, reply in records]
    normal, swapped = (air_bench_scripts.verdicts(records, order) for order in (0, 1))
    means = {
        part: (normal.second[part] / normal.total[part] + swapped.first[part] / swapped.total[part]) / 2
        for part in air_bench_scripts.PARTS
    }
    for part in air_bench_scripts.PARTS:
        part_rows = [stats for stats in rows if stats[0].endswith(f"/{part}")]
        assert score("judged_official", part_rows) == pytest.approx(means[part])
    mixed = (means["speech_and_sound"] + means["speech_and_music"]) / 2
    average = (means["speech"] + means["sound"] + means["music"] + mixed) / 4
    assert score("judged_official", [s for s in rows if s[0].startswith("mixed/")]) == pytest.approx(mixed)
    assert score("judged_official", rows) == pytest.approx(average)


def test_a_malformed_reply_is_dropped_in_official_and_zero_in_strict_points():
    rows = [("6 8", "4 6"), ("sorry", "10 2"), ("5 0", "9  9")]

    def score_of(metric: str) -> float:
        return score(metric, [row_statistics(metric, replies, "sound_QA") for replies in rows])

    assert score_of("judged_official") == ((8 + 0) / 2 + (4 + 10) / 2) / 2
    assert score_of("judged_strict") == (8 / 3 + 14 / 3) / 2
    assert score_of("judge_failed") == 3 / 6
    assert score_of("judge_wins") == 2 / 4  # the answer wins row 1 in the first order and row 2 in the second
    # Only row 1 is parsed in both orders. The answer wins 8 to 6 in the first order and loses 4 to 6 in the second.
    assert score_of("judge_flips") == 1 / 1
    assert np.isnan(score("judged_official", [row_statistics("judged_official", ("", "5 5"), "sound_QA")]))


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("8 7", None),
        ("10 10\n", None),
        ("", "empty"),
        (" \n", "empty"),
        ("I'm sorry, I can't rate this.", "refusal"),
        ("As an AI I rate 8 7", "refusal"),
        ("good and bad", "no number"),
        ("8", "one number"),
        ("Assistant 2: 8", "prose"),
        ("8 11", "a number above 10"),
        ("95 80", "a number above 10"),
        ("0 5", "a number below 1"),
        ("-3 5", "a number below 1"),
        ("8 7 6", "more than two numbers"),
        ("8 7, both fine", "prose"),
        ("Scores: 8 7", "prose"),
        ("Assistant 1: 8 Assistant 2: 7", "prose"),
        ("8, 7", "two numbers in another form"),
        ("8/10 7/10", "two numbers in another form"),
        ("8  7", "two numbers in another form"),
        ("8.5 7", "two numbers in another form"),
    ],
)
def test_malformed_replies_are_classified(reply: str, kind: str | None):
    assert find_failure(reply) == kind


def judge_of(path: Path, url: str, **settings) -> AirBenchJudge:
    arguments = {"model": "m", "temperature": "published", **settings}
    endpoint = Endpoint(url=url, model="m", accept_empty=True, config_key="judge")
    return AirBenchJudge(ReplyLog(path, endpoint, config_key="judge"), **arguments)


def test_replies_in_both_orders_are_requested_saved_and_reused(tmp_path: Path):
    path = tmp_path / "judge.jsonl"
    answers = [({**LABELS, "question": f"What is {n}?"}, "a cat") for n in range(20)]
    with mock_llm.serve(lambda messages: "7 3") as (url, requests):
        judge = judge_of(path, url, workers=4, price={"input": 10, "output": 30})
        estimate = judge.estimate(answers)
        assert estimate.requests == estimate.total == 40 and "40 of 40 requests" in str(estimate)
        assert estimate.cost == pytest.approx((estimate.tokens_in * 10 + 4 * 40 * 30) / 1e6)
        assert judge.replies(answers) == [("7 3", "7 3")] * 20
        assert judge_of(path, url).replies(answers) and len(requests) == 40
    assert judge.estimate(answers).requests == 0
    temperatures = {call["body"]["temperature"] for call in requests}
    assert temperatures == {1.0, 2.0} and requests[0]["body"]["max_tokens"] == 1024
    assert [message["role"] for message in requests[0]["body"]["messages"]] == ["user"]
    replayed = air_bench.recorded(recording=str(path), model=None, temperature="published", max_tokens=1024, seed=0)
    assert replayed.replies(answers) == judge.replies(answers) and replayed.signature == judge.signature
    assert replayed.signatures["judged_official"] == (
        f"judged_official|1-10|{mock_llm.MODEL}|temperature:1 or 2|both orders|failures dropped"
    )
    with pytest.raises(ValueError, match="holds no reply with .*'model': 'm'"):
        replayed.replies([(LABELS, "a bird")])
    cooler = air_bench.recorded(recording=str(path), model="m", temperature=0.5, max_tokens=1024, seed=0)
    with pytest.raises(ValueError, match="'temperature': 0.5"):
        cooler.replies(answers)


def test_no_request_is_sent_if_the_estimated_cost_is_above_max_cost(tmp_path: Path):
    with mock_llm.serve(lambda messages: "7 3") as (url, requests):
        judge = judge_of(tmp_path / "judge.jsonl", url, price={"input": 10, "output": 30}, max_cost=0.001)
        with pytest.raises(ValueError, match="about 0.00472 USD: the cost exceeds judge.max_cost=0.001"):
            judge.replies([(LABELS, "a cat")])
    assert not requests


def test_the_file_of_the_stub_s_replies_says_that_they_come_from_a_stub(tmp_path: Path):
    overrides = [f"judge.recording={tmp_path}/judge.jsonl", "checkpoint=RUN"]
    stub = config.build(config.resolve(config.compose([*overrides, "judge=stub"], "evaluate"))["judge"])
    assert stub.replies([(LABELS, "A dog barks.")]) == [("6 7", "6 5")]
    recorded = config.build(config.resolve(config.compose([*overrides, "judge=recorded"], "evaluate"))["judge"])
    assert recorded.replies([(LABELS, "A dog barks.")]) == [("6 7", "6 5")]
    assert "stand-in, a script, which counts words" in stub.signature and recorded.signature == stub.signature
    header = json.loads((tmp_path / "judge.jsonl").read_text().splitlines()[0])
    assert header["stand-in"] is True and "a script" in header["answered by"]


def test_the_default_judge_has_the_signature_of_the_published_one(tmp_path: Path):
    run_config = config.resolve(config.compose(["checkpoint=RUN", "judge=openai", f"runs_dir={tmp_path}"], "evaluate"))
    judge = config.build(run_config["judge"])
    judge.models = {judge.model}
    [published] = {
        cell.signature for cell in published_scores() if cell.benchmark == "airbench_chat" and cell.signature
    }
    assert judge.signatures["judged_official"] == published
