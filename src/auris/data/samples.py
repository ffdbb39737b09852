"""Rows -> samples: prompt, answer and audio of one row as token ids, masks and log-mel features.

Three ways to see the same task row: `AudioSamples` (hear it and answer), `TextSamples` (its content as text where the
audio will stand: what the embedded language model is pre-trained on) and `TranscriptSamples` (what is said: for CTC).
Dialogues are seen by `ChatSamples`.
Every random choice about a row is drawn from a seed of (seed, epoch, row id).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from auris import audio
from auris.data.augment import Distortion
from auris.data.collate import Sample
from auris.data.length_cache import LengthCache
from auris.data.rows import Clip, Row, row_seed
from auris.errors import RowError, UserError
from auris.files import digest
from auris.text import tasks
from auris.text.chat import Chat
from auris.text.prompts import BothPrompts, NaturalPrompt, Prompt, PromptStyle, Turn
from auris.text.tokenizer import Encoded, Tokenizer

# A manifest's stated duration may differ from the file's by this, as when it is rounded to tenths; beyond, the row is
# wrong. Rows are planned with so much room, or a pack could outgrow its budget.
DURATION_TOLERANCE = 0.06  # seconds

Rng = np.random.Generator | None
"""The random choices of a training row; None in evaluation: canonical wording, no augmentation."""


class ClipTooLongError(RowError):
    """A clip over 30 s under a policy that takes none."""

    def __init__(self, samples: int):
        seconds = samples / audio.SAMPLE_RATE
        super().__init__(
            f"the clip is {seconds:.1f} s, the limit is 30 s: set long_audio=window, first or skip "
            "(data.long_audio=... in training)"
        )


class Samples(ABC):
    """What the three views share.

    Args:
        tokenizer, prompt: as they are trained and evaluated with.
        geometry: of the encoder (None for a language model alone).
        long_audio: clips over 30 s: "error" stops at start-up, "skip" counts and names the row, "window" encodes
            consecutive windows of at most 30 s, whose tokens follow one another, "first" drops all but the first 30 s,
            as both released systems do, and says how much. Never a silent cut.
        silent_audio: clips without any sound: "keep", or "skip" counts and names the row.
        reverb, noise: what training clips are heard through, in this order, or None.
        augment: SpecAugment for training rows, or None.
        seed: of every random choice.
    """

    has_audio = True
    styles: tuple[type, ...] = (Prompt, BothPrompts)  # of prompting that a view is written in

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        prompt: PromptStyle,
        geometry: audio.Geometry | None,
        long_audio: str = "error",
        silent_audio: str = "keep",
        reverb: Distortion | None = None,
        noise: Distortion | None = None,
        augment: audio.SpecAugment | None = None,
        seed: int = 0,
    ):
        if long_audio not in ("error", "skip", "window", "first"):
            raise UserError(f"long_audio={long_audio!r}: expected error, skip, window or first")
        if silent_audio not in ("keep", "skip"):
            raise UserError(f"silent_audio={silent_audio!r}: expected keep or skip")
        if not self.has_audio and (reverb is not None or noise is not None):
            raise UserError("data.noise and data.reverb have no effect in a view without audio: set both to null")
        self.tokenizer, self.prompt, self.geometry = tokenizer, prompt, geometry
        self.distortions = [one for one in (reverb, noise) if one is not None]
        self.long_audio, self.silent_audio = long_audio, silent_audio
        self.augment, self.seed = augment, seed

    @cached_property
    def length_cache(self) -> LengthCache:
        return LengthCache(self.tokenizer)

    @abstractmethod
    def encode(self, row: Row, spans: Sequence[int], rng: Rng, *, prompt_only: bool = False) -> Encoded:
        """Return the token ids of a row whose k-th clip has `spans[k]` audio tokens."""

    @abstractmethod
    def length(self, row: Row, spans: Sequence[int]) -> int:
        """Tokens of the row's longest wording: what the plan counts."""

    def length_without_text(self, row: Row) -> int | None:
        """Return the length without audio and `text`; None if rows that differ in these alone may differ in it."""
        return None

    def target_row(self, row: Row) -> Row:
        """The row as this view asks it: its labels say what the right answer is."""
        return row

    def build(self, row: Row, number: int, epoch: int | None, *, prompt_only: bool = False) -> Sample:
        """The sample of a row; `epoch=None` for evaluation: canonical wording, no augmentation.

        `prompt_only` leaves the answer out, as generation starts.

        Raises RowError or AudioError if the row cannot be used.
        """
        if row.problem:  # met only now: its shard could be read when it was measured
            raise RowError(row.problem)
        seed = None if epoch is None else row_seed(self.seed, epoch, row.id)
        rng = None if seed is None else np.random.default_rng(seed)
        waves = [self.read(clip) for clip in row.clips] if self.has_audio else []
        if seed is not None and self.distortions:
            own_rng = np.random.default_rng((seed, 1))  # wordings and masks are those of a run without noise
            for distort in self.distortions:
                waves = [distort(wave, own_rng) for wave in waves]
        windows = [audio.windows(wave) for wave in waves]
        frames = [[self.geometry.frames(len(window)) for window in clip] for clip in windows]
        spans = [self.geometry.span(clip) for clip in frames]
        self.check_spans(spans)
        encoded = self.encode(row, spans, rng, prompt_only=prompt_only)
        frames = [n for clip in frames for n in clip]
        heard = zip((window for clip in windows for window in clip), frames, strict=True)
        mels = [audio.log_mel(window, self.geometry.n_mels, self.geometry.stored(n)) for window, n in heard]
        if rng is not None and self.augment is not None:
            seeds = rng.integers(2**62, size=len(mels))
            mels = [self.augment(mel, n, int(seed)) for mel, n, seed in zip(mels, frames, seeds, strict=True)]
        return Sample(
            row=number,
            ids=encoded.ids,
            supervise=encoded.supervise,
            audio_mask=encoded.audio,
            mels=tuple(mels),
            frames=tuple(frames),
            audio_seconds=sum(len(wave) for wave in waves) / audio.SAMPLE_RATE,
            curve=tasks.curve(row.labels),
        )

    def spans(self, row: Row) -> list[int]:
        """Audio tokens of each clip, from the manifest's durations or the files' headers, without decoding."""
        if not self.has_audio:
            return []
        spans = []
        for clip in row.clips:
            samples = _stated_samples(clip)
            if samples > audio.MAX_SAMPLES and self.long_audio not in ("window", "first"):
                raise ClipTooLongError(samples)
            if clip.duration is not None:
                samples += round(DURATION_TOLERANCE * audio.SAMPLE_RATE)
            if self.long_audio == "first":
                samples = min(samples, audio.MAX_SAMPLES)
            spans.append(self.geometry.span([self.geometry.frames(n) for n in audio.window_lengths(samples)]))
        return spans

    def dropped_seconds(self, row: Row) -> float:
        """Seconds of the row's clips that `long_audio=first` does not hear."""
        if self.long_audio != "first" or not self.has_audio:
            return 0.0
        over = (max(0, _stated_samples(clip) - audio.MAX_SAMPLES) for clip in row.clips)
        return sum(over) / audio.SAMPLE_RATE

    def seconds(self, row: Row) -> float:
        """Seconds of the row's clips that are heard, by the manifest or the files' headers."""
        if not self.has_audio:
            return 0.0
        return sum(map(_stated_samples, row.clips)) / audio.SAMPLE_RATE - self.dropped_seconds(row)

    def _turns(self, row: Row, rng: Rng, prompt_only: bool) -> list[Turn]:
        _check_task(row)
        turns = self.prompt.turns(row.labels, len(row.clips), rng)
        return [turn for turn in turns if turn.role == "prompt"] if prompt_only else turns

    def _longest(self, row: Row, spans: Sequence[int]) -> int:
        _check_task(row)
        return self.length_cache.longest(self.prompt, row.labels, spans)

    def check_spans(self, spans: Sequence[int]) -> None:
        if any(n == 0 for n in spans):
            raise RowError("the clip is shorter than one audio token")

    def read(self, clip: Clip) -> np.ndarray:
        """A clip's samples (L,) as far as the policies let it be heard. Raises RowError or AudioError."""
        wave = clip.read()
        seconds = len(wave) / audio.SAMPLE_RATE
        if clip.offset is None and clip.duration is not None and abs(seconds - clip.duration) > DURATION_TOLERANCE:
            raise RowError(f"{clip.path} is {seconds:.2f} s, the manifest says {clip.duration:.2f} s")
        return self._limit(wave)

    def _limit(self, wave: np.ndarray) -> np.ndarray:
        """A clip as far as the policies let it be heard."""
        if self.silent_audio == "skip" and audio.is_silent(wave):
            raise RowError("the clip is silent: data.silent_audio=keep trains on it")
        if len(wave) > audio.MAX_SAMPLES and self.long_audio not in ("window", "first"):
            raise ClipTooLongError(len(wave))
        return wave[: audio.MAX_SAMPLES] if self.long_audio == "first" else wave


