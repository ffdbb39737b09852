"""`AudioModel`: a trained model that responds to prompts (`generate`), transcribes, and continues dialogues (`chat`).

`generate` prompts a base model as in pre-training (audio, then the prompt), and a chat model in ChatML, the format of
dialogues. `chat` always uses ChatML.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import numpy as np
import torch

from auris import config as configs
from auris.audio import MAX_SAMPLES, SAMPLE_RATE, Audio, has_rate, to_wave
from auris.config import Config
from auris.data.collate import collate
from auris.data.long_audio import merge_transcripts, overlapping_windows
from auris.data.rows import Clip, Row, audio_parts, parse_segment
from auris.data.samples import AudioSamples
from auris.errors import UserError
from auris.model.generation import GenerationSettings, generate
from auris.model.pack import Pack, to_device
from auris.model.weights.identify import ConfigFile
from auris.text.chat import Chat, Message, Qwen2AudioChat, QwenAudioChat, audios, map_audios
from auris.text.prompts import BothPrompts, NaturalPrompt, Prompt, TagPrompt, Turn
from auris.text.tokenizer import INCOMPLETE, Tokenizer

if TYPE_CHECKING:
    from auris.model.audio_lm import AudioLM
    from auris.training.objectives.objective import Objective


@dataclass(kw_only=True, eq=False, repr=False)
class AudioModel:
    """A model that responds to prompts and dialogues about audio.

    Args:
        net: the model with its weights, in eval mode.
        objective: the objective that it was trained on.
        tokenizer: the tokenizer that it was trained with.
        config: the config that it was trained with.
        generation: content of its generation_config.json. Settings that are passed to a method take precedence.
        is_chat: whether `generate` prompts in ChatML.
        long_audio: handling of clips longer than 30 s: "window", "first" or "error" (see `inference.load.load`).
    """

    net: AudioLM
    objective: Objective
    tokenizer: Tokenizer
    config: Config
    generation: ConfigFile
    is_chat: bool = False
    long_audio: str = "window"

    def __post_init__(self) -> None:
        # `prompt` is the style for base models, `dialogue` the style for dialogues.
        self.prompt, self.dialogue = prompt_styles(self.config)
        self._samples = _PromptSamples(
            tokenizer=self.tokenizer, prompt=self.prompt, geometry=self.net.geometry, long_audio=self.long_audio
        )

    @property
    def name(self) -> str:
        """Return STUDY/ARM/seed_N of the run. An arm is one of the variants that the study compares."""
        return "{study}/{arm}/seed_{seed}".format(**self.config)

    def check_can_respond(self) -> None:
        """Raise UserError if the model was not trained to respond to prompts."""
        # A view states how rows become samples. In these views, a sample is a prompt with one or two responses.
        if not {"audio", "pair"} & set(self.objective.views):
            raise UserError(
                f"this model was trained on {type(self.objective).__name__} and does not respond to prompts: "
                "use `auris evaluate checkpoint=RUN` to score it"
            )

    def generate(
        self,
        audio: Audio | Sequence[Audio | Sequence[Audio]] | None = None,
        prompt: str | Sequence[str] = "",
        *,
        seed: int | None = None,
        stream: Callable[[int, int], None] | None = None,
        keep_control_tokens: bool = False,
        **settings: Any,
    ) -> str | list[str]:
        """Respond to a prompt about audio. If audio or prompt is a list, the call is a batch and returns a list.

        Args:
            audio: a clip in one of the forms of `audio.to_wave`: a path, samples at 16 kHz, `(samples, rate)`,
                `{array, sampling_rate}`, bytes and others. A list of clips has one entry per row; this entry is a list
                if the row has several clips. All windows of a clip longer than 30 s go into one prompt. None for a
                prompt without audio.
            prompt: text after the audio. For a base model, names of control tokens in it are encoded as these tokens.
                For a chat model, it is the user's message, and all of it is plain text.
            seed: seed of the sampling, to reproduce responses.
            stream: called with (row index, token id) as soon as a token is known.
            keep_control_tokens: keep control tokens (such as word times and musical notes) in the responses.
            settings: fields of `GenerationSettings` that replace the model's own settings.

        Raises:
            UserError: lists have different lengths, audio cannot be used, or settings contradict each other.
        """
        is_batch = _is_list(audio) or isinstance(prompt, (list, tuple))
        options: dict[str, Any] = {
            "seed": seed,
            "stream": stream,
            "keep_control_tokens": keep_control_tokens,
            **settings,
        }
        clips, prompts = _split_batch(audio, prompt)
        if self.is_chat:
            dialogues = [[user_message(row_clips, text)] for row_clips, text in zip(clips, prompts, strict=True)]
            responses = self._respond_to_dialogues(dialogues, **options)
        else:
            turns = [self.prompt.raw(text, len(row_clips)) for row_clips, text in zip(clips, prompts, strict=True)]
            responses = self._respond(clips, turns, **options)
        return responses if is_batch else responses[0]

    def transcribe(self, audio: Audio | Sequence[Audio], language: str = "en", **settings: Any) -> str | list[str]:
        """Transcribe a clip, or each clip of a list, with the speech recognition prompt of pre-training.

        A clip longer than 30 s is cut into overlapping windows with one prompt each. The transcripts of neighbouring
        windows are joined where they agree (`data.long_audio`).

        Args:
            audio: a clip or a list of clips, as in `generate`.
            language: code of the language that is spoken.
            settings: `seed`, `stream`, `keep_control_tokens` and generation settings, as in `generate`.
        """
        clips: list[Any] = list(audio) if _is_list(audio) else [audio]
        windows_of_clips = [self._cut_windows(clip) for clip in clips]
        rows = [[window] for clip_windows in windows_of_clips for window in clip_windows]
        # The transcript "-" is a placeholder, because only the turns of the prompt are used.
        row_turns = self.prompt.turns({"task": "asr", "language": language, "text": "-"}, 1)
        prompt_turns = [turn for turn in row_turns if turn.role == "prompt"]
        responses = iter(self._respond(rows, [prompt_turns] * len(rows), **settings))
        transcripts = [
            merge_transcripts([next(responses) for _ in clip_windows], language) for clip_windows in windows_of_clips
        ]
        return transcripts if _is_list(audio) else transcripts[0]

    def _cut_windows(self, clip: Audio) -> list[np.ndarray]:
        wave = self._samples.read(_decode(clip))
        starts = [round(start * SAMPLE_RATE) for start, _ in overlapping_windows(len(wave) / SAMPLE_RATE)]
        return [wave[start : start + MAX_SAMPLES] for start in starts] or [wave]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        **options: Any,
    ) -> str | list[str]:
        """Return the assistant's next message in a dialogue, or in each of a list of dialogues.

        Args:
            messages: `{role, content}`; content is a string, or a list of `{type: audio, audio: ...}` and
                `{type: text, text: ...}`. The audio has one of the forms that `generate` takes; a path may have an
                `offset` and a `duration`, as in rows. ChatML in the text of a message is treated as plain characters.
                For Qwen-Audio, the oldest exchanges of a dialogue of more than `max_window_size` tokens are dropped, as
                in the released code.
            options: `seed`, `stream`, `keep_control_tokens` and generation settings, as in `generate`.

        Raises:
            UserError: messages have an unknown form, audio cannot be used, or settings contradict each other.
        """
        is_batch = bool(messages) and not isinstance(messages[0], Mapping)
        dialogues: Any = messages if is_batch else [messages]
        responses = self._respond_to_dialogues(dialogues, **options)
        return responses if is_batch else responses[0]

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return self.net.llm.device

    def pack(self, turns: Sequence[list[Turn]], clips: Sequence[Sequence[Audio | Clip]]) -> Pack:
        """Return a batch on the net's device.

        Args:
            turns: the turns of each row, which are the pieces of its prompt.
            clips: the clips of each row, in the order in which its turns refer to them.
        """
        labels = {"task": "chat", "mode": "audio_analysis"}  # every sample has a task; it does not affect the response
        rows = [
            # `_PromptSamples.read` also accepts arrays.
            Row(str(n), cast("tuple[Clip, ...]", tuple(map(_decode, row_clips))), {**labels, "turns": row_turns})
            for n, (row_turns, row_clips) in enumerate(zip(turns, clips, strict=True))
        ]
        samples = [self._samples.build(row, number, None) for number, row in enumerate(rows)]
        return to_device(collate(samples, geometry=self.net.geometry), self.device)

    def settings(self, *, chat: bool = False, **changed: Any) -> GenerationSettings:
        """Return the generation settings of the model, with some fields changed.

        Unless `stop` is changed, the stop tokens of the prompting style are added to the model's stop tokens.

        Args:
            chat: whether the prompting style is ChatML; otherwise it is the style of base models.
            changed: fields of `GenerationSettings`.
        """
        settings = GenerationSettings.from_config(self.generation, **changed)
        style_stop = self.dialogue.stop if chat else self.prompt.stop
        if "stop" in changed:
            return settings
        return replace(settings, stop=settings.stop | set(map(self.tokenizer.id, style_stop)))

    def _respond_to_dialogues(self, dialogues: Sequence[Sequence[Message]], **options: Any) -> list[str]:
        dialogues = [self._drop_old_exchanges(_convert_segments(messages)) for messages in dialogues]
        turns = [self.dialogue.turns(messages) for messages in dialogues]
        return self._respond([audios(messages) for messages in dialogues], turns, chat=True, **options)

    def _drop_old_exchanges(self, messages: Sequence[Message]) -> Sequence[Message]:
        if not isinstance(self.dialogue, QwenAudioChat) or "max_window_size" not in self.generation:
            return messages

        def count_tokens(turns: list[Turn], clips: list[Audio | Clip]) -> int:
            return len(self.pack([turns], [clips])["ids"])

        return self.dialogue.drop_oldest(messages, count_tokens, max_window_size=self.generation["max_window_size"])

    def _respond(
        self,
        clips: Sequence[Sequence[Audio | Clip]],
        turns: Sequence[list[Turn]],
        *,
        chat: bool = False,
        seed: int | None = None,
        stream: Callable[[int, int], None] | None = None,
        keep_control_tokens: bool = False,
        **settings: Any,
    ) -> list[str]:
        self.check_can_respond()
        generation_settings = self.settings(chat=chat, **settings)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        responses = generate(self.net, self.pack(turns, clips), generation_settings, generator=generator, stream=stream)
        return [self.tokenizer.decode(ids, keep_control_tokens=keep_control_tokens) for ids in responses]


class _PromptSamples(AudioSamples):
    """Samples of rows that contain their turns as the label `turns`. Their clips may be arrays."""

    def _turns(self, row: Row, rng: np.random.Generator | None, prompt_only: bool) -> list[Turn]:
        return row.labels["turns"]

    def read(self, clip: Clip | np.ndarray) -> np.ndarray:
        """Return the audio samples of a clip, a segment of a file or 16 kHz samples (L,)."""
        return super().read(clip) if isinstance(clip, Clip) else self.apply_audio_policies(clip)

    def apply_audio_policies(self, wave: np.ndarray) -> np.ndarray:
        """Apply the policies for silent and long audio, with a warning if audio is dropped."""
        kept = super().apply_audio_policies(wave)
        if len(kept) < len(wave):
            seconds = (len(wave) - len(kept)) / SAMPLE_RATE
            warnings.warn(f"long_audio=first: dropped {seconds:.1f} s after the first 30 s", stacklevel=2)
        return kept


def _convert_segments(messages: Sequence[Message]) -> list[Message]:
    """Replace each path by a `Clip` with its `offset` and `duration`, and audio in another form by its samples.

    Raises:
        UserError: audio in another form has an `offset` or a `duration`, or cannot be used.
    """
    parts = iter(audio_parts(messages))

    def convert(audio: Audio | Clip) -> Clip | np.ndarray:
        segment = parse_segment(next(parts))
        if not segment:
            return _decode(audio)
        if not isinstance(audio, (str, Path)):
            raise UserError(
                f"{segment} for an array: only files have an offset and a duration; slice the array instead"
            )
        return Clip(Path(audio), **segment)

    return map_audios(convert, messages)


def prompt_styles(config: Config) -> tuple[Prompt, Chat]:
    """Return two prompting styles of a model trained with this config: one for base models, and one for dialogues.

    A config has only one of them. The other one is taken from the same published system, Qwen-Audio or Qwen2-Audio. A
    model that was trained on the prompts of both systems is prompted like Qwen2-Audio.
    """
    style = configs.build(config["prompt"])
    if isinstance(style, Chat):
        return (TagPrompt() if isinstance(style, QwenAudioChat) else NaturalPrompt()), style
    style = NaturalPrompt() if isinstance(style, BothPrompts) else style
    return style, (QwenAudioChat() if isinstance(style, TagPrompt) else Qwen2AudioChat())


def _decode(audio: Audio | Clip) -> Clip | np.ndarray:
    """Return a file as a `Clip`, which is read later, and audio in another form as 16 kHz samples (L,)."""
    if isinstance(audio, Clip):
        return audio
    return Clip(Path(audio)) if isinstance(audio, (str, Path)) else to_wave(audio)


def _is_list(audio: Any) -> TypeGuard[Sequence[Any]]:
    """Return whether an argument is a list of clips, and not the samples of one clip."""
    if not isinstance(audio, (list, tuple)) or has_rate(audio):
        return False
    return not audio or not (isinstance(audio[0], (int, float)) or getattr(audio[0], "ndim", None) == 0)


def _split_batch(
    audio: Audio | Sequence[Audio | Sequence[Audio]] | None, prompt: str | Sequence[str]
) -> tuple[list[list[Audio | Clip]], list[str]]:
    """Return the clips and the prompt of every row. An argument that is not a list is used for all rows."""
    values: dict[str, Any] = {"audio": audio, "prompt": prompt}
    if audio is not None and not _is_list(audio):
        values["audio"] = _decode(values["audio"])  # once for all rows: an open file can be read only once
    sizes = {name: len(value) for name, value in values.items() if _is_list(value)}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise UserError(f"a batch of {sizes}: expected lists of equal length, or a single value for all rows")
    n_rows = next(iter(sizes.values()), 1)
    entries, prompts = (list(value) if name in sizes else [value] * n_rows for name, value in values.items())
    clips = [list(entry) if _is_list(entry) else [] if entry is None else [entry] for entry in entries]
    return clips, prompts


class StreamingDecoder:
    """Decoder of a growing response. It returns only complete characters, because a token may be a part of a character.

    Args:
        decode: converts token ids to text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self.decode = decode
        self.ids: list[int] = []
        self.n_returned = 0  # number of characters that were returned

    def add(self, token: int) -> str:
        """Add a token to the response, and return the text that the token completes, or an empty string."""
        self.ids.append(token)
        return "" if self.decode(self.ids).endswith(INCOMPLETE) else self.finish()

    def finish(self) -> str:
        """Return the text that was not returned yet. Call this at the end of the response."""
        text = self.decode(self.ids)[self.n_returned :]
        self.n_returned += len(text)
        return text


def user_message(clips: Sequence[Audio | Clip], text: str) -> Message:
    """Return a user's message with the clips, then the text. In voice chat the text is empty and left out."""
    parts = [{"type": "text", "text": text}] if text else []
    return {"role": "user", "content": [*({"type": "audio", "audio": clip} for clip in clips), *parts]}
