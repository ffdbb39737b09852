"""Word alignment: splitting text into words, times of tokens and words, and the command."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from auris import cli
from auris.data.batches import build_pack
from auris.data.manifests import read_manifests
from auris.data.rows import Row
from auris.inference.align import FRAME_SECONDS, Aligner, WordSpan, split_words, timing_errors, token_frames, word_times
from auris.inference.load import load
from support import published
from support.manifests import speech_rows, tokenizer, write_manifest

BLANK = 4


def scores(path: list[int], *, confidence: float = 0.9) -> Tensor:
    """Return log-probabilities (C, 5) of frames that emit the tokens of `path`."""
    other_probability = (1 - confidence) / BLANK
    probabilities = torch.full((len(path), BLANK + 1), other_probability)
    probabilities[torch.arange(len(path)), torch.tensor(path)] = confidence
    return probabilities.log()


# --- words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "language", "words"),
    [
        ("the cat  sat", "en", ["the", "cat", "sat"]),
        (" «Hello», it's - me... ", "en", ["Hello", "it's", "me"]),
        ("ein Hund schläft", "de", ["ein", "Hund", "schläft"]),
        ("白牛想要。", "zh", ["白", "牛", "想", "要"]),
        ("佢 食 飯", "yue", ["佢", "食", "飯"]),
        ("...", "en", []),
    ],
)
def test_text_is_split_into_words_or_into_characters_for_chinese(text: str, language: str, words: list[str]):
    spans = split_words(text, language)
    assert [span.word for span in spans] == words
    assert [text[span.start : span.end] for span in spans] == words


# --- from frames to words -----------------------------------------------------------------------------------------


def test_tokens_share_the_blanks_between_them():
    frames = token_frames(scores([BLANK, 0, 0, BLANK, BLANK, 1, BLANK, 2]), [0, 1, 2], BLANK)
    assert frames.tolist() == [[1, 4], [4, 6.5], [6.5, 8]]


def test_a_repeated_token_is_aligned_twice_if_a_blank_separates_it():
    assert token_frames(scores([1, 1, BLANK, 1]), [1, 1], BLANK).tolist() == [[0, 2.5], [2.5, 4]]


@pytest.mark.parametrize("ids", [[0, 1, 2, 3], [1, 1]])
def test_a_text_too_long_for_its_clip_is_refused(ids: list[int]):
    with pytest.raises(ValueError, match=r"the text needs \d frames of 20 ms, but the clip has 2"):
        token_frames(scores([0, 1]), ids, BLANK)


def test_an_empty_text_is_refused():
    with pytest.raises(ValueError, match="the text has no tokens"):
        token_frames(scores([0, 1]), [], BLANK)


def test_dividing_by_priors_extends_the_times_of_tokens_beyond_their_spikes():
    """Each token has a raised probability for five frames, but exceeds the blank in only one of them."""
    spiky = torch.full((12, BLANK + 1), 1e-4)
    spiky[:, BLANK] = 1.0
    spiky[1:6, 0], spiky[6:11, 1] = 0.3, 0.3
    spiky[5, 0], spiky[7, 1] = 5.0, 5.0  # the spike of one token is late, that of the other early
    frames = (spiky / spiky.sum(1, keepdim=True)).log()
    prior = frames.exp().mean(0).log()
    assert token_frames(frames, [0, 1], BLANK).tolist() == [[5, 6.5], [6.5, 8]]
    assert token_frames(frames - prior, [0, 1], BLANK).tolist() == [[1, 6], [6, 11]]


def test_word_times_follow_from_tokens_of_any_number_of_characters():
    frames = np.array([[0, 10], [10, 20], [20, 30], [30, 50]], dtype=float)
    token_spans = [(0, 2), (2, 3), (2, 3), (3, 6)]  # "ab", two halves of "c", " de"
    words = [WordSpan("a", 0, 1), WordSpan("b", 1, 2), WordSpan("c", 2, 3), WordSpan("de", 4, 6)]
    entries = word_times(frames, token_spans, words)
    times = [(entry["word"], entry["start"] / FRAME_SECONDS, entry["end"] / FRAME_SECONDS) for entry in entries]
    assert [word for word, _, _ in times] == ["a", "b", "c", "de"]
    expected = [(0, 5), (5, 10), (10, 30), (30 + 20 / 3, 50)]
    np.testing.assert_allclose([interval for _, *interval in times], expected, atol=0.05)


def test_token_spans_cover_the_text():
    for text in ("the cat sat on the mat", "ein Hund schläft", "猫は寝る"):
        spans = tokenizer().token_spans(text)
        assert len(spans) == len(tokenizer().encode_plain(text))
        assert {place for start, end in spans for place in range(start, end)} >= {
            place for place, character in enumerate(text) if character != " "
        }


def test_timing_errors_use_only_rows_with_the_same_words():
    reference_words = [{"word": "a", "start": 0.0, "end": 0.5}, {"word": "b", "start": 0.5, "end": 1.0}]
    aligned_words = [{"word": "a", "start": 0.1, "end": 0.4}, {"word": "b", "start": 0.4, "end": 1.0}]
    rows = [
        Row("1", labels={"language": "en", "words": reference_words}),
        Row("2", labels={"language": "en", "words": reference_words[:1]}),
    ]
    errors = timing_errors((row, aligned_words) for row in [*rows, Row("3", labels={"language": "en"})])
    assert errors.keys() == {"en"}
    np.testing.assert_allclose(errors["en"], [0.1, -0.1, -0.1, 0.0], atol=1e-9)


# --- a run --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an untrained encoder run with a CTC head."""
    path = tmp_path_factory.mktemp("ctc") / "run"
    published.run(path, "experiment=encoder_ctc")
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    rows = speech_rows(tmp_path, [3.0, 2.5, 3.5, 0.1])
    rows[0]["words"] = [{"word": word, "start": n, "end": n + 1} for n, word in enumerate(["the", "cat", "sat"])]
    rows[3]["text"] = "the cat sat on the mat"
    rows.append({"id": "bark", "audio": "r0.wav", "task": "sec", "text": "dog"})
    return write_manifest(tmp_path / "rows.jsonl", rows)


