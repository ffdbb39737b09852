"""Samples: the prompt, answer and audio of a row as token ids, masks and log-mel features.

A view determines which parts of a row become its sample. This module has four views of a task row. `AudioSamples` uses
the clips, the prompt and the answer. `TextSamples` uses text in place of the audio, to pre-train a language model.
`TranscriptSamples` and `SpokenSamples` use the clip and its transcript, for CTC. `ChatSamples` is the view of a
dialogue. The views with two answers are in `pairs`.

The generator of all random choices about a row is seeded with a hash of (`seed`, epoch, row id).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from auris import audio
from auris.data.augment import Distortion
from auris.data.collate import Sample
from auris.data.length_cache import LengthCache
from auris.data.rows import Clip, Row, row_seed
from auris.data.stretch import Stretch, UniformStretch
from auris.errors import RowError, UserError, count, shorten
from auris.files import digest
from auris.text import tasks
from auris.text.chat import Chat
from auris.text.prompts import BothPrompts, NaturalPrompt, Prompt, PromptStyle, RowPromptStyle, Turn
from auris.text.tokenizer import Encoded, Tokenizer

# Maximum difference in seconds between the duration stated in a manifest, which may be rounded to tenths, and the
# duration of the file. Planned lengths include this tolerance; otherwise a pack could exceed its budget.
DURATION_TOLERANCE = 0.06

Rng = np.random.Generator | None
"""Generator for the random choices about a training row; None for evaluation: canonical wording, no augmentation."""


class ClipTooLongError(RowError):
    """A clip is longer than 30 s, and `long_audio` does not allow it."""

    def __init__(self, n_samples: int):
        seconds = n_samples / audio.SAMPLE_RATE
        super().__init__(
            f"the clip is {seconds:.1f} s long, the limit is 30 s: set long_audio=window (split it), first (keep the "
            "first 30 s) or skip (leave out its row); in training, set data.long_audio"
        )


class Samples(ABC):
    """Base class of the views, which build the samples of rows.

    Args:
        tokenizer: Tokenizer of the model.
        prompt: Style in which rows are written.
        geometry: Determines the numbers of frames and tokens of a clip; None for a language model without audio.
        long_audio: Policy for clips over 30 s. "error" stops the run at its start. "skip" reports the row as unusable.
            "window" encodes consecutive windows of at most 30 s. "first" keeps the first 30 s, like Qwen-Audio and
            Qwen2-Audio, and a warning says how much is dropped.
        silent_audio: Policy for silent clips. "keep" uses the clip, "skip" reports the row as unusable.
        reverb: Reverberation of training clips, applied before the noise, or None.
        noise: Additive noise on training clips, or None.
        augment: SpecAugment for training rows, or None.
        seed: Seed of all random choices.

    Attributes:
        has_audio: Whether samples contain audio.
        encoder_frames: {row id: file with the cached encoder frames of its clip} (`training.encoder_frames`); None: the
            clips are read.
        cached_width: Width of cached encoder frames; None: clips are read.
        styles: Classes of prompt styles that the view supports.
    """

    has_audio = True
    encoder_frames: Mapping[str, Path] | None = None
    cached_width: int | None = None
    styles: tuple[type, ...] = (Prompt, BothPrompts)

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
            raise UserError(f"long_audio={shorten(long_audio)}: expected error, skip, window or first")
        if silent_audio not in ("keep", "skip"):
            raise UserError(f"silent_audio={shorten(silent_audio)}: expected keep or skip")
        if not self.has_audio and (reverb is not None or noise is not None):
            raise UserError("data.noise and data.reverb have no effect in a view without audio: set both to null")
        self.tokenizer, self.prompt, self.geometry = tokenizer, prompt, geometry
        self.distortions = [distortion for distortion in (reverb, noise) if distortion is not None]
        self.long_audio, self.silent_audio = long_audio, silent_audio
        self.augment, self.seed = augment, seed

    @cached_property
    def length_cache(self) -> LengthCache:
        """Counter of tokens, with cached counts for all rows of this view."""
        return LengthCache(self.tokenizer)

    @property
    def _style(self) -> RowPromptStyle:
        return cast("RowPromptStyle", self.prompt)  # `styles` contains only such classes

    @property
    def _chat(self) -> Chat:
        assert isinstance(self.prompt, Chat)  # the only class in `styles`
        return self.prompt

    @property
    def _geometry(self) -> audio.Geometry:
        assert self.geometry is not None  # only a view without audio has no geometry
        return self.geometry

    @abstractmethod
    def encode(self, row: Row, audio_lengths: Sequence[int], rng: Rng, *, prompt_only: bool = False) -> Encoded:
        """Return the token ids and masks of a row whose k-th clip has `audio_lengths[k]` audio tokens."""

    @abstractmethod
    def max_length(self, row: Row, audio_lengths: Sequence[int]) -> int:
        """Return the number of tokens of the row in its longest wording, the length that the plan uses."""

    def max_length_without_text(self, row: Row) -> int | None:
        """Return `max_length` without audio and `text`; None if the result depends on the audio or on `text`."""
        return None

    def scored_row(self, row: Row) -> Row:
        """Return the row with the labels that an answer in this view is scored against."""
        return row

    def build(self, row: Row, number: int, epoch: int | None, *, prompt_only: bool = False) -> Sample:
        """Build the sample of a row.

        Args:
            row: The row.
            number: Number of the row, stored in the sample.
            epoch: Data epoch of a training row; None for evaluation: canonical wording, no augmentation.
            prompt_only: Leave out the answer, for generation.

        Raises:
            RowError: The row cannot be used.
            AudioError: A clip cannot be read.
        """
        if row.problem:  # the file has become unreadable since the row was measured
            raise RowError(row.problem)
        seed = None if epoch is None else row_seed(self.seed, epoch, row.id)
        rng = None if seed is None else np.random.default_rng(seed)
        if self.encoder_frames is not None and row.clips:
            return self._build_from_frames(row, number, rng, prompt_only, self.encoder_frames)
        waves = [self.read(clip) for clip in row.clips] if self.has_audio else []
        if seed is not None and self.distortions:
            # With a separate generator, wordings and masks are the same as in a run without distortions.
            distortion_rng = np.random.default_rng((seed, 1))
            for distort in self.distortions:
                waves = [distort(wave, distortion_rng) for wave in waves]
        clip_windows = [audio.split_into_windows(wave) for wave in waves]
        clip_frames = [[self._geometry.n_frames(len(window)) for window in windows] for windows in clip_windows]
        audio_lengths = [self._geometry.n_clip_tokens(window_frames) for window_frames in clip_frames]
        self.check_audio_lengths(audio_lengths)
        encoded = self.encode(row, audio_lengths, rng, prompt_only=prompt_only)
        frames = [n for window_frames in clip_frames for n in window_frames]
        windows = [window for windows in clip_windows for window in windows]
        mels = [
            audio.log_mel(window, self._geometry.n_mels, self._geometry.n_frames_with_padding(n))
            for window, n in zip(windows, frames, strict=True)
        ]
        if rng is not None and self.augment is not None:
            mask_seeds = rng.integers(2**62, size=len(mels))
            mels = [
                self.augment(mel, n, int(mask_seed)) for mel, n, mask_seed in zip(mels, frames, mask_seeds, strict=True)
            ]
        return Sample(
            row=number,
            ids=encoded.ids,
            supervise=encoded.supervise,
            audio_mask=encoded.audio,
            mels=tuple(mels),
            frames=tuple(frames),
            audio_seconds=sum(len(wave) for wave in waves) / audio.SAMPLE_RATE,
            loss_curve=tasks.loss_curve(row.labels),
        )

    def _build_from_frames(
        self, row: Row, number: int, rng: Rng, prompt_only: bool, files: Mapping[str, Path]
    ) -> Sample:
        """Build the sample of a row with one clip from the cached encoder frames of the clip."""
        if row.id not in files:
            raise RowError("the row has no cached encoder frames, because its audio could not be used")
        frames = torch.from_numpy(np.load(files[row.id]))
        n_frames = 2 * len(frames)  # the encoder halves the rate
        encoded = self.encode(row, [self._geometry.n_clip_tokens([n_frames])], rng, prompt_only=prompt_only)
        return Sample(
            row=number,
            ids=encoded.ids,
            supervise=encoded.supervise,
            audio_mask=encoded.audio,
            mels=(),
            frames=(n_frames,),
            audio_seconds=len(frames) / audio.ENCODER_RATE,
            loss_curve=tasks.loss_curve(row.labels),
            encoder_frames=frames,
        )

    def audio_lengths(self, row: Row) -> list[int]:
        """Return the number of audio tokens of each clip, from stated durations or file headers, without decoding.

        Raises:
            ClipTooLongError: A clip is longer than 30 s and the policy does not allow it.
            AudioError: A header cannot be read.
        """
        if not self.has_audio:
            return []
        audio_lengths = []
        for clip in row.clips:
            n_samples = _n_samples(clip)
            if n_samples > audio.MAX_SAMPLES and self.long_audio not in ("window", "first"):
                raise ClipTooLongError(n_samples)
            if clip.duration is not None:
                n_samples += round(DURATION_TOLERANCE * audio.SAMPLE_RATE)
            if self.long_audio == "first":
                n_samples = min(n_samples, audio.MAX_SAMPLES)
            audio_lengths.append(
                self._geometry.n_clip_tokens([self._geometry.n_frames(n) for n in audio.window_lengths(n_samples)])
            )
        return audio_lengths

    def dropped_seconds(self, row: Row) -> float:
        """Return how many seconds of the row's clips `long_audio=first` drops."""
        if self.long_audio != "first" or not self.has_audio:
            return 0.0
        n_dropped = (max(0, _n_samples(clip) - audio.MAX_SAMPLES) for clip in row.clips)
        return sum(n_dropped) / audio.SAMPLE_RATE

    def audio_seconds(self, row: Row) -> float:
        """Return how many seconds of audio the row's sample contains, from stated durations or the files' headers."""
        if not self.has_audio:
            return 0.0
        return sum(map(_n_samples, row.clips)) / audio.SAMPLE_RATE - self.dropped_seconds(row)

    def _turns(self, row: Row, rng: Rng, prompt_only: bool) -> list[Turn]:
        _check_task(row)
        turns = self._style.turns(row.labels, len(row.clips), rng)
        return [turn for turn in turns if turn.role == "prompt"] if prompt_only else turns

    def _max_length(self, row: Row, audio_lengths: Sequence[int]) -> int:
        _check_task(row)
        return self.length_cache.max_length(self._style, row.labels, audio_lengths)

    def check_audio_lengths(self, audio_lengths: Sequence[int]) -> None:
        """Raise RowError if a clip is too short for an audio token."""
        if any(n == 0 for n in audio_lengths):
            raise RowError("the clip is shorter than one audio token")

    def read(self, clip: Clip) -> np.ndarray:
        """Read a clip (L,) and apply the policies for long and silent audio.

        Raises:
            RowError: The manifest states a wrong duration, or a policy excludes the clip.
            AudioError: The clip cannot be read.
        """
        wave = clip.read()
        seconds = len(wave) / audio.SAMPLE_RATE
        if clip.offset is None and clip.duration is not None and abs(seconds - clip.duration) > DURATION_TOLERANCE:
            raise RowError(f"{clip.path} is {seconds:.2f} s long, but the manifest states {clip.duration:.2f} s")
        return self.apply_audio_policies(wave)

    def apply_audio_policies(self, wave: np.ndarray) -> np.ndarray:
        """Apply the policies for silent and long audio to a clip (L,). Raises RowError if they exclude it."""
        if self.silent_audio == "skip" and audio.is_silent(wave):
            raise RowError("the clip is silent; set data.silent_audio=keep to train on it")
        if len(wave) > audio.MAX_SAMPLES and self.long_audio not in ("window", "first"):
            raise ClipTooLongError(len(wave))
        return wave[: audio.MAX_SAMPLES] if self.long_audio == "first" else wave