def _check_task(row: Row) -> None:
    if "messages" in row.labels:
        raise RowError("a dialogue: fine-tune on it (objective=sft data.view=chat prompt=chat_v1 or chat_v2)")
    task = tasks.find(row.labels["task"])
    if len(row.clips) < task.clips:
        raise RowError(f"task {task.code!r} is asked about {task.clips} clips, the row has {len(row.clips)}")


def _text(row: Row) -> str:
    """What is said, of a row that is asked for it."""
    return row.labels["text"] if row.labels["task"] in tasks.TRANSCRIPTS else ""


def _spoken(labels: Mapping[str, Any]) -> list[str]:
    """Who speaks in each clip, and what is said, where both are listed."""
    listed = [labels.get(name) for name in ("speakers", "transcripts")]
    if not all(isinstance(one, list) for one in listed) or len(listed[0]) != len(listed[1]):
        return []
    return [f"{speaker} {text}" for speaker, text in zip(*listed, strict=True)]


def _stated_samples(clip: Clip) -> int:
    """Samples of a clip by the manifest, or where that is silent by the file's header."""
    return clip.n_samples() if clip.duration is None else round(clip.duration * audio.SAMPLE_RATE)


class AudioSamples(Samples):
    """Hear the clips and answer the prompt."""

    def encode(self, row: Row, spans: Sequence[int], rng: Rng, *, prompt_only: bool = False) -> Encoded:
        turns = self._turns(row, rng, prompt_only)
        pad = self.tokenizer.pad_of(turns)
        encoded = self.tokenizer.encode(turns, [[pad] * n for n in spans])
        if not self.geometry.boundary:
            return encoded
        marks = encoded.audio.copy()  # the tokens next to a clip's are its own too: learned vectors replace them
        marks[:-1] |= encoded.audio[1:]
        marks[1:] |= encoded.audio[:-1]
        return replace(encoded, audio=marks)

    def length(self, row: Row, spans: Sequence[int]) -> int:
        return self._longest(row, spans)

    def length_without_text(self, row: Row) -> int | None:
        if type(self).length is not AudioSamples.length:
            return None
        return self.length_cache.without_text(self.prompt, row.labels, len(row.clips))


