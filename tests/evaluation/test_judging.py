"""Answers to AIR-Bench's chat questions are judged, on the lines of its groups, with what failed beside them."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from auris.completions import Endpoint, Record
from auris.data.rows import Row
from auris.evaluation import judging
from auris.evaluation.answer_cache import Response
from auris.evaluation.summary import summarise
from auris.metrics.judges import air_bench
from auris.metrics.published import lines as published_lines
from support import stand_in

RUN = {"study": "s", "arm": "a", "seed": 0, "benchmark": "airbench_chat"}


def row(number: int, task: str, **labels: object) -> Row:
    given = {"meta_info": f"Sound {number}.", "question": "What?", "answer_gt": "right", "task_name": task}
    return Row(f"q{number}", (), {"task": "chat", "mode": "audio_analysis", "text": "right", **given, **labels})


def compared(path: Path, rows: list[Row], answer) -> tuple[dict, dict[str, str], str]:
    console = Console(file=StringIO(), width=200)
    with stand_in.serve(answer) as (url, _):
        endpoint = Endpoint(url=url, model="m", blank=True, stand_in="a test's script", setting="judge")
        judge = air_bench.Judge(Record(path, endpoint, setting="judge"), model="m", workers=2)
        responses = [Response(row, "an answer") for row in rows]
        predictions, unrated = judging.rate(responses, judge, console)
    lines = summarise(predictions, RUN, 20, 0, judge.signatures)
    return {(line.task, line.metric): line for line in lines}, unrated, console.file.getvalue()


def test_each_group_its_parts_and_the_average_have_a_line(tmp_path: Path):
    rows = [row(number, task) for number, task in enumerate(air_bench.GROUPS)]

    def points(messages: list) -> str:
        number = int(messages[0]["content"].partition("Sound ")[2].partition(".")[0])
        return f"5 {number + 1}" if "1s Answer]\nright" in messages[0]["content"] else f"{number + 1} 5"

    lines, unrated, printed = compared(tmp_path / "judge.jsonl", rows, points)
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
    assert "16 of 16 requests are still to be asked" in printed and "0 of 16 replies without points" in printed
    assert "stand-in, a test's script" in lines["chat mixed", "judged_strict"].signature
    of_table = {line.part: line for line in published_lines(lines.values(), "airbench_leaderboard")}
    assert of_table["mixed"].printed == "7.50" and of_table["average"].printed == "4.50" and of_table["mixed"].differs
    assert len(lines) == 7 * len(air_bench.METRICS)


def test_rows_without_points_are_counted_and_named(tmp_path: Path):
    rows = [row(0, "sound_QA"), row(1, "sound_QA"), row(2, "cooking_QA"), row(3, "sound_QA", meta_info=None)]
    replies = iter(["6 8", "I cannot rate this.", None, "12 3"])
    lines, unrated, printed = compared(tmp_path / "judge.jsonl", rows, lambda messages: next(replies))
    assert set(unrated) == {"q2", "q3"} and "cooking_QA" in unrated["q2"] and "meta_info" in unrated["q3"]
    assert "3 of 4 replies without points" in printed
    assert all(f"{kind} 1" in printed for kind in ("refusal", "empty", "a number above 10"))
    assert lines["chat sound", "judge_failed"].value == 3 / 4
    assert ("chat average", "judged_official") not in lines  # three of its groups have no row


def test_other_dialogues_are_not_judged_by_air_bench(tmp_path: Path):
    with pytest.raises(ValueError, match="no dialogue is one of AIR-Bench's chat part.*judge=model"):
        compared(tmp_path / "judge.jsonl", [row(0, "sound_QA", meta_info=None)], lambda messages: "1 1")
