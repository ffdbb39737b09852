"""Tests of samples: planned and actual length, rows that cannot be used, random choices, and each view of a row.

A view is one way of using a row: with its audio, with text in place of the audio, with audio and transcript only, or as
a dialogue.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from auris import audio
from auris.data.collate import collate
from auris.data.manifests import read_manifests
from auris.data.rows import Clip, Row
from auris.data.samples import AudioSamples, ChatSamples, ClipTooLongError, Samples, TextSamples, TranscriptSamples
from auris.errors import AudioError, RowError
from auris.model.pack import IGNORE
from auris.text.chat import Chat, Qwen2AudioChat, QwenAudioChat, message_text
from auris.text.prompts import BothPrompts, NaturalPrompt, TagPrompt
from auris.text.task_table import EXAMPLE
from auris.text.tasks import TASKS
from support.manifests import GEOMETRY, make_sample_builder, read_row, tokenizer, write_manifest, write_wave

WARP = audio.SpecAugment(n_freq_masks=1, freq_mask_param=4, n_time_masks=1, time_mask_param=10, p=1.0, time_warp=5)

# (seconds, rate). The last mel frame of 5281 samples is incomplete. 5441 samples have one audio token more than 5440.
LENGTHS = [(0.03, 16_000), (0.33, 16_000), (5281 / 16_000, 16_000), (5441 / 16_000, 16_000), (1.7, 22_050)]
LENGTHS += [(2.345, 44_100), (31.3, 16_000)]


def row_of(folder: Path, seconds: float = 1.0, *, rate: int = audio.SAMPLE_RATE, **fields) -> Row:
    write_wave(folder / "clip.wav", seconds, rate=rate)
    return read_row(folder, audio="clip.wav", **fields)


def planned_length(samples: Samples, row: Row) -> int:
    return samples.max_length(row, samples.audio_lengths(row))


def max_built_length(samples: Samples, row: Row, epochs: int = 40) -> int:
    """Return the number of tokens of the longest sample of a row, over enough epochs to draw every wording."""
    return max(len(samples.build(row, 0, epoch).ids) for epoch in range(epochs))


# --- lengths ---


@pytest.mark.parametrize("prompt", [TagPrompt(), NaturalPrompt(), BothPrompts()])
@pytest.mark.parametrize("pool", [1, 2, 4])
def test_the_planned_length_is_the_length_of_the_longest_wording(tmp_path, prompt, pool):
    row = row_of(tmp_path, 0.5)
    samples = make_sample_builder(prompt=prompt, geometry=audio.Geometry(n_mels=8, pool=pool))
    assert planned_length(samples, row) == max_built_length(samples, row)


@pytest.mark.parametrize(("seconds", "rate"), LENGTHS)
def test_the_planned_length_of_a_file_without_a_stated_duration_is_exact(tmp_path, seconds, rate):
    row = row_of(tmp_path, seconds, rate=rate)
    samples = make_sample_builder(prompt=TagPrompt(), long_audio="window")
    assert planned_length(samples, row) == len(samples.build(row, 0, epoch=0).ids)


def test_building_an_unusable_row_is_an_error_with_its_reason(tmp_path):
    row = Row("late", (), {"task": "asr"}, "shard-00001.parquet: cannot be read")
    with pytest.raises(RowError, match="shard-00001"):
        make_sample_builder().build(row, 0, 0)


def test_the_planned_length_of_a_clip_in_windows_is_exact(tmp_path):
    """A clip of 60.07 s is split into three equal windows.

    They may have one token more than windows of 30 s, 30 s and 0.07 s.
    """
    samples = make_sample_builder(prompt=TagPrompt(), long_audio="window", geometry=audio.Geometry(n_mels=2, pool=2))
    for extra in (1, 400, 700, 1_100):
        n_samples = 2 * audio.MAX_SAMPLES + extra
        soundfile.write(tmp_path / "clip.wav", np.zeros(n_samples), audio.SAMPLE_RATE)
        row = read_row(tmp_path, audio="clip.wav")
        assert planned_length(samples, row) == len(samples.build(row, 0, epoch=0).ids), extra


@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize("pool", [1, 2])
def test_a_rounded_duration_never_gives_a_planned_length_that_is_too_short(tmp_path, digits, pool):
    samples = make_sample_builder(prompt=TagPrompt(), geometry=audio.Geometry(n_mels=2, pool=pool))
    for seconds in (0.449, 0.7349, 1.0495):
        row = row_of(tmp_path, seconds, duration=round(seconds, digits))
        assert planned_length(samples, row) >= len(samples.build(row, 0, epoch=0).ids), seconds


def test_the_length_of_a_row_with_a_stated_duration_is_planned_without_its_file(tmp_path):
    row = read_row(tmp_path, audio="absent.wav", duration=2.0)
    (n_tokens,) = make_sample_builder().audio_lengths(row)
    assert 50 <= n_tokens <= 53  # 25 per second, plus a margin for rounded durations


def test_the_length_of_a_segment_counts_only_the_segment(tmp_path):
    write_wave(tmp_path / "long.wav", 3.0)
    to_the_end = read_row(tmp_path, audio="long.wav", offset=1.0)
    half_second = read_row(tmp_path, audio="long.wav", offset=1.0, duration=0.5)
    samples = make_sample_builder(prompt=TagPrompt())
    assert [len(samples.build(row, 0, None).frames) for row in (to_the_end, half_second)] == [1, 1]
    assert [samples.build(row, 0, None).frames[0] for row in (to_the_end, half_second)] == [200, 50]
    assert planned_length(samples, to_the_end) == len(samples.build(to_the_end, 0, None).ids)
    assert planned_length(samples, half_second) >= len(samples.build(half_second, 0, None).ids)


# --- a sample ---


def test_a_sample_has_a_placeholder_for_each_audio_token_and_the_features_of_its_clip(tmp_path):
    sample = make_sample_builder(prompt=NaturalPrompt()).build(row_of(tmp_path, 0.5), 7, epoch=None)
    wave = audio.read(tmp_path / "clip.wav")
    assert sample.row == 7 and sample.frames == (50,) and sample.audio_seconds == pytest.approx(0.5)
    assert sample.audio_mask.sum() == GEOMETRY.n_tokens(50) == 12
    assert set(sample.ids[sample.audio_mask]) == {tokenizer().id("<|AUDIO|>")}
    torch.testing.assert_close(sample.mels[0], audio.log_mel(wave, GEOMETRY.n_mels), rtol=0, atol=0)


def test_each_clip_of_a_row_has_its_own_tokens_and_features(tmp_path):
    for name, seconds in (("a.wav", 0.5), ("b.wav", 0.2)):
        write_wave(tmp_path / name, seconds)
    row = read_row(tmp_path, audio=["a.wav", "b.wav"])
    sample = make_sample_builder().build(row, 0, None)
    assert sample.frames == (50, 20)
    assert np.flatnonzero(np.diff(sample.audio_mask.astype(int)) == 1).size == 2
    assert sample.audio_mask.sum() == GEOMETRY.n_tokens(50) + GEOMETRY.n_tokens(20)


def test_the_prompt_only_sample_is_the_sample_without_its_answer(tmp_path):
    row = row_of(tmp_path, 0.5)
    samples = make_sample_builder(prompt=NaturalPrompt())
    sample, prompt = (samples.build(row, 0, None, prompt_only=prompt_only) for prompt_only in (False, True))
    answer = [*tokenizer().encode_plain(row.labels["text"]), tokenizer().end]
    assert sample.ids.tolist() == prompt.ids.tolist() + answer
    assert sample.frames == prompt.frames


# --- unusable rows and unusual usable ones ---


def test_a_silent_clip_is_usable_by_default(tmp_path):
    soundfile.write(tmp_path / "clip.wav", np.zeros(16_000), audio.SAMPLE_RATE)
    sample = make_sample_builder(augment=WARP).build(read_row(tmp_path, audio="clip.wav"), 0, epoch=0)
    assert sample.frames == (100,) and all(torch.isfinite(mel).all() for mel in sample.mels)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot be decoded"), (b"RIFF\x00\x00\x00\x00nonsense" * 9, "cannot be decoded"), (None, "no such file")],
)
def test_an_unreadable_file_is_an_error_with_its_name(tmp_path, content, message):
    if content is not None:
        (tmp_path / "bad.wav").write_bytes(content)
    row = read_row(tmp_path, audio="bad.wav")
    for attempt in (make_sample_builder().audio_lengths, lambda row: make_sample_builder().build(row, 0, 0)):
        with pytest.raises(AudioError, match=f"bad.wav: {message}"):
            attempt(row)


def test_a_clip_without_samples_or_shorter_than_a_token_is_an_error(tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), audio.SAMPLE_RATE)
    with pytest.raises(AudioError, match="empty.wav: holds no samples"):
        make_sample_builder().build(read_row(tmp_path, audio="empty.wav"), 0, 0)
    with pytest.raises(RowError, match="shorter than one audio token"):
        make_sample_builder().build(row_of(tmp_path, 0.02), 0, 0)


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize("fields", [{}, {"duration": 40.0}])
def test_a_clip_of_40_seconds_is_an_error_that_names_the_setting(tmp_path, policy, fields):
    row = row_of(tmp_path, 40.0, **fields)
    samples = make_sample_builder(long_audio=policy)
    for attempt in (samples.audio_lengths, lambda row: samples.build(row, 0, 0)):
        with pytest.raises(ClipTooLongError, match="40.0 s long, the limit is 30 s: set long_audio=window"):
            attempt(row)


def test_a_clip_of_40_seconds_is_split_into_two_windows(tmp_path):
    row = row_of(tmp_path, 40.0)
    sample = make_sample_builder(long_audio="window").build(row, 0, None)
    assert sample.frames == (2_000, 2_000)
    assert sample.audio_mask.sum() == 2 * GEOMETRY.n_tokens(2_000) == 1_000
    assert (np.diff(np.flatnonzero(sample.audio_mask)) == 1).all()
    assert sample.audio_seconds == pytest.approx(40.0)


def test_a_silent_clip_is_an_error_or_usable_depending_on_the_policy(tmp_path):
    row = row_of(tmp_path)
    for offset in (0.0, 0.25):  # digital silence, and the constant offset of an amplifier
        soundfile.write(tmp_path / "clip.wav", np.full(16_000, offset), 16_000)
        with pytest.raises(RowError, match="the clip is silent; set data.silent_audio=keep"):
            make_sample_builder(silent_audio="skip").build(row, 0, None)
        assert make_sample_builder().build(row, 0, None).audio_seconds == 1.0
    wave = np.zeros(16_000)
    wave[5000] = 8 / 32_768  # quiet, but not silent
    soundfile.write(tmp_path / "clip.wav", wave, 16_000)
    assert make_sample_builder(silent_audio="skip").build(row, 0, None).audio_seconds == 1.0
    with pytest.raises(ValueError, match="silent_audio='drop': expected keep or skip"):
        make_sample_builder(silent_audio="drop")


def test_a_clip_of_30_seconds_is_not_too_long(tmp_path):
    row = row_of(tmp_path, 30.0)
    assert make_sample_builder(long_audio="error").build(row, 0, None).frames == (3_000,)


def test_an_unknown_policy_is_an_error():
    with pytest.raises(ValueError, match="long_audio='cut': expected error, skip, window or first"):
        make_sample_builder(long_audio="cut")


@pytest.mark.parametrize(("seconds", "stated"), [(1.0, 3.0), (3.0, 1.0)])
def test_a_wrong_stated_duration_is_an_error(tmp_path, seconds, stated):
    row = row_of(tmp_path, seconds, duration=stated)
    with pytest.raises(RowError, match=f"clip.wav is {seconds:.2f} s long, but the manifest states {stated:.2f} s"):
        make_sample_builder().build(row, 0, 0)


def test_a_clip_longer_than_stated_fits_the_planned_length_or_is_an_error(tmp_path):
    samples = make_sample_builder(prompt=TagPrompt())
    for extra_seconds in (0.05, 0.1, 0.2, 0.4):
        row = row_of(tmp_path, 1.0 + extra_seconds, duration=1.0)
        try:
            n_tokens = len(samples.build(row, 0, None).ids)
        except RowError:
            continue
        assert n_tokens <= planned_length(samples, row), extra_seconds


# --- randomness ---


def equal_samples(first, second) -> bool:
    return np.array_equal(first.ids, second.ids) and all(
        torch.equal(a, b) for a, b in zip(first.mels, second.mels, strict=True)
    )


def test_a_sample_depends_only_on_seed_epoch_and_row_id(tmp_path):
    row = row_of(tmp_path, 1.0)
    samples = make_sample_builder(prompt=BothPrompts(), augment=WARP, seed=3)
    reference = samples.build(row, 0, epoch=5)
    torch.manual_seed(99)
    np.random.seed(99)
    assert equal_samples(
        reference, make_sample_builder(prompt=BothPrompts(), augment=WARP, seed=3).build(row, 17, epoch=5)
    )
    others = [
        samples.build(row, 0, epoch=6),
        make_sample_builder(prompt=BothPrompts(), augment=WARP, seed=4).build(row, 0, epoch=5),
        samples.build(replace(row, id="other"), 0, epoch=5),
    ]
    assert not any(torch.equal(reference.mels[0], other.mels[0]) for other in others)


def test_augmentation_does_not_use_the_global_random_generator(tmp_path):
    row = row_of(tmp_path, 1.0)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    make_sample_builder(augment=WARP).build(row, 0, epoch=0)
    assert torch.equal(torch.rand(3), expected)


def test_evaluation_has_no_augmentation_and_the_canonical_wording(tmp_path):
    row = row_of(tmp_path, 1.0)
    plain, augmented = make_sample_builder(), make_sample_builder(augment=WARP)
    assert equal_samples(plain.build(row, 0, None), augmented.build(row, 0, None))
    assert not torch.equal(plain.build(row, 0, 0).mels[0], augmented.build(row, 0, 0).mels[0])
    canonical = NaturalPrompt().turns(row.labels, 1)
    pads = [[tokenizer().audio_pad_id(canonical)] * GEOMETRY.n_tokens(100)]
    assert plain.build(row, 0, None).ids.tolist() == tokenizer().encode(canonical, pads).ids.tolist()


def test_two_clips_of_a_row_are_augmented_differently(tmp_path):
    write_wave(tmp_path / "a.wav", 1.0)
    row = read_row(tmp_path, audio=["a.wav", "a.wav"])
    first, second = make_sample_builder(augment=WARP).build(row, 0, epoch=0).mels
    assert not torch.equal(first, second)


# --- text instead of audio ---


def test_the_text_view_does_not_read_files_and_has_no_audio(tmp_path):
    row = read_row(tmp_path, audio="absent.wav")
    samples = make_sample_builder(TextSamples)
    sample = samples.build(row, 0, epoch=0)
    assert not samples.has_audio
    assert sample.mels == () and not sample.audio_mask.any() and sample.audio_seconds == 0


def test_stretched_text_is_the_content_with_repeated_tokens_and_blanks(tmp_path):
    """The text that replaces a clip is stretched to resemble audio tokens. A blank is an audio pad token."""
    row = read_row(tmp_path, audio="absent.wav", text="the cat sat on the mat")
    tok, samples = tokenizer(), make_sample_builder(TextSamples, prompt=TagPrompt())
    pad = tok.id(TagPrompt.audio_pad)
    spans = set()
    for epoch in range(8):
        sample = samples.build(row, 0, epoch)
        ids = sample.ids.tolist()
        end = ids.index(tok.id("</audio>"))
        span = ids[1:end]
        content = list(tok.encode_plain(row.labels["text"]))
        runs = [token for token, previous in zip(span, [None, *span], strict=False) if token not in (previous, pad)]
        content_without_repeats = [
            token for token, previous in zip(content, [None, *content], strict=False) if token != previous
        ]
        assert runs == content_without_repeats or len(runs) > len(
            content_without_repeats
        )  # a blank may separate two equal tokens
        assert len(content) <= len(span) - span.count(pad) <= 8 * len(content)
        assert not sample.supervise[: end + 1].any()
        spans.add(tuple(span))
    assert len(spans) == 8


def test_the_planned_length_of_stretched_text_is_an_upper_bound(tmp_path):
    row = read_row(tmp_path, audio="absent.wav", text="the cat")
    samples = make_sample_builder(TextSamples, prompt=BothPrompts())
    bound, longest = planned_length(samples, row), max_built_length(samples, row, epochs=200)
    assert longest <= bound < 2 * longest


@pytest.mark.parametrize(
    ("fields", "content"),
    [
        ({"content": "rain falls", "transcript": "no", "text": "no"}, "rain falls"),
        ({"transcript": "guten Tag", "text": "no"}, "guten Tag"),
        ({"text": "hello"}, "hello"),
        ({"task": "dialect_asr", "dialect": "Scottish English", "text": "hello"}, "hello"),
    ],
)
def test_the_content_is_preferred_to_the_transcript_and_the_transcript_to_the_text(tmp_path, fields, content):
    row = read_row(tmp_path, audio="absent.wav", **fields)
    sample = make_sample_builder(TextSamples, prompt=TagPrompt()).build(row, 0, None)
    ids = sample.ids.tolist()
    tok = tokenizer()
    span = ids[1 : ids.index(tok.id("</audio>"))]
    assert set(span) - {tok.id(TagPrompt.audio_pad)} == set(tok.encode_plain(content))


def test_a_row_without_text_for_each_clip_is_an_error_in_the_text_view(tmp_path):
    samples = make_sample_builder(TextSamples)
    sound = read_row(tmp_path, audio="a.wav", task="sec", text="rain")
    pair = read_row(tmp_path, audio=["a.wav", "b.wav"])
    for row, message in ((sound, "no `content`"), (pair, "expected one text for each of 2 clips")):
        for attempt in (planned_length, lambda samples, row: samples.build(row, 0, 0)):
            with pytest.raises(RowError, match=message):
                attempt(samples, row)


@pytest.mark.parametrize("kind", [AudioSamples, TextSamples])
def test_a_text_row_is_its_text_and_an_end_token(kind):
    row = Row("line", (), {"task": "text", "text": "the cat sat"})
    samples = make_sample_builder(kind)
    sample = samples.build(row, 0, epoch=0)
    assert sample.ids.tolist() == [*tokenizer().encode_plain("the cat sat"), tokenizer().end]
    assert sample.supervise.all()
    assert planned_length(samples, row) == len(sample.ids)


# --- transcripts ---


def test_a_sample_of_the_transcript_view_has_the_clip_and_its_transcript(tmp_path):
    row = row_of(tmp_path, 0.5, task="s2tt", target_language="de", transcript="the cat", text="die Katze")
    samples = make_sample_builder(TranscriptSamples)
    sample = samples.build(row, 0, epoch=0)
    assert tokenizer().decode(sample.ids) == "the cat"
    assert not sample.supervise.any() and not sample.audio_mask.any()
    assert sample.frames == (50,) and len(sample.mels) == 1
    assert planned_length(samples, row) == GEOMETRY.n_tokens(50)


def test_in_the_transcript_view_every_task_except_asr_needs_a_transcript_label(tmp_path):
    samples = make_sample_builder(TranscriptSamples)
    assert tokenizer().decode(samples.build(row_of(tmp_path, 0.5, text="mat"), 0, 0).ids) == "mat"
    row = row_of(tmp_path, 0.5, task="sgc", text="male")
    for attempt in (planned_length, lambda samples, row: samples.build(row, 0, 0)):
        with pytest.raises(RowError, match="no `transcript`"):
            attempt(samples, row)


def test_control_tokens_in_a_transcript_are_encoded_as_text(tmp_path):
    row = row_of(tmp_path, 0.5, text="say <|en|>")
    assert max(make_sample_builder(TranscriptSamples).build(row, 0, 0).ids) < tokenizer().n_text


def test_the_row_to_score_of_the_transcript_view_is_an_asr_row_with_the_transcript():
    """Predictions are scored against the labels of the row to score."""
    row = Row(
        "k", (Clip(Path("a.wav")),), {"task": "ks", "language": "en", "text": "go", "transcript": "the cat says go"}
    )
    view = TranscriptSamples(tokenizer=None, prompt=None, geometry=None)
    assert view.row_to_score(row).labels == {**row.labels, "task": "asr", "text": "the cat says go"}
    assert AudioSamples(tokenizer=None, prompt=None, geometry=None).row_to_score(row) is row


# --- Qwen-Audio's clips ---


def test_learned_boundaries_replace_the_begin_and_end_tokens(tmp_path):
    """The boundaries are two vectors at the positions of the begin and end token of a clip."""
    row = row_of(tmp_path, 0.5)
    v1 = audio.Geometry(n_mels=8, pool=2, clip_end="zero", boundary=True)
    sample = make_sample_builder(prompt=TagPrompt(), geometry=v1).build(row, 0, None)
    begin_and_end = [tokenizer().id(TagPrompt.audio_begin), tokenizer().id(TagPrompt.audio_end)]
    audio_ids = sample.ids[sample.audio_mask]
    assert [audio_ids[0], audio_ids[-1]] == begin_and_end and len(audio_ids) == v1.n_tokens(50) + 2
    assert not sample.supervise[sample.audio_mask].any()


def test_each_window_has_its_own_boundaries(tmp_path):
    row = row_of(tmp_path, 40.0)
    v1 = audio.Geometry(n_mels=8, pool=2, clip_end="zero", boundary=True)
    samples = make_sample_builder(prompt=TagPrompt(), geometry=v1, long_audio="window")
    sample = samples.build(row, 0, None)
    assert sample.frames == (2000, 2000) and sample.audio_mask.sum() == 2 * (v1.n_tokens(2000) + 2)
    assert planned_length(samples, row) == len(samples.build(row, 0, 0).ids)


def test_long_audio_set_to_first_uses_30_seconds_and_counts_the_dropped_seconds(tmp_path):
    row = row_of(tmp_path, 40.0)
    samples = make_sample_builder(long_audio="first", prompt=TagPrompt())
    sample = samples.build(row, 0, None)
    assert sample.frames == (3000,) and sample.audio_seconds == 30 and samples.dropped_seconds(row) == 10.0
    assert planned_length(samples, row) == len(samples.build(row, 0, 0).ids)
    assert make_sample_builder(long_audio="window").dropped_seconds(row) == 0


# --- dialogues ---

V1 = audio.Geometry(n_mels=8, pool=2, clip_end="zero", boundary=True)
CHATS = [(Qwen2AudioChat(), GEOMETRY), (QwenAudioChat(), V1)]


def dialogue_of(folder: Path) -> Row:
    """Return a dialogue of two questions about two clips, with answers."""
    for name, seconds in (("a.wav", 0.5), ("b.wav", 0.2)):
        write_wave(folder / name, seconds)
    messages = [
        {"role": "user", "content": [{"audio": "a.wav"}, {"text": "what is that?"}]},
        {"role": "assistant", "content": "a cat"},
        {"role": "user", "content": [{"audio": "b.wav"}]},
        {"role": "assistant", "content": "the mat <|im_end|>"},
    ]
    (manifest,) = read_manifests([write_manifest(folder / "dialogue.jsonl", [{"id": "d", "messages": messages}])])
    assert manifest.rows[0].problem is None
    return manifest.rows[0]


def supervised_parts(sample) -> list[tuple[str, bool]]:
    """Return the text of a sample in parts of equal supervision. An audio token is written as `*`."""
    tok, parts = tokenizer(), []
    edges = [0, *(np.flatnonzero(np.diff(sample.supervise.astype(int))) + 1).tolist(), len(sample.ids)]
    for start, stop in itertools.pairwise(edges):
        is_audio = sample.audio_mask[start:stop]
        ids = sample.ids[start:stop]
        text = "".join(
            "*" if at_audio else tok.decode([token], keep_control_tokens=True)
            for token, at_audio in zip(ids, is_audio, strict=True)
        )
        parts.append((text, bool(sample.supervise[start])))
    return parts


def test_qwen2_audio_chat_supervises_only_the_assistants_messages_and_their_end_tokens(tmp_path):
    sample = make_sample_builder(ChatSamples, prompt=Qwen2AudioChat()).build(dialogue_of(tmp_path), 0, epoch=0)
    first, second = "*" * GEOMETRY.n_tokens(50), "*" * GEOMETRY.n_tokens(20)
    assert supervised_parts(sample) == [
        (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            f"Audio 1: <|audio_bos|>{first}<|audio_eos|>\nwhat is that?<|im_end|>\n<|im_start|>assistant\n",
            False,
        ),
        ("a cat<|im_end|>", True),
        (
            f"\n<|im_start|>user\nAudio 2: <|audio_bos|>{second}<|audio_eos|>\n<|im_end|>\n<|im_start|>assistant\n",
            False,
        ),
        ("the mat <|im_end|><|im_end|>", True),
        ("\n", False),
    ]
    end = tokenizer().id("<|im_end|>")
    assert (
        sample.ids[sample.supervise] == end
    ).sum() == 2  # the end token within the assistant's text is encoded as text
    assert sample.frames == (50, 20) and len(sample.mels) == 2


def test_qwen_audio_chat_supervises_only_the_assistants_messages_and_their_end_tokens(tmp_path):
    """The numbering of clips restarts in each message, and learned vectors replace the begin and end tokens."""
    samples = make_sample_builder(ChatSamples, prompt=QwenAudioChat(), geometry=V1)
    first, second = "*" * (V1.n_tokens(50) + 2), "*" * (V1.n_tokens(20) + 2)
    assert supervised_parts(samples.build(dialogue_of(tmp_path), 0, epoch=0)) == [
        (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            f"Audio 1:{first}\nwhat is that?<|im_end|>\n<|im_start|>assistant\n",
            False,
        ),
        ("a cat<|im_end|>", True),
        (f"\n<|im_start|>user\nAudio 1:{second}\n<|im_end|>\n<|im_start|>assistant\n", False),
        ("the mat <|im_end|><|im_end|>", True),
        ("\n", False),
    ]


A, B = ({"type": "audio", "audio": name} for name in ("a.wav", "b.wav"))
QUESTION = {"type": "text", "text": "what is that?"}
RAIN, SNOW = ({"role": "assistant", "content": text} for text in ("rain", "snow"))
DIALOGUES = {
    "its own system message": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [A, QUESTION]},
        RAIN,
    ],
    "an empty system message": [{"role": "system", "content": ""}, {"role": "user", "content": [A]}, RAIN],
    "text before the audio": [{"role": "user", "content": [QUESTION, A]}, RAIN],
    "several clips in a message": [{"role": "user", "content": [A, B, QUESTION, A]}, RAIN],
    "several turns": [
        {"role": "user", "content": [A]},
        RAIN,
        {"role": "user", "content": "and?"},
        SNOW,
        {"role": "user", "content": [B, QUESTION]},
        RAIN,
    ],
    "an answer in parts": [
        {"role": "user", "content": [A]},
        {"role": "assistant", "content": [{"type": "text", "text": "ra"}, {"type": "text", "text": "in"}]},
    ],
}


def reference_characters(messages: list[dict], chat: Chat, geometry: audio.Geometry) -> list[tuple[str, bool]]:
    """Return each character of a dialogue, as the published code formats it, and whether it is supervised."""
    is_v1 = isinstance(chat, QwenAudioChat)
    placeholders = {name: "*" * (geometry.n_tokens(n) + 2 * is_v1) for name, n in (("a.wav", 50), ("b.wav", 20))}
    # In Qwen-Audio, learned vectors are at the positions of the begin and end tokens, so `*` stands for these too.
    clip = "Audio {}:{}\n" if is_v1 else "Audio {}: <|audio_bos|>{}<|audio_eos|>\n"
    parts, count = [], 0
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": "You are a helpful assistant."}, *messages]
    for message in messages:
        count = 0 if is_v1 else count
        is_answer, content = message["role"] == "assistant", message["content"]
        parts.append((f"<|im_start|>{message['role']}\n", False))
        for part in [{"text": content}] if isinstance(content, str) else content:
            count += "audio" in part
            parts.append(
                (clip.format(count, placeholders[part["audio"]]) if "audio" in part else part["text"], is_answer)
            )
        parts += [("<|im_end|>", is_answer), ("\n", False)]
    return [(character, supervised) for text, supervised in parts for character in text]


@pytest.mark.parametrize("dialogue", DIALOGUES)
@pytest.mark.parametrize(("chat", "geometry"), CHATS)
def test_every_dialogue_is_formatted_and_supervised_as_in_the_published_code(tmp_path, chat, geometry, dialogue):
    for name, seconds in (("a.wav", 0.5), ("b.wav", 0.2)):
        write_wave(tmp_path / name, seconds)
    row = read_row(tmp_path, messages=DIALOGUES[dialogue], task="chat", language=None, text=None)
    assert row.problem is None
    sample = make_sample_builder(ChatSamples, prompt=chat, geometry=geometry).build(row, 0, epoch=0)
    actual = [(character, supervised) for text, supervised in supervised_parts(sample) for character in text]
    assert actual == reference_characters(DIALOGUES[dialogue], chat, geometry)
    replies = [message_text(message) for message in DIALOGUES[dialogue] if message["role"] == "assistant"]
    end = tokenizer().id("<|im_end|>")
    assert sample.ids[sample.supervise].tolist() == [
        n for text in replies for n in (*tokenizer().encode_plain(text), end)
    ]


@pytest.mark.parametrize(("chat", "geometry"), CHATS)
def test_the_labels_of_a_pack_are_the_supervised_tokens_shifted_by_one(tmp_path, chat, geometry):
    sample = make_sample_builder(ChatSamples, prompt=chat, geometry=geometry).build(dialogue_of(tmp_path), 0, None)
    labels = collate([sample, sample], geometry=geometry)["labels"].numpy()
    expected = np.where(np.append(sample.supervise[1:], False), np.append(sample.ids[1:], 0), IGNORE)
    assert labels.tolist() == [*expected, *expected]
    supervised = [*tokenizer().encode_plain("a cat"), *tokenizer().encode_plain("the mat <|im_end|>")]
    assert (labels != IGNORE).sum() == 2 * (len(supervised) + 2)


@pytest.mark.parametrize(("chat", "geometry"), CHATS)
def test_the_prompt_only_sample_of_a_dialogue_ends_before_the_last_answer(tmp_path, chat, geometry):
    row, samples = dialogue_of(tmp_path), make_sample_builder(ChatSamples, prompt=chat, geometry=geometry)
    sample, prompt = (samples.build(row, 0, None, prompt_only=prompt_only) for prompt_only in (False, True))
    answer = [
        *tokenizer().encode_plain("the mat <|im_end|>"),
        tokenizer().id("<|im_end|>"),
        *tokenizer().encode_plain("\n"),
    ]
    assert sample.ids.tolist() == [*prompt.ids, *answer]
    assert sample.frames == prompt.frames and not prompt.supervise.any()
    assert samples.row_to_score(row).labels["text"] == "the mat <|im_end|>"


@pytest.mark.parametrize(("chat", "geometry"), CHATS)
def test_the_planned_length_of_a_dialogue_is_exact(tmp_path, chat, geometry):
    row, samples = dialogue_of(tmp_path), make_sample_builder(ChatSamples, prompt=chat, geometry=geometry)
    assert planned_length(samples, row) == len(samples.build(row, 0, epoch=3).ids)


def test_a_text_row_in_the_chat_view_is_its_text_and_an_end_token():
    row = Row("line", (), {"task": "text", "text": "the cat sat"})
    samples = make_sample_builder(ChatSamples, prompt=Qwen2AudioChat())
    sample = samples.build(row, 0, epoch=0)
    assert sample.ids.tolist() == [*tokenizer().encode_plain("the cat sat"), tokenizer().end] and sample.supervise.all()
    assert planned_length(samples, row) == len(sample.ids)


def test_a_dialogue_without_audio_is_usable(tmp_path):
    messages = [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": "the mat"}]
    row = Row("typed", (), {"task": "chat", "messages": messages, "text": "the mat", "mode": "text"})
    sample = make_sample_builder(ChatSamples, prompt=Qwen2AudioChat()).build(row, 0, None)
    assert [text for text, supervised in supervised_parts(sample) if supervised] == ["the mat<|im_end|>"]
    assert sample.mels == () and not sample.audio_mask.any()


def test_a_row_of_the_wrong_kind_for_a_view_is_an_error(tmp_path):
    task, chat = row_of(tmp_path), dialogue_of(tmp_path)
    pair = Row("pair", (), {"task": "preference", "messages": chat.labels["messages"][:1]})
    dialogues = make_sample_builder(ChatSamples, prompt=Qwen2AudioChat())
    cases = [
        (dialogues, task, "a row of task 'asr' is not a dialogue"),
        (dialogues, pair, "a row of task 'preference' is not a dialogue"),
        (make_sample_builder(AudioSamples), chat, "the row is a dialogue, expected a task row"),
        (make_sample_builder(TextSamples), replace(chat, clips=()), "the row is a dialogue, expected a task row"),
    ]
    for samples, row, message in cases:
        for attempt in (planned_length, lambda samples, row: samples.build(row, 0, 0)):
            with pytest.raises(RowError, match=message):
                attempt(samples, row)


def test_a_task_of_two_clips_with_one_clip_is_an_error(tmp_path):
    row = row_of(tmp_path, task="sv", text="yes")
    with pytest.raises(RowError, match="task 'sv' needs 2 clips, the row has 1"):
        planned_length(make_sample_builder(), row)
    two = row_of(tmp_path, task="sv", text="yes")
    two = replace(two, clips=2 * two.clips)
    assert len(make_sample_builder().build(two, 0, None).frames) == 2


@pytest.mark.parametrize("prompt", [TagPrompt(), NaturalPrompt()])
@pytest.mark.parametrize("code", [code for code, task in TASKS.items() if task.hours])
def test_a_row_of_every_task_is_planned_and_built(tmp_path, code, prompt):
    task = TASKS[code]
    answer = {"text": task.choices[0]} if task.choices else {}
    labels = {**{name: EXAMPLE[name] for name in task.needs}, **answer}
    write_wave(tmp_path / "a.wav", 0.5)
    row = read_row(tmp_path, audio=["a.wav"] * task.clips, task=code, **labels)
    samples = make_sample_builder(prompt=prompt)
    assert row.problem is None
    assert planned_length(samples, row) >= max_built_length(samples, row, epochs=3)
    sample = samples.build(row, 0, None)
    decoded = tokenizer().decode(sample.ids[sample.supervise].tolist(), keep_control_tokens=True)
    assert decoded.endswith(task.render(labels, tags=not prompt.natural) + "<|endoftext|>")


def test_in_the_text_view_each_clip_is_replaced_by_its_own_text(tmp_path):
    row = row_of(tmp_path, task="sv", text="no", content=["the cat", "a red fox"])
    samples = make_sample_builder(TextSamples)
    two = replace(row, clips=2 * row.clips)
    sample = samples.build(two, 0, epoch=3)
    assert planned_length(samples, two) >= len(sample.ids)
    stretched = tokenizer().decode([n for n in sample.ids.tolist() if n not in tokenizer().pads])
    without_repeats = "".join(letter for n, letter in enumerate(stretched) if stretched[n - 1 : n] != letter)
    assert "the cat" in without_repeats and without_repeats.index("the cat") < without_repeats.index("a red fox")
    labels = {key: value for key, value in two.labels.items() if key not in ("content", "transcript")}
    labels |= {"speakers": ["ann", "bob"], "transcripts": ["the cat", "a red fox"]}
    spoken = replace(two, labels=labels)
    assert len(samples.build(spoken, 0, None).ids) > len(samples.build(two, 0, None).ids)
    for content in ("the cat", ["the cat"], ["the cat", ""], ["the cat", 7]):
        with pytest.raises(RowError, match="expected one text for each of 2 clips"):
            planned_length(samples, replace(two, labels={**two.labels, "content": content}))
    with pytest.raises(RowError, match="no `content`"):
        planned_length(samples, replace(two, labels={**labels, "speakers": ["ann"]}))


def test_the_loss_curve_of_a_dialogue_is_its_mode_and_of_other_rows_their_task(tmp_path):
    chat = make_sample_builder(ChatSamples, prompt=Qwen2AudioChat()).build(dialogue_of(tmp_path), 0, 0)
    assert chat.loss_curve == f"chat {dialogue_of(tmp_path).labels['mode']}"
    assert make_sample_builder().build(row_of(tmp_path), 0, 0).loss_curve == "asr"
