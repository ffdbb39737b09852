"""Preference pairs: the best and worst responses of a model, or annotated pairs from files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from auris import cli, config
from auris.data.manifests import read_manifests
from auris.data.rows import EQUAL_ANSWERS, Record, Row, decode_record
from auris.data.shards import pack
from auris.evaluation.preferences import (
    CLOSE,
    EMPTY,
    TIE,
    Outcome,
    Pair,
    choose_pair,
    compute_statistics,
    read_pairs,
    score_answers,
)
from auris.metrics.measures import row_stats, score_from_sums
from auris.text.tokenizer import Tokenizer
from support import published, vocabularies
from support.manifests import write_manifest, write_wave

# --- ranking ---


@pytest.mark.parametrize(
    ("metric", "scores", "margin", "expected"),
    [
        ("wer", [0.5, 0.0, 1.5, 0.25], 0.0, (1, 2)),  # low error rates are better
        ("contains", [0.0, 1.0, 0.0, 1.0], 0.0, (1, 0)),  # the first of equally good responses
        ("accuracy", [1.0, 1.0, 1.0, 1.0], 0.0, TIE),
        ("wer", [0.3, 0.2, 0.25, 0.2], 0.2, CLOSE),
        ("wer", [0.7, 0.4, 0.5, 0.6], 0.3, (1, 0)),  # the difference is 0.29999999999999993
    ],
)
def test_the_best_and_the_worst_response_form_the_pair(metric: str, scores: list[float], margin: float, expected: Any):
    assert choose_pair(["a", "b", "c", "d"], metric, scores, margin) == expected


def test_an_empty_response_is_never_part_of_a_pair():
    assert choose_pair(["", "a", " \n", "b"], "wer", [1.0, 0.0, 1.0, 0.5], 0.0) == (1, 3)
    assert choose_pair(["", "a", " \n"], "wer", [1.0, 0.0, 1.0], 0.0) == EMPTY


def test_responses_that_differ_only_in_spaces_form_no_pair():
    assert choose_pair(["It is a dog.", "It is a dog. "], "judged", [7.0, 5.0], 0.0) == EQUAL_ANSWERS


def test_responses_are_scored_one_by_one_and_chinese_errors_are_called_cer():
    def row(**labels: Any) -> Row:
        return Row("r", (), {"task": "chat", "mode": "text", **labels})

    assert score_answers(row(text="the cat sat"), ["The cat sat.", "a cat sat", ""], "wer") == (
        "wer",
        [0.0, 1 / 3, 1.0],
    )
    assert score_answers(row(text="红狐狸", language="zh"), ["红狐"], "wer") == ("cer", [1 / 3])
    with_key = row(text="It is a dog.", key="dog")
    assert score_answers(with_key, ["a dog, I think", "a dogma", "It is a dog."], "contains")[1] == [1.0, 0.0, 1.0]
    assert score_answers(with_key, ["dog", "it is a dog. "], "accuracy")[1] == [0.0, 1.0]
    assert score_answers(row(text="a dog"), ["I hear a dog there", "dog"], "contains")[1] == [1.0, 0.0]


# --- statistics ---


def test_statistics_report_lengths_and_scores():
    def pair(chosen: str, rejected: str, scores: list[float]) -> Pair:
        return Pair(Row("r"), chosen, rejected, "wer", tuple(scores), "a run")

    pairs = [pair("abcd", "ab", [0.0, 0.5]), pair("abc", "abc", [0.2, 0.4]), pair("ab", "abcd", [0.1, 0.9])]
    outcome = Outcome([*pairs, pair("abcdefg", "a", [0.1, 0.2])], {TIE: 2, CLOSE: 1}, {"bad": "no such file"})
    report = compute_statistics(outcome)
    assert (report["rows"], report["pairs"], report["unusable"]) == (8, 4, 1)
    assert report["without_pair"] == {TIE: 2, CLOSE: 1}
    assert report["characters"] == {"chosen": 4.0, "rejected": 2.5}
    longer = report["chosen_longer"]
    assert longer["value"] == 2.5 / 4 and 0 <= longer["low"] < 2.5 / 4 < longer["high"] <= 1
    assert report["scores"] == {"wer": pytest.approx({"chosen": 0.1, "rejected": 0.5})}
    assert compute_statistics(Outcome([], {}, {})) == {"rows": 0, "pairs": 0, "without_pair": {}, "unusable": 0}


def test_audio_marks_in_a_question_are_escaped_in_the_written_row(tmp_path: Path):
    question = {"role": "user", "content": "What is <audio>?"}
    labels = {"task": "chat", "messages": [question, {"role": "assistant", "content": "A tag."}]}
    written = Pair(Row("r", (), labels), "A tag.", "A dog.").to_json(tmp_path)
    assert written["messages"] == [{"role": "user", "content": r"What is \<audio>?"}]
    assert decode_record(Record("r", written), tmp_path).labels["messages"][0]["content"][1]["text"] == "<audio>"


# --- annotated files ---


def audio_question(path: str, text: str = "what?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "audio", "audio": path}, {"type": "text", "text": text}]}]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def annotated_file(tmp_path: Path) -> Path:
    """Write pairs in four formats, and rows that are not usable pairs."""
    folder = tmp_path / "annotated"
    folder.mkdir()
    write_wave(folder / "a.wav", 0.8)
    reply = {"role": "assistant", "content": "a dog"}
    rows = [
        {"id": "auris", "messages": audio_question("a.wav"), "chosen": "a dog", "rejected": "a cat", "annotator": "k"},
        {"id": "swift", "messages": [{"role": "user", "content": "<audio>what?"}, reply], "audios": ["a.wav"]}
        | {"rejected_response": "a cat that sat"},
        {"id": "llama", "conversations": [{"from": "human", "value": "<audio>what?"}], "audios": ["a.wav"]}
        | {"chosen": {"from": "gpt", "value": "a dog"}, "rejected": {"from": "gpt", "value": "no"}},
        {"id": "trl", "prompt": [{"role": "user", "content": "hello"}]}
        | {"chosen": [{"role": "assistant", "content": "hi"}], "rejected": [{"role": "assistant", "content": "yo"}]},
        {"id": "equal", "messages": audio_question("a.wav"), "chosen": "a dog", "rejected": "a dog "},
        {"id": "equal too", "messages": [{"role": "user", "content": "hello"}, reply], "rejected_response": "a dog"},
        {"id": "absent", "messages": audio_question("b.wav"), "chosen": "a dog", "rejected": "a cat"},
        {"id": "marks", "messages": [{"role": "user", "content": "<audio><audio>"}, reply], "audios": ["a.wav"]}
        | {"rejected_response": "a cat"},
        {"id": "empty", "messages": audio_question("a.wav"), "chosen": "", "rejected": "a cat"},
        {"id": "single", "messages": [*audio_question("a.wav"), reply]},
        {"id": "sec", "audio": "a.wav", "task": "sec", "text": "dog"},
    ]
    return write_manifest(folder / "pairs.jsonl", rows)


def test_annotated_pairs_are_checked(annotated_file: Path):
    outcome = read_pairs(annotated_file)
    assert [(pair.row.id, pair.chosen, pair.rejected) for pair in outcome.pairs] == [
        ("auris", "a dog", "a cat"),
        ("swift", "a dog", "a cat that sat"),
        ("llama", "a dog", "no"),
        ("trl", "hi", "yo"),
    ]
    assert list(outcome.without_pair.values()) == [2]
    reasons = {
        "absent": "b.wav: no such file",
        "marks": "the user's messages have 2 audio marks",
        "empty": "`chosen` is empty",
        "single": "task 'chat' is not a preference",
        "sec": "task 'sec' is not a preference",
    }
    assert outcome.unusable.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in outcome.unusable[name]


def test_pairs_with_audio_inside_shards_are_counted_as_unusable(annotated_file: Path, tmp_path: Path, command):
    pack(
        {"path": str(annotated_file)}, tmp_path / "shards", rows_per_shard=20, processes=1, console=Console(quiet=True)
    )
    outcome = read_pairs(tmp_path / "shards")
    assert [pair.row.id for pair in outcome.pairs] == ["trl"]  # it has no audio
    for name in ("auris", "swift", "llama"):
        assert outcome.unusable[name] == "its audio is in a Parquet shard, but a pair needs the path of an audio file"
    assert command(f"from={tmp_path}/shards", "out=pairs.jsonl") == 0
    assert [row["id"] for row in read_lines(tmp_path / "pairs.jsonl")] == ["trl"]


def test_a_pair_with_an_offset_beyond_the_end_of_its_file_is_unusable(tmp_path: Path):
    write_wave(tmp_path / "a.wav", 0.8)
    prompts = [
        {"role": "user", "content": [{"type": "audio", "audio": "a.wav", "offset": offset}]} for offset in (0.5, 3)
    ]
    rows = [{"id": str(n), "messages": [prompt], "chosen": "a", "rejected": "b"} for n, prompt in enumerate(prompts)]
    outcome = read_pairs(write_manifest(tmp_path / "pairs.jsonl", rows))
    assert [pair.row.id for pair in outcome.pairs] == ["0"] and outcome.unusable.keys() == {"1"}


# --- the command ---


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that runs `auris prefer` in an empty directory and returns its exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Any:
        return cli.main(["prefer", *arguments])

    return call


def test_annotated_pairs_are_converted_to_one_format(
    command: Callable[..., Any], annotated_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert command(f"from={annotated_file}", "out=converted/pairs.jsonl") == 0
    output = capsys.readouterr().out
    assert "absent: " in output and "`chosen` and `rejected` are equal" in output and "ranked by k" in output
    rows = read_lines(tmp_path / "converted/pairs.jsonl")
    assert [row["id"] for row in rows] == ["auris", "swift", "llama", "trl"]
    assert rows[0]["annotator"] == "k"
    for row in rows[:3]:
        assert row["messages"] == audio_question("../annotated/a.wav")
    [manifest] = read_manifests([tmp_path / "converted/pairs.jsonl"])
    assert [(row.problem, row.labels["task"]) for row in manifest.rows] == [(None, "preference")] * 4
    assert all(clip.path.is_file() for row in manifest.rows for clip in row.clips)
    report = json.loads((tmp_path / "converted/pairs.statistics.json").read_text())
    assert (report["rows"], report["pairs"], report["unusable"]) == (11, 4, 5)
    assert sum(report["without_pair"].values()) == 2 and report["scores"] == {} and report["ranked_by"] == {"k": 1}


TEXTS = ["cat", "a", "mat", "..."]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an untrained dialogue model and the dialogues to which it responds."""
    folder = tmp_path_factory.mktemp("sampling")
    vocabulary = Tokenizer(vocabularies.qwen2_audio())  # has few control tokens, so a random model generates text
    published.run(
        folder / "run", "objective=sft", "prompt=chat_v2", "data.view=chat", "arm=tuned", vocabulary=vocabulary
    )
    (folder / "rows").mkdir()
    write_wave(folder / "rows/a.wav", 0.8)
    rows = [
        {
            "id": f"q{n}",
            "messages": [*audio_question("a.wav", f"what {n}?"), {"role": "assistant", "content": text}],
            "kind": "k",
        }
        for n, text in enumerate(TEXTS)
    ]
    hello = {"role": "user", "content": "hello"}
    messages = [
        hello,
        {"role": "assistant", "content": "hi"},
        *audio_question("a.wav"),
        {"role": "assistant", "content": "a dog"},
    ]
    rows += [
        {"id": "turns", "messages": messages, "key": "dog"},
        {"id": "absent", "messages": [*audio_question("b.wav"), {"role": "assistant", "content": "no"}]},
        {"id": "asr", "audio": "a.wav", "task": "asr", "language": "en", "text": "a"},
        {"id": "plain", "task": "text", "text": "a b c"},
    ]
    write_manifest(folder / "rows/dialogues.jsonl", rows)
    return folder


