"""Pairs come from the best and the worst of a model's answers, or from people's files; every row is accounted for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from auris import cli, config
from auris.data.manifests import read_manifests
from auris.data.rows import EQUAL_ANSWERS, Row
from auris.data.shards import pack
from auris.evaluation.preferences import (
    CLOSE,
    EMPTY,
    TIE,
    Outcome,
    Pair,
    choose,
    read_pairs,
    score,
    statistics,
)
from auris.metrics.measures import row_stats, value
from auris.text.tokenizer import Tokenizer
from support import published, vocabularies
from support.manifests import write_manifest, write_wave

# --- ranking ---


@pytest.mark.parametrize(
    ("metric", "scores", "margin", "expected"),
    [
        ("wer", [0.5, 0.0, 1.5, 0.25], 0.0, (1, 2)),  # few errors are good
        ("contains", [0.0, 1.0, 0.0, 1.0], 0.0, (1, 0)),  # of equally good ones the first
        ("accuracy", [1.0, 1.0, 1.0, 1.0], 0.0, TIE),
        ("wer", [0.3, 0.2, 0.25, 0.2], 0.2, CLOSE),
        ("wer", [0.7, 0.4, 0.5, 0.6], 0.3, (1, 0)),  # a gap of 0.29999999999999993
    ],
)
def test_the_best_and_the_worst_answer_make_the_pair(metric: str, scores: list[float], margin: float, expected: Any):
    assert choose(["a", "b", "c", "d"], metric, scores, margin) == expected


def test_an_empty_answer_is_in_no_pair():
    assert choose(["", "a", " \n", "b"], "wer", [1.0, 0.0, 1.0, 0.5], 0.0) == (1, 3)
    assert choose(["", "a", " \n"], "wer", [1.0, 0.0, 1.0], 0.0) == EMPTY


def test_answers_that_differ_in_space_alone_are_no_pair():
    assert choose(["It is a dog.", "It is a dog. "], "judged", [7.0, 5.0], 0.0) == EQUAL_ANSWERS


def test_answers_are_scored_by_themselves_under_the_honest_name():
    def row(**labels: Any) -> Row:
        return Row("r", (), {"task": "chat", "mode": "text", **labels})

    assert score(row(text="the cat sat"), ["The cat sat.", "a cat sat", ""], "wer") == ("wer", [0.0, 1 / 3, 1.0])
    assert score(row(text="红狐狸", language="zh"), ["红狐"], "wer") == ("cer", [1 / 3])
    keyed = row(text="It is a dog.", key="dog")
    assert score(keyed, ["a dog, I think", "a dogma", "It is a dog."], "contains")[1] == [1.0, 0.0, 1.0]
    assert score(keyed, ["dog", "it is a dog. "], "accuracy")[1] == [0.0, 1.0]
    assert score(row(text="a dog"), ["I hear a dog there", "dog"], "contains")[1] == [1.0, 0.0]


# --- statistics ---


def test_statistics_hold_lengths_and_scores():
    def pair(chosen: str, rejected: str, scores: list[float]) -> Pair:
        return Pair(Row("r"), chosen, rejected, "wer", tuple(scores), "a run")

    pairs = [pair("abcd", "ab", [0.0, 0.5]), pair("abc", "abc", [0.2, 0.4]), pair("ab", "abcd", [0.1, 0.9])]
    found = Outcome([*pairs, pair("abcdefg", "a", [0.1, 0.2])], {TIE: 2, CLOSE: 1}, {"bad": "no such file"})
    counted = statistics(found)
    assert (counted["rows"], counted["pairs"], counted["unusable"]) == (8, 4, 1)
    assert counted["without_pair"] == {TIE: 2, CLOSE: 1}
    assert counted["characters"] == {"chosen": 4.0, "rejected": 2.5}
    longer = counted["chosen_longer"]
    assert longer["value"] == 2.5 / 4 and 0 <= longer["low"] < 2.5 / 4 < longer["high"] <= 1
    assert counted["scores"] == {"wer": pytest.approx({"chosen": 0.1, "rejected": 0.5})}
    assert statistics(Outcome([], {}, {})) == {"rows": 0, "pairs": 0, "without_pair": {}, "unusable": 0}


# --- people's files ---


def heard(path: str, text: str = "what?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "audio", "audio": path}, {"type": "text", "text": text}]}]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """Pairs in four forms, and rows that are none."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    write_wave(folder / "a.wav", 0.8)
    good = {"role": "assistant", "content": "a dog"}
    rows = [
        {"id": "ours", "messages": heard("a.wav"), "chosen": "a dog", "rejected": "a cat", "annotator": "k"},
        {"id": "swift", "messages": [{"role": "user", "content": "<audio>what?"}, good], "audios": ["a.wav"]}
        | {"rejected_response": "a cat that sat"},
        {"id": "llama", "conversations": [{"from": "human", "value": "<audio>what?"}], "audios": ["a.wav"]}
        | {"chosen": {"from": "gpt", "value": "a dog"}, "rejected": {"from": "gpt", "value": "no"}},
        {"id": "trl", "prompt": [{"role": "user", "content": "hello"}]}
        | {"chosen": [{"role": "assistant", "content": "hi"}], "rejected": [{"role": "assistant", "content": "yo"}]},
        {"id": "equal", "messages": heard("a.wav"), "chosen": "a dog", "rejected": "a dog "},
        {"id": "equal too", "messages": [{"role": "user", "content": "hello"}, good], "rejected_response": "a dog"},
        {"id": "absent", "messages": heard("b.wav"), "chosen": "a dog", "rejected": "a cat"},
        {"id": "marks", "messages": [{"role": "user", "content": "<audio><audio>"}, good], "audios": ["a.wav"]}
        | {"rejected_response": "a cat"},
        {"id": "empty", "messages": heard("a.wav"), "chosen": "", "rejected": "a cat"},
        {"id": "single", "messages": [*heard("a.wav"), good]},
        {"id": "sec", "audio": "a.wav", "task": "sec", "text": "dog"},
    ]
    return write_manifest(folder / "pairs.jsonl", rows)


