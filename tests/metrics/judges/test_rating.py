"""Judges that rate one answer with points: a rule, and a language model whose replies are saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from auris import config
from auris.metrics.judges.judge import UnratedError
from auris.metrics.judges.rating import LanguageModelJudge, RuleJudge, rating_messages
from support import mock_llm

LABELS = {
    "messages": [
        {"role": "user", "content": [{"type": "audio", "audio": "a.wav"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "It is a dog."},
    ],
    "text": "It is a dog.",
    "key": "dog",
}


@pytest.mark.parametrize(
    ("answer", "points"),
    [
        ("", 1),
        ("cat", 1),
        ("It is a cat.", 3),
        ("Sure. It is a cat.", 5),
        ("dog", 5),
        ("It is a dog.", 7),
        ("Sure. It is a dog.", 9),
        ("Sure. It is a hotdog.", 5),
    ],
)
def test_the_rule_gives_points_for_right_content_a_full_stop_and_a_polite_opening(answer: str, points: float) -> None:
    assert RuleJudge()(LABELS, answer) == points


def test_a_request_contains_the_question_and_the_reference() -> None:
    content = json.loads(rating_messages(LABELS, "a cat")[-1]["content"])
    assert content == {
        "conversation": [{"role": "user", "text": "[audio] What is it?"}],
        "right answer": "It is a dog.",
        "assistant's answer": "a cat",
    }


def test_the_replies_of_a_language_model_are_saved_and_reused(tmp_path: Path) -> None:
    path = tmp_path / "judge.jsonl"
    with mock_llm.serve(lambda messages: "8" if "a dog" in messages[-1]["content"] else "3.0") as (url, requests):
        judge = LanguageModelJudge(recording=str(path), url=url, model="m")
        assert [judge(LABELS, answer) for answer in ("a dog", "a dog", "It is a dog.")] == [8, 8, 8]
    assert len(requests) == 2 and requests[0]["body"]["temperature"] == 0.0
    replayed = LanguageModelJudge(recording=str(path))
    assert replayed(LABELS, "a dog") == 8
    assert replayed.signature == judge.signature == f"judged|1-10|{mock_llm.MODEL}"
    assert "the judge" in json.loads(path.read_text().splitlines()[0])["recording"]
    with pytest.raises(ValueError, match="holds no reply .*judge.url=.*judge=null"):
        replayed(LABELS, "a cat")


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "good",
        "11",
        "0",
        "between 3 and 7",
        "7.5",
        "-",
        "100",
        "-3",
        "−3",
        "3-4",
        "8/5",
        "8/100",
        "8/10 or 9/10",
        "10 out of 100",
        "1e1",
    ],
)
def test_a_reply_without_a_unique_valid_number_raises_an_error(tmp_path: Path, reply: str) -> None:
    with mock_llm.serve(lambda messages: reply) as (url, _):
        judge = LanguageModelJudge(recording=str(tmp_path / "judge.jsonl"), url=url, model="m")
        with pytest.raises(UnratedError, match="does not contain exactly one integer from 1 to 10"):
            judge(LABELS, "a dog")


@pytest.mark.parametrize(
    "reply",
    ["7", " 7\n", "7.0", "Rating: 7.", "7, and again 7", "7/10", "**7 / 10**", "I give it 7 out of 10."],
)
def test_a_number_inside_text_is_parsed(tmp_path: Path, reply: str) -> None:
    with mock_llm.serve(lambda messages: reply) as (url, _):
        assert LanguageModelJudge(recording=str(tmp_path / "judge.jsonl"), url=url, model="m")(LABELS, "a dog") == 7


def test_errors_name_the_invalid_setting(tmp_path: Path) -> None:
    run_config = config.resolve(config.compose(["checkpoint=RUN", "judge=model"], "evaluate"))
    with pytest.raises(ValueError, match="judge.recording=null"):
        config.build(run_config["judge"])
    with pytest.raises(ValueError, match="judge.model=NAME"):
        LanguageModelJudge(recording="a.jsonl", url="http://localhost:1/v1")
    with pytest.raises(FileNotFoundError, match="judge.recording=.*none.jsonl.*judge.url="):
        LanguageModelJudge(recording=str(tmp_path / "none.jsonl"))