def sample_pairs(command: Callable[..., Any], model_folder: Path, out: str, *arguments: str) -> list[dict[str, Any]]:
    base = [
        f"checkpoint={model_folder}/run",
        f"data.test=[{model_folder}/rows/dialogues.jsonl]",
        f"out={out}",
        "metric=wer",
    ]
    assert command(*base, "generation.max_new_tokens=16", *arguments) == 0
    return read_lines(Path(out))


def test_responses_of_a_model_become_pairs(
    command: Callable[..., Any], model_folder: Path, capsys: pytest.CaptureFixture
):
    rows = sample_pairs(command, model_folder, "pairs.jsonl", "n_samples=5")
    output = capsys.readouterr().out
    report = json.loads(Path("pairs.statistics.json").read_text())
    assert report["rows"] == 8 and report["pairs"] == len(rows) >= 3
    assert report["rows"] == report["pairs"] + sum(report["without_pair"].values()) + report["unusable"]
    for name, reason in {
        "absent": "b.wav: no such file",
        "asr": "is not a dialogue",
        "plain": "task 'text' has no question",
        "q3": "wer has nothing to count",
    }.items():
        assert f"{name}: " in output and reason in output
    assert report["unusable"] == 4
    references = {f"q{n}": text for n, text in enumerate(TEXTS)} | {"turns": "a dog"}
    for row in rows:
        scores = [
            score_from_sums("wer", row_stats("wer", row[side], references[row["id"]], "en"))
            for side in ("chosen", "rejected")
        ]
        assert row["scores"] == scores and scores[0] < scores[1]
        assert row["metric"] == "wer" and row["answered_by"] == "scratch/tuned/seed_0"
        assert "task" not in row and "text" not in row and row["messages"][-1]["role"] == "user"
    assert {row.get("kind") for row in rows} <= {"k", None} and any("kind" in row for row in rows)
    [manifest] = read_manifests(["pairs.jsonl"])
    for row in manifest.rows:
        assert row.problem is None and row.labels["task"] == "preference"
        assert all(clip.path.is_file() for clip in row.clips)