class TextSamples(Samples):
    """The row's content as text where its audio will stand: no audio is read.

    Tokens of the content are stretched, as pooled audio frames are: each stands 1 to 8 times, with 0 to 4
    blanks (the audio pad) between them. A row's content is its `content` field, or `transcript`, or for speech
    recognition its `text`; of several clips `content` is a list, or `speakers` and `transcripts` are: of each clip who
    speaks, and what is said.
    """

    has_audio = False
    REPEATS, BLANKS = (1, 8), (0, 4)

    def encode(self, row: Row, spans: Sequence[int], rng: Rng, *, prompt_only: bool = False) -> Encoded:
        turns = self._turns(row, rng, prompt_only)
        pad, rng = self.tokenizer.pad_of(turns), rng or np.random.default_rng(0)
        spans = [self._stretch(self.tokenizer.plain(content), pad, rng) for content in self._contents(row)]
        return self.tokenizer.encode(turns, spans, is_audio=False)

    def length(self, row: Row, spans: Sequence[int]) -> int:
        counts = map(self.length_cache.count, self._contents(row))
        return self._longest(row, [self.REPEATS[1] * n + self.BLANKS[1] * (n + 1) for n in counts])

    def _contents(self, row: Row) -> list[str]:
        """What stands in the place of each clip."""
        labels = row.labels
        given = labels.get("content") or labels.get("transcript") or _text(row) or _spoken(labels)
        if row.clips and not given:
            raise RowError("no `content` (what is heard, as text) to stand in the audio's place")
        contents = given if isinstance(given, list) else [given]
        if not row.clips:
            return []
        if len(contents) != len(row.clips) or not all(isinstance(one, str) and one for one in contents):
            raise RowError(f"`content` is {given!r:.80}, expected a text for each of {len(row.clips)} clips")
        return contents

    def _stretch(self, content: Sequence[int], blank: int, rng: np.random.Generator) -> list[int]:
        blanks = rng.integers(self.BLANKS[0], self.BLANKS[1] + 1, size=len(content) + 1)
        repeats = rng.integers(self.REPEATS[0], self.REPEATS[1] + 1, size=len(content))
        span = [blank] * int(blanks[0])
        for token, repeat, after in zip(content, repeats, blanks[1:], strict=True):
            span += [token] * int(repeat) + [blank] * int(after)
        return span