def _check_task(row: Row) -> None:
    if "messages" in row.labels:
        raise RowError(
            "the row is a dialogue, expected a task row: set objective=sft data.view=chat prompt=chat_v1 (or chat_v2)"
        )
    task = tasks.get_task(row.labels["task"])
    if len(row.clips) < task.clips:
        raise RowError(f"task {task.code!r} needs {task.clips} clips, the row has {len(row.clips)}")


def _transcript_label(row: Row) -> str:
    """Return `text` if the row's task is a transcription, otherwise an empty string."""
    return row.labels["text"] if row.labels["task"] in tasks.TRANSCRIPT_TASKS else ""


def _speakers_and_transcripts(labels: Mapping[str, Any]) -> list[str]:
    """Return the speaker and the transcript of each clip as one text; an empty list unless both are listed."""
    speakers, transcripts = labels.get("speakers"), labels.get("transcripts")
    if not isinstance(speakers, list) or not isinstance(transcripts, list) or len(speakers) != len(transcripts):
        return []
    return [f"{speaker} {text}" for speaker, text in zip(speakers, transcripts, strict=True)]


def _n_samples(clip: Clip) -> int:
    """Return the number of samples of a clip from its stated duration, or else from the file's header."""
    return clip.n_samples() if clip.duration is None else round(clip.duration * audio.SAMPLE_RATE)