def test_the_times_of_a_row_do_not_depend_on_its_pack(run: Path, rows: Path):
    aligner = Aligner(load(run), prior_scale=1.0)
    [manifest] = read_manifests([rows])

    def read_pack(*numbers: int) -> dict:
        return build_pack(manifest.rows, [(number, None) for number in numbers], aligner.samples)

    aligner.estimate_priors([read_pack(0, 1, 2)])
    packed = dict(aligner.align(manifest.rows, read_pack(2, 0, 1)))
    single = {number: dict(aligner.align(manifest.rows, read_pack(number)))[number] for number in (0, 1, 2)}
    assert packed == single


def test_an_aligner_gives_times_in_steps_of_its_audio_tokens(rows: Path, tmp_path: Path):
    published.run(tmp_path / "aligner", "experiment=align", "model.pooling.k=4")
    aligner = Aligner(load(tmp_path / "aligner"), prior_scale=0.0)
    [manifest] = read_manifests([rows])
    pack = build_pack(manifest.rows, [(number, None) for number in range(3)], aligner.samples)
    for number, times in aligner.align(manifest.rows, pack):
        assert not isinstance(times, ValueError)
        assert [entry["word"] for entry in times] == manifest.rows[number].labels["text"].split()
        assert times[0]["start"] >= 0 and times[-1]["end"] <= manifest.rows[number].clips[0].duration + 0.08
        assert all(first["end"] <= second["start"] + 1e-6 for first, second in pairwise(times))


def test_the_command_writes_word_times_and_lists_unusable_rows(
    run: Path, rows: Path, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["align", f"checkpoint={run}", f"data.test=[{rows}]", "out=new/timed.jsonl"]) == 0
    assert "median error" in capsys.readouterr().out
    [manifest] = read_manifests(["new/timed.jsonl"])
    assert [row.id for row in manifest.rows] == ["r0", "r1", "r2"]
    for row in manifest.rows:
        assert row.problem is None and row.labels["task"] == "srwt" and row.clips[0].path.is_file()
        assert " ".join(entry["word"] for entry in row.labels["words"]) == row.labels["text"]
        assert row.labels["words"][-1]["end"] <= row.clips[0].duration + FRAME_SECONDS
    unusable = [json.loads(line) for line in Path("new/timed.unusable.jsonl").read_text().splitlines()]
    assert [row["id"] for row in unusable] == ["r3", "bark"]
    assert "the clip has 5" in unusable[0]["problem"] and "no `transcript`" in unusable[1]["problem"]


def test_a_model_that_cannot_align_is_refused(run: Path, rows: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run_and_fail(*arguments: str) -> str:
        options = {"checkpoint": run, "data.test": f"[{rows}]", "out": "timed.jsonl"}
        options |= dict(argument.split("=", 1) for argument in arguments)
        assert cli.main(["align", *(f"{key}={value}" for key, value in options.items())]) == 1
        return capsys.readouterr().err

    published.run(tmp_path / "answers", "experiment=qwen2_audio_pretrain")
    assert "expected a run of experiment=encoder_ctc or experiment=align" in run_and_fail(
        f"checkpoint={tmp_path}/answers"
    )
    assert "data.test=[]: expected" in run_and_fail("data.test=[]")
    assert "already exists" in run_and_fail(f"out={rows}")