def test_annotated_pairs_are_checked(annotated: Path):
    found = read_pairs(annotated)
    assert [(pair.row.id, pair.chosen, pair.rejected) for pair in found.pairs] == [
        ("ours", "a dog", "a cat"),
        ("swift", "a dog", "a cat that sat"),
        ("llama", "a dog", "no"),
        ("trl", "hi", "yo"),
    ]
    assert list(found.without_pair.values()) == [2]
    reasons = {
        "absent": "b.wav: no such file",
        "marks": "2 audio marks",
        "empty": "`chosen` is empty",
        "single": "task 'chat' is no pair",
        "sec": "task 'sec' is no pair",
    }
    assert found.unusable.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in found.unusable[name]


def test_pairs_whose_sound_is_in_shards_are_counted(annotated: Path, tmp_path: Path, command):
    pack({"path": str(annotated)}, tmp_path / "shards", rows_per_shard=20, processes=1, console=Console(quiet=True))
    found = read_pairs(tmp_path / "shards")
    assert [pair.row.id for pair in found.pairs] == ["trl"]  # text alone
    for name in ("ours", "swift", "llama"):
        assert found.unusable[name] == "its sound is in a shard: a pair names its sound files"
    assert command(f"from={tmp_path}/shards", "out=pairs.jsonl") == 0
    assert [row["id"] for row in read_lines(tmp_path / "pairs.jsonl")] == ["trl"]


def test_a_pair_about_a_stretch_outside_its_file_is_counted(tmp_path: Path):
    write_wave(tmp_path / "a.wav", 0.8)
    asked = [
        {"role": "user", "content": [{"type": "audio", "audio": "a.wav", "offset": offset}]} for offset in (0.5, 3)
    ]
    rows = [{"id": str(n), "messages": [prompt], "chosen": "a", "rejected": "b"} for n, prompt in enumerate(asked)]
    found = read_pairs(write_manifest(tmp_path / "pairs.jsonl", rows))
    assert [pair.row.id for pair in found.pairs] == ["0"] and found.unusable.keys() == {"1"}