class AudioSamples(Samples):
    """View of a task row with its clips, prompt and answer."""

    def encode(self, row: Row, audio_lengths: Sequence[int], rng: Rng, *, prompt_only: bool = False) -> Encoded:
        """Return the token ids of prompt and answer, with audio pad tokens in the place of the clips."""
        turns = self._turns(row, rng, prompt_only)
        pad = self.tokenizer.audio_pad_id(turns)
        encoded = self.tokenizer.encode(turns, [[pad] * n for n in audio_lengths])
        if not self._geometry.boundary:
            return encoded
        # Learned vectors replace the begin and end token of each clip, so these count as audio tokens too.
        audio_mask = encoded.audio.copy()
        audio_mask[:-1] |= encoded.audio[1:]
        audio_mask[1:] |= encoded.audio[:-1]
        return replace(encoded, audio=audio_mask)

    def max_length(self, row: Row, audio_lengths: Sequence[int]) -> int:
        """Return the number of tokens of the longest wording."""
        return self._max_length(row, audio_lengths)

    def max_length_without_text(self, row: Row) -> int | None:
        """Return `max_length` without the tokens of audio and `text`; None in subclasses with another `max_length`."""
        if type(self).max_length is not AudioSamples.max_length:
            return None
        return self.length_cache.max_length_without_text(self._style, row.labels, len(row.clips))


