"""Judging of AIR-Bench chat responses: a result line for each group, and the count of failed replies."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from auris.completions import Endpoint, ReplyLog
from auris.data.rows import Row
from auris.evaluation import judging
from auris.evaluation.answer_cache import Response
from auris.evaluation.summary import summarise
from auris.metrics.judges import air_bench
from auris.metrics.published import table_lines as published_lines
from support import mock_llm

RUN = {"study": "s", "arm": "a", "seed": 0, "benchmark": "airbench_chat"}


def make_row(number: int, task: str, **labels: object) -> Row:
    fields = {"meta_info": f"Sound {number}.", "question": "What?", "answer_gt": "right", "task_name": task}
    return Row(f"q{number}", (), {"task": "chat", "mode": "audio_analysis", "text": "right", **fields, **labels})


def judge_rows(path: Path, rows: list[Row], reply) -> tuple[dict, dict[str, str], str]:
    console = Console(file=StringIO(), width=200)
    with mock_llm.serve(reply) as (url, _):
        endpoint = Endpoint(url=url, model="m", accept_empty=True, stand_in="a test's script", config_key="judge")
        judge = air_bench.AirBenchJudge(ReplyLog(path, endpoint, config_key="judge"), model="m", workers=2)
        responses = [Response(row, "an answer") for row in rows]
        predictions, unrated = judging.rate_responses(responses, judge, console)
    lines = summarise(predictions, RUN, samples=20, seed=0, signatures=judge.signatures)
    return {(line.task, line.metric): line for line in lines}, unrated, console.file.getvalue()


def test_each_group_and_the_average_have_a_result_line(tmp_path: Path):
    rows = [make_row(number, task) for number, task in enumerate(air_bench.GROUPS)]

    def points(messages: list) -> str:
        number = int(messages[0]["content"].partition("Sound ")[2].partition(".")[0])
        return f"5 {number + 1}" if "1s Answer]\nright" in messages[0]["content"] else f"{number + 1} 5"

    lines, unrated, output = judge_rows(tmp_path / "judge.jsonl", rows, points)
    official = {task: line.value for (task, metric), line in lines.items() if metric == "judged_official"}
    assert official == {
        "chat speech": 1.5,
        "chat sound": 3.5,
        "chat music": 5.5,
        "chat mixed": 7.5,
        "chat speech_and_sound": 7,
        "chat speech_and_music": 8,
        "chat average": (1.5 + 3.5 + 5.5 + 7.5) / 4,
    }
    assert not unrated and lines["chat average", "judge_flips"].value == 0
    assert "16 of 16 requests to send" in output and "0 of 16 replies without points" in output
    assert "stand-in, a test's script" in lines["chat mixed", "judged_strict"].signature
    by_part = {line.part: line for line in published_lines(lines.values(), "airbench_leaderboard")}
    assert by_part["mixed"].printed == "7.50" and by_part["average"].printed == "4.50" and by_part["mixed"].differs
    assert len(lines) == 7 * len(air_bench.METRICS)


def test_replies_without_points_are_counted_and_reported(tmp_path: Path):
    rows = [
        make_row(0, "sound_QA"),
        make_row(1, "sound_QA"),
        make_row(2, "cooking_QA"),
        make_row(3, "sound_QA", meta_info=None),
    ]
    replies = iter(["6 8", "I cannot rate this.", None, "12 3"])
    lines, unrated, output = judge_rows(tmp_path / "judge.jsonl", rows, lambda messages: next(replies))
    assert set(unrated) == {"q2", "q3"} and "cooking_QA" in unrated["q2"] and "meta_info" in unrated["q3"]
    assert "3 of 4 replies without points" in output
    assert all(f"{kind} 1" in output for kind in ("refusal", "empty", "a number above 10"))
    assert lines["chat sound", "judge_failed"].value == 3 / 4
    assert ("chat average", "judged_official") not in lines  # three groups have no row


def test_dialogues_from_outside_air_bench_are_not_judged_by_air_bench(tmp_path: Path):
    with pytest.raises(ValueError, match="none of the dialogues comes from AIR-Bench's chat part.*judge=model"):
        judge_rows(tmp_path / "judge.jsonl", [make_row(0, "sound_QA", meta_info=None)], lambda messages: "1 1")
