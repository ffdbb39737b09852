"""How text is stretched to resemble audio tokens: from ranges, and from the counts of an aligner."""

import json
from collections import Counter
from itertools import groupby

import numpy as np
import pytest

from auris.data.samples import TextSamples
from auris.data.stretch import MeasuredStretch, UniformStretch
from auris.errors import UserError
from auris.text.prompts import TagPrompt
from support.manifests import make_sample_builder, read_row, tokenizer

BLANK = 99
COUNTS = {
    "repeats": {"1": 70, "2": 30},
    "blanks": {"1": 50, "3": 49, "80": 1},
    "blanks_at_start": {"2": 10},
    "blanks_at_end": {"0": 10},
    "deletions": {"5": 20},
    "insertions": {},
    "confusions": {"5": {"5": 50, "6": 30}, "6": {"6": 100}},
}


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def aligner(tmp_path):
    (tmp_path / "alignment.json").write_text(json.dumps(COUNTS))
    return tmp_path


def test_repeats_and_blanks_have_the_measured_frequencies(aligner):
    stretched = MeasuredStretch(aligner)([5, 6] * 2000, BLANK, rng(), train=False)
    runs = [(token, len(list(run))) for token, run in groupby(stretched)]
    repeats = Counter(n for token, n in runs if token != BLANK)
    assert repeats[1] / repeats.total() == pytest.approx(0.7, abs=0.03)  # 4,000 draws: a standard error of 0.007
    assert runs[0] == (BLANK, 2) and runs[-1][0] != BLANK
    blanks = Counter(n for token, n in runs[1:] if token == BLANK)
    assert set(blanks) == {1, 3}  # the pause of 80 blanks, one of a hundred, is shortened to the 95 % quantile
    assert blanks[1] / blanks.total() == pytest.approx(0.5, abs=0.03)


def test_the_share_of_transcripts_with_errors_has_the_aligners_confusions(aligner):
    stretch = MeasuredStretch(aligner, misread=1.0)
    read = [token for token, _ in groupby(stretch([5] * 4000, BLANK, rng(), train=True)) if token != BLANK]
    counts = Counter(read)
    assert set(counts) == {5, 6}
    assert counts[6] / 4000 == pytest.approx(0.3, abs=0.03)  # 30 of 100
    assert 1 - len(read) / 4000 == pytest.approx(0.2, abs=0.03)  # 20 of 100 are not read
    unknown = Counter(token for token, _ in groupby(stretch([7] * 4000, BLANK, rng(), train=True)) if token != BLANK)
    assert unknown[6] / 4000 == pytest.approx(0.15, abs=0.03)  # 30 of all 200 tokens are read as 6, 20 are not read
    assert unknown[7] / 4000 == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(("misread", "n_changed"), [(0.0, 0), (0.5, 100)])
def test_a_share_of_the_transcripts_has_errors(aligner, misread, n_changed):
    stretch, generator = MeasuredStretch(aligner, misread=misread), rng()
    rows = [stretch([5] * 60, BLANK, generator, train=True) for _ in range(200)]
    assert sum(6 in row for row in rows) == pytest.approx(n_changed, abs=25)
    assert not any(6 in stretch([5] * 60, BLANK, generator, train=False) for _ in range(20))


@pytest.mark.parametrize("n_tokens", [0, 1, 2, 30])
def test_a_text_is_at_most_as_long_as_planned(aligner, n_tokens):
    stretch, generator = MeasuredStretch(aligner, misread=1.0), rng()
    lengths = [len(stretch([5] * n_tokens, BLANK, generator, train=True)) for _ in range(200)]
    assert max(lengths) <= stretch.max_length(n_tokens)


def test_the_text_view_writes_the_space_that_the_aligner_was_trained_with(tmp_path, aligner):
    row = read_row(tmp_path, audio="absent.wav", text="the cat")
    for stretch, text in ((MeasuredStretch(aligner, misread=0), " the cat"), (UniformStretch(), "the cat")):
        sample = make_sample_builder(TextSamples, prompt=TagPrompt(), stretch=stretch).build(row, 0, None)
        ids = sample.ids.tolist()
        span = ids[1 : ids.index(tokenizer().id("</audio>"))]
        read = [token for token, _ in groupby(span) if token != tokenizer().id(TagPrompt.audio_pad)]
        assert read == list(tokenizer().encode_plain(text))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: MeasuredStretch(None), "data.stretch.aligner=null: expected a run of experiment=align"),
        (
            lambda path: MeasuredStretch(path / "absent"),
            "expected a run of experiment=align, which writes",
        ),
        (lambda path: UniformStretch(blanks=(4, 3)), r"data.stretch.blanks=\[4,3\]: expected the lowest number first"),
    ],
)
def test_wrong_settings_are_errors(aligner, make, message):
    with pytest.raises((UserError, FileNotFoundError), match=message):
        make(aligner)


def test_an_aligner_that_reads_nothing_is_an_error(tmp_path):
    (tmp_path / "alignment.json").write_text(json.dumps({**COUNTS, "repeats": {}}))
    with pytest.raises(UserError, match="it reads no token in any validation row, train it longer"):
        MeasuredStretch(tmp_path)