# --- the command ---


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """The command in an empty folder: its exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Any:
        return cli.main(["prefer", *arguments])

    return call


def test_annotated_pairs_come_into_one_form(
    command: Callable[..., Any], annotated: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert command(f"from={annotated}", "out=ours/pairs.jsonl") == 0
    shown = capsys.readouterr().out
    assert "absent: " in shown and "`chosen` and `rejected` are equal" in shown and "ranked by k" in shown
    rows = read_lines(tmp_path / "ours/pairs.jsonl")
    assert [row["id"] for row in rows] == ["ours", "swift", "llama", "trl"]
    assert rows[0]["annotator"] == "k"
    for row in rows[:3]:
        assert row["messages"] == heard("../theirs/a.wav")
    [manifest] = read_manifests([tmp_path / "ours/pairs.jsonl"])
    assert [(row.problem, row.labels["task"]) for row in manifest.rows] == [(None, "preference")] * 4
    assert all(clip.path.is_file() for row in manifest.rows for clip in row.clips)
    counted = json.loads((tmp_path / "ours/pairs.statistics.json").read_text())
    assert (counted["rows"], counted["pairs"], counted["unusable"]) == (11, 4, 5)
    assert sum(counted["without_pair"].values()) == 2 and counted["scores"] == {} and counted["ranked_by"] == {"k": 1}


TEXTS = ["cat", "a", "mat", "..."]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of dialogues that nobody has trained, and dialogues to ask it."""
    folder = tmp_path_factory.mktemp("sampling")
    few = Tokenizer(vocabularies.qwen2_audio())  # with thousands of control tokens hardly any would be text
    published.run(folder / "run", "objective=sft", "prompt=chat_v2", "data.view=chat", "arm=tuned", vocabulary=few)
    (folder / "rows").mkdir()
    write_wave(folder / "rows/a.wav", 0.8)
    rows = [
        {
            "id": f"q{n}",
            "messages": [*heard("a.wav", f"what {n}?"), {"role": "assistant", "content": text}],
            "kind": "k",
        }
        for n, text in enumerate(TEXTS)
    ]
    hello = {"role": "user", "content": "hello"}
    turns = [hello, {"role": "assistant", "content": "hi"}, *heard("a.wav"), {"role": "assistant", "content": "a dog"}]
    rows += [
        {"id": "turns", "messages": turns, "key": "dog"},
        {"id": "absent", "messages": [*heard("b.wav"), {"role": "assistant", "content": "no"}]},
        {"id": "asr", "audio": "a.wav", "task": "asr", "language": "en", "text": "a"},
        {"id": "plain", "task": "text", "text": "a b c"},
    ]
    write_manifest(folder / "rows/asked.jsonl", rows)
    return folder


def sampled(command: Callable[..., Any], model: Path, out: str, *arguments: str) -> list[dict[str, Any]]:
    base = [f"checkpoint={model}/run", f"data.test=[{model}/rows/asked.jsonl]", f"out={out}", "metric=wer"]
    assert command(*base, "generation.max_new_tokens=16", *arguments) == 0
    return read_lines(Path(out))


def test_a_model_s_responses_become_pairs(command: Callable[..., Any], model: Path, capsys: pytest.CaptureFixture):
    rows = sampled(command, model, "pairs.jsonl", "n_samples=5")
    shown = capsys.readouterr().out
    counted = json.loads(Path("pairs.statistics.json").read_text())
    assert counted["rows"] == 8 and counted["pairs"] == len(rows) >= 3
    assert counted["rows"] == counted["pairs"] + sum(counted["without_pair"].values()) + counted["unusable"]
    for name, reason in {
        "absent": "b.wav: no such file",
        "asr": "is not a dialogue",
        "plain": "task 'text' asks nothing",
        "q3": "nothing that wer counts",
    }.items():
        assert f"{name}: " in shown and reason in shown
    assert counted["unusable"] == 4
    right = {f"q{n}": text for n, text in enumerate(TEXTS)} | {"turns": "a dog"}
    for row in rows:
        scores = [value("wer", row_stats("wer", row[side], right[row["id"]], "en")) for side in ("chosen", "rejected")]
        assert row["scores"] == scores and scores[0] < scores[1]
        assert row["metric"] == "wer" and row["answered_by"] == "scratch/tuned/seed_0"
        assert "task" not in row and "text" not in row and row["messages"][-1]["role"] == "user"
    assert {row.get("kind") for row in rows} <= {"k", None} and any("kind" in row for row in rows)
    [manifest] = read_manifests(["pairs.jsonl"])
    for row in manifest.rows:
        assert row.problem is None and row.labels["task"] == "preference"
        assert all(clip.path.is_file() for clip in row.clips)