class TextSamples(Samples):
    """View of a task row with text in place of its audio, which is not read.

    The text of a clip is the label `content`, or else `transcript`, or else `text` of a transcription task. For several
    clips, it is an entry of the list `content` or of the lists `speakers` and `transcripts`.

    Args:
        stretch: Stretches the text to resemble audio tokens; None: `UniformStretch`.
        **settings: Those of `Samples`.
    """

    has_audio = False

    def __init__(self, *, stretch: Stretch | None = None, **settings: Any):
        super().__init__(**settings)
        self.stretch = stretch or UniformStretch()

    def encode(self, row: Row, audio_lengths: Sequence[int], rng: Rng, *, prompt_only: bool = False) -> Encoded:
        """Return the token ids of prompt and answer, with stretched text in the place of the clips."""
        turns = self._turns(row, rng, prompt_only)
        pad, train = self.tokenizer.audio_pad_id(turns), rng is not None
        rng = rng or np.random.default_rng(0)
        contents = [self.tokenizer.encode_plain(content) for content in self._contents(row)]
        texts = [self.stretch(tokens, pad, rng, train=train) for tokens in contents]
        return self.tokenizer.encode(turns, texts, is_audio=False)

    def max_length(self, row: Row, audio_lengths: Sequence[int]) -> int:
        """Return the number of tokens of the longest wording with maximally stretched text."""
        counts = map(self.length_cache.count_tokens, self._contents(row))
        return self._max_length(row, [*map(self.stretch.max_length, counts)])

    def _contents(self, row: Row) -> list[str]:
        """Return the text of each clip, with the prefix before it."""
        labels = row.labels
        content = (
            labels.get("content")
            or labels.get("transcript")
            or _transcript_label(row)
            or _speakers_and_transcripts(labels)
        )
        if row.clips and not content:
            raise RowError("the row has no `content`, the text that replaces its audio")
        texts = content if isinstance(content, list) else [content]
        if not row.clips:
            return []
        if len(texts) != len(row.clips) or not all(isinstance(text, str) and text for text in texts):
            raise RowError(
                f"`content` is {shorten(content)}, expected one text for each of {count(len(row.clips), 'clip')}"
            )
        return [self.stretch.prefix + text for text in texts]