class TranscriptSamples(Samples):
    """What is said, as text tokens beside the clip: no prompt, nothing spliced (CTC training of the encoder)."""

    def encode(self, row: Row, spans: Sequence[int], rng: Rng, *, prompt_only: bool = False) -> Encoded:
        ids = np.array(self.tokenizer.plain(self._transcript(row)), dtype=np.int64)
        return Encoded(ids, np.zeros(len(ids), dtype=bool), np.zeros(len(ids), dtype=bool))

    def target_row(self, row: Row) -> Row:
        text = {"task": "asr", "language": row.labels.get("language", "en"), "text": self._transcript(row)}
        return replace(row, labels={**row.labels, **text})

    def length(self, row: Row, spans: Sequence[int]) -> int:
        """Audio tokens: they, not the few text tokens, are what a step of the encoder costs."""
        self._transcript(row)
        return sum(spans)

    def _transcript(self, row: Row) -> str:
        text = row.labels.get("transcript") or _text(row)
        if not text:
            raise RowError("no `transcript` (what is said) to train the encoder on")
        if len(row.clips) != 1:
            raise RowError(f"{len(row.clips)} clips: a transcript belongs to one")
        return text


class ChatSamples(AudioSamples):
    """Dialogues in ChatML, in which all that the assistant says is trained, and plain text.

    A question alone is the dialogue up to its last message; every wording is the row's own.
    """

    styles = (Chat,)

    def length(self, row: Row, spans: Sequence[int]) -> int:
        return len(self.encode(row, spans, None).ids)

    def _turns(self, row: Row, rng: Rng, prompt_only: bool) -> list[Turn]:
        task = row.labels["task"]
        if task == "text":
            return NaturalPrompt().turns(row.labels, 0)
        if task != "chat":
            raise RowError(f"a row of task {task!r} is no dialogue with an answer: expected `messages`")
        messages = row.labels["messages"]
        return self.prompt.turns(messages[:-1]) if prompt_only else self.prompt.turns(messages, supervise=True)


# --- checksum -----------------------------------------------------------------------------------------------------


def prompt_digest(samples: Samples) -> str:
    """Return a checksum of everything that turns a row into tokens: view, wordings, tokenizer, audio geometry."""
    view = [type(samples).__name__, samples.long_audio, repr(samples.geometry)]
    return digest([*view, samples.prompt.fingerprint(), samples.tokenizer.fast.backend_tokenizer.to_str()])