def test_sampling_is_reproducible_and_does_not_depend_on_batching(command: Callable[..., Any], model_folder: Path):
    pairs = sample_pairs(command, model_folder, "once.jsonl")
    assert pairs == sample_pairs(command, model_folder, "repeated.jsonl", "token_budget=90")
    assert pairs != sample_pairs(command, model_folder, "other.jsonl", "seed=1")


def test_a_margin_reduces_the_number_of_pairs(
    command: Callable[..., Any], model_folder: Path, capsys: pytest.CaptureFixture
):
    all_pairs = sample_pairs(command, model_folder, "all.jsonl")
    gaps = sorted(row["scores"][1] - row["scores"][0] for row in all_pairs)
    assert gaps[0] < gaps[-1]
    remaining = sample_pairs(command, model_folder, "some.jsonl", f"margin={(gaps[0] + gaps[-1]) / 2}")
    assert 0 < len(remaining) < len(all_pairs) and all(row in all_pairs for row in remaining)
    report = json.loads(Path("some.statistics.json").read_text())
    assert report["without_pair"][CLOSE] == len(all_pairs) - len(remaining)
    base = [
        f"checkpoint={model_folder}/run",
        f"data.test=[{model_folder}/rows/dialogues.jsonl]",
        "out=none.jsonl",
        "metric=accuracy",
    ]
    assert command(*base, "generation.max_new_tokens=1") == 1
    out, err = capsys.readouterr()
    assert "there is no pair to write" in err and TIE in out and not Path("none.jsonl").exists()