def test_sampling_can_be_repeated_and_does_not_depend_on_the_packs(command: Callable[..., Any], model: Path):
    once = sampled(command, model, "once.jsonl")
    assert once == sampled(command, model, "again.jsonl", "token_budget=90")
    assert once != sampled(command, model, "other.jsonl", "seed=1")


def test_a_margin_costs_pairs(command: Callable[..., Any], model: Path, capsys: pytest.CaptureFixture):
    before = sampled(command, model, "all.jsonl")
    gaps = sorted(row["scores"][1] - row["scores"][0] for row in before)
    assert gaps[0] < gaps[-1]
    kept = sampled(command, model, "some.jsonl", f"margin={(gaps[0] + gaps[-1]) / 2}")
    assert 0 < len(kept) < len(before) and all(row in before for row in kept)
    counted = json.loads(Path("some.statistics.json").read_text())
    assert counted["without_pair"][CLOSE] == len(before) - len(kept)
    base = [
        f"checkpoint={model}/run",
        f"data.test=[{model}/rows/asked.jsonl]",
        "out=none.jsonl",
        "metric=accuracy",
    ]
    assert command(*base, "generation.max_new_tokens=1") == 1
    out, err = capsys.readouterr()
    assert "there is no pair to write" in err and TIE in out and not Path("none.jsonl").exists()


def test_a_judge_ranks_answers_too(command: Callable[..., Any], model: Path):
    """The table and the statistics say which judge: here, a rule."""
    rows = sampled(command, model, "judged.jsonl", "metric=judged", "judge=rule", "n_samples=6")
    assert rows
    for row in rows:
        better, worse = row["scores"]
        assert 9 >= better > worse >= 1
        assert row["metric"] == "judged" and row["judge"].startswith("judged|1-9|stand-in")
    assert json.loads(Path("judged.statistics.json").read_text())["ranked_by"] == {rows[0]["judge"]: len(rows)}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["checkpoint=RUN", "from=a.jsonl"], "expected one of them"),
        ([], "expected one of them"),
        (["from=a.jsonl"], "from: there is no file a.jsonl"),
        (["checkpoint=RUN", "n_samples=1"], "n_samples=1: expected 2 or more"),
        (["checkpoint=RUN", "metric=bleu"], "metric=bleu: expected wer or accuracy or contains or judged"),
        (["checkpoint=RUN", "metric=judged"], "judge=None: expected judge=rule or judge=model"),
        (["checkpoint=RUN", "judge=rule"], "expected judge=rule or judge=model with metric=judged"),
        (["checkpoint=RUN", "margin=-1"], "margin=-1: expected 0 or more"),
        (["checkpoint=RUN", "margin=null"], "margin=None: expected 0 or more"),
        (["checkpoint=RUN", "n_samples=2.5"], "n_samples=2.5: expected 2 or more"),
        (["checkpoint=RUN"], "data.test=[]: expected [FILE.jsonl]"),
        (
            ["checkpoint=RUN", "data.test=a.jsonl", "generation.do_sample=false"],
            "all answers to a row would be the same",
        ),
        (["checkpoint=RUN", "data.test=a.jsonl"], "data.test: there is no file a.jsonl"),
    ],
)
def test_impossible_settings_are_refused(
    command: Callable[..., int], model: Path, arguments: list[str], reason: str, capsys
):
    if "generation.do_sample=false" in arguments:  # and nothing else of sampling
        arguments = [*arguments, "generation.temperature=null", "generation.top_k=null", "generation.top_p=null"]
    assert command("out=pairs.jsonl", *(argument.replace("RUN", f"{model}/run") for argument in arguments)) != 0
    output = capsys.readouterr().err
    assert output.startswith("error: ") and reason in output
    assert not list(Path().glob("pairs*"))


def test_no_file_is_overwritten(command: Callable[..., int], annotated: Path, capsys: pytest.CaptureFixture):
    assert command(f"from={annotated}", f"out={annotated}") == 1
    assert f"out={annotated} is there already" in capsys.readouterr().err


def test_the_sampling_of_the_config_is_plain(model: Path):
    """All of the model's distribution: what it would say, not what it says best."""
    run_config = config.resolve(config.compose(["out=x"], "prefer"))["generation"]
    assert (run_config["do_sample"], run_config["temperature"], run_config["top_k"], run_config["top_p"]) == (
        True,
        1.0,
        0,
        1.0,
    )