class TranscriptSamples(Samples):
    """View of a row with its clip and transcript, without a prompt, for CTC training of the encoder."""

    def encode(self, row: Row, audio_lengths: Sequence[int], rng: Rng, *, prompt_only: bool = False) -> Encoded:
        """Return the token ids of the transcript."""
        ids = np.array(self.target_ids(self._transcript(row)), dtype=np.int64)
        return Encoded(ids, np.zeros(len(ids), dtype=bool), np.zeros(len(ids), dtype=bool))

    def target_ids(self, text: str) -> tuple[int, ...]:
        """Return the token ids that a transcript has as a target of CTC."""
        return self.tokenizer.encode_plain(text)

    def target_spans(self, text: str) -> list[tuple[int, int]]:
        """Return the range of characters (start, exclusive end) of each of the `target_ids`."""
        return self.tokenizer.token_spans(text)

    def scored_row(self, row: Row) -> Row:
        """Return the row with the labels of a speech recognition task."""
        labels = {"task": "asr", "language": row.labels.get("language", "en"), "text": self._transcript(row)}
        return replace(row, labels={**row.labels, **labels})

    def max_length(self, row: Row, audio_lengths: Sequence[int]) -> int:
        """Return the number of audio tokens, which determines the cost of a step. Text tokens do not matter."""
        self._transcript(row)
        return sum(audio_lengths)

    def _transcript(self, row: Row) -> str:
        text = row.labels.get("transcript") or _transcript_label(row)
        if not text:
            raise RowError("the row has no `transcript` to train the encoder on")
        if len(row.clips) != 1:
            raise RowError(f"the row has {len(row.clips)} clips, expected one clip for its transcript")
        return text


class SpokenSamples(TranscriptSamples):
    """View of a row with its clip and transcript, in which the first word begins with a space like all others.

    The vocabularies of language models have another token for a word at the beginning of a text. A clip does not tell
    the two apart, and only one word of a transcript would train the second.
    """

    def target_ids(self, text: str) -> tuple[int, ...]:
        """Return the token ids of the transcript after a space."""
        return self.tokenizer.encode_plain(f" {text}")

    def target_spans(self, text: str) -> list[tuple[int, int]]:
        """Return the range of characters of each token in the text without the space."""
        spans = self.tokenizer.token_spans(f" {text}")
        return [(max(0, start - 1), max(0, end - 1)) for start, end in spans]


class ChatSamples(AudioSamples):
    """View of a dialogue in ChatML, in which every message of the assistant is supervised.

    A row of plain text is accepted too. The prompt consists of all messages except the last. There are no alternative
    wordings.
    """

    styles = (Chat,)

    def max_length(self, row: Row, audio_lengths: Sequence[int]) -> int:
        """Return the number of tokens of the dialogue."""
        return len(self.encode(row, audio_lengths, None).ids)

    def _turns(self, row: Row, rng: Rng, prompt_only: bool) -> list[Turn]:
        task = row.labels["task"]
        if task == "text":
            return NaturalPrompt().turns(row.labels, 0)
        if task != "chat":
            raise RowError(f"a row of task {task!r} is not a dialogue with an answer, expected `messages`")
        messages = row.labels["messages"]
        return self._chat.turns(messages[:-1]) if prompt_only else self._chat.turns(messages, supervise=True)


# --- checksum -----------------------------------------------------------------------------------------------------


def prompt_digest(samples: Samples) -> str:
    """Return a checksum of what turns a row into tokens: view, long_audio, geometry, stretch, prompts and tokenizer."""
    settings = [type(samples).__name__, samples.long_audio, repr(samples.geometry)]
    if isinstance(samples, TextSamples):
        settings.append(samples.stretch.fingerprint)
    return digest([*settings, samples.prompt.fingerprint(), samples.tokenizer.fast.backend_tokenizer.to_str()])