def test_a_judge_can_rank_the_responses(command: Callable[..., Any], model_folder: Path):
    """The rows and the statistics name the judge, which is a rule here."""
    rows = sample_pairs(command, model_folder, "judged.jsonl", "metric=judged", "judge=rule", "n_samples=6")
    assert rows
    for row in rows:
        better, worse = row["scores"]
        assert 9 >= better > worse >= 1
        assert row["metric"] == "judged" and row["judge"].startswith("judged|1-9|stand-in")
    assert json.loads(Path("judged.statistics.json").read_text())["ranked_by"] == {rows[0]["judge"]: len(rows)}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["checkpoint=RUN", "from=a.jsonl"], "expected either checkpoint=RUN"),
        ([], "expected either checkpoint=RUN"),
        (["from=a.jsonl"], "from: there is no file a.jsonl"),
        (["checkpoint=RUN", "n_samples=1"], "n_samples=1: expected an integer >= 2"),
        (["checkpoint=RUN", "metric=bleu"], "metric=bleu: expected wer or accuracy or contains or judged"),
        (["checkpoint=RUN", "metric=judged"], "judge=None: expected judge=rule or judge=model"),
        (["checkpoint=RUN", "judge=rule"], "expected judge=rule or judge=model with metric=judged"),
        (["checkpoint=RUN", "margin=-1"], "margin=-1: expected a number >= 0"),
        (["checkpoint=RUN"], "data.test=[]: expected [FILE.jsonl]"),
        (
            ["checkpoint=RUN", "data.test=a.jsonl", "generation.do_sample=false"],
            "all answers to a row are the same",
        ),
        (["checkpoint=RUN", "data.test=a.jsonl"], "data.test: there is no file a.jsonl"),
    ],
)
def test_invalid_settings_are_rejected(
    command: Callable[..., int], model_folder: Path, arguments: list[str], reason: str, capsys
):
    if "generation.do_sample=false" in arguments:  # greedy decoding allows no sampling options
        arguments = [*arguments, "generation.temperature=null", "generation.top_k=null", "generation.top_p=null"]
    assert command("out=pairs.jsonl", *(argument.replace("RUN", f"{model_folder}/run") for argument in arguments)) != 0
    output = capsys.readouterr().err
    assert output.startswith("error: ") and reason in output
    assert not list(Path().glob("pairs*"))


def test_an_existing_file_is_not_overwritten(
    command: Callable[..., int], annotated_file: Path, capsys: pytest.CaptureFixture
):
    assert command(f"from={annotated_file}", f"out={annotated_file}") == 1
    assert f"out={annotated_file}: the file exists" in capsys.readouterr().err


def test_the_default_is_to_sample_from_the_unmodified_distribution(model_folder: Path):
    """Pairs should cover everything the model may generate, not only its most likely responses."""
    run_config = config.resolve(config.compose(["out=x"], "prefer"))["generation"]
    assert (run_config["do_sample"], run_config["temperature"], run_config["top_k"], run_config["top_p"]) == (
        True,
        1.0,
        0,
        1.0,
    )
