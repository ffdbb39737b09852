"""`AudioModel`: a trained model that responds to prompts (`generate`), transcribes, and continues dialogues (`chat`).

`generate` prompts a base model as in pre-training (audio, then the prompt) and a chat model in ChatML. `chat` always
uses ChatML.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from auris import config as configs
from auris.audio import MAX_SAMPLES, SAMPLE_RATE
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

Audio = str | Path | np.ndarray | Tensor
"""An audio file, or samples (L,) at 16 kHz."""


@dataclass(kw_only=True, eq=False, repr=False)
class AudioModel:
    """A model that responds to prompts and dialogues about audio.

    Args:
        net: the model with its weights, in eval mode.
        objective: the objective that it was trained on.
        tokenizer: the tokenizer that it was trained with.
        config: the config that it was trained with.
        generation: content of its generation_config.json; the settings of a call take precedence.
        is_chat: whether `generate` prompts in ChatML.
        long_audio: handling of clips over 30 s: "window", "first" or "error" (see `inference.load.load`).
    """

    net: AudioLM
    objective: Objective
    tokenizer: Tokenizer
    config: Config
    generation: ConfigFile
    is_chat: bool = False
    long_audio: str = "window"

    def __post_init__(self) -> None:
        self.prompt, self.dialogue = prompt_styles(self.config)
        self._view = _PromptSamples(
            tokenizer=self.tokenizer, prompt=self.prompt, geometry=self.net.geometry, long_audio=self.long_audio
        )

    @property
    def name(self) -> str:
        """Return the study, arm and seed of the run."""
        return "{study}/{arm}/seed_{seed}".format(**self.config)

    def check_answers(self) -> None:
        """Raise UserError if the model was not trained to respond to prompts."""
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
        control: bool = False,
        **settings: Any,
    ) -> str | list[str]:
        """Respond to a prompt about audio. If audio or prompt is a list, it is a batch, and the result is a list.

        Args:
            audio: a file or samples (L,) at 16 kHz. A list has one entry per row, which is itself a list if the row has
                several clips. All windows of a clip over 30 s go into one prompt. None for a prompt without audio.
            prompt: text after the audio, control tokens included; for a chat model the user's message, as plain text.
            seed: seed of sampling, to reproduce responses.
            stream: called with (row, token id) as soon as a token is known.
            control: keep control tokens (word times, notes) in the responses.
            settings: fields of `GenerationSettings` that replace those of the model.

        Raises:
            UserError: lists of different lengths, unusable audio, or settings that contradict each other.
        """
        is_batch = isinstance(audio, (list, tuple)) or isinstance(prompt, (list, tuple))
        options: dict[str, Any] = {"seed": seed, "stream": stream, "control": control, **settings}
        clips, prompts = _rows(audio, prompt)
        if self.is_chat:
            dialogues = [[user_message(row, text)] for row, text in zip(clips, prompts, strict=True)]
            answers = self._chat(dialogues, **options)
        else:
            turns = [self.prompt.raw(text, len(row)) for row, text in zip(clips, prompts, strict=True)]
            answers = self._answer(clips, turns, **options)
        return answers if is_batch else answers[0]

    def transcribe(self, audio: Audio | Sequence[Audio], language: str = "en", **settings: Any) -> str | list[str]:
        """Transcribe a clip, or each clip of a list, with the speech recognition prompt of pre-training.

        A clip over 30 s is cut into overlapping windows with one prompt each, and their transcripts are joined where
        they agree (`data.long_audio`).

        Args:
            audio: a clip or a list of clips, as in `generate`.
            language: code of the language.
            settings: as in `generate`.
        """
        clips: list[Any] = list(audio) if isinstance(audio, (list, tuple)) else [audio]
        parts = [self._windows(clip) for clip in clips]
        flat = [[window] for clip in parts for window in clip]
        prompt = self.prompt.turns({"task": "asr", "language": language, "text": "-"}, 1)
        turns = [turn for turn in prompt if turn.role == "prompt"]
        answers = iter(self._answer(flat, [turns] * len(flat), **settings))
        transcripts = [merge_transcripts([next(answers) for _ in clip], language) for clip in parts]
        return transcripts if isinstance(audio, (list, tuple)) else transcripts[0]

    def _windows(self, clip: Audio) -> list[np.ndarray]:
        wave = self._view.read(clip)
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
                `{type: text, text: ...}`. A file may have an `offset` and a `duration`, as in rows. ChatML in the text
                of a message is treated as plain characters. Qwen-Audio drops the oldest exchanges beyond
                `max_window_size` tokens, as released.
            options: `seed`, `stream`, `control` and settings, as in `generate`.

        Raises:
            UserError: messages have an unknown form, or as in `generate`.
        """
        is_batch = bool(messages) and not isinstance(messages[0], Mapping)
        dialogues: Any = messages if is_batch else [messages]
        answers = self._chat(dialogues, **options)
        return answers if is_batch else answers[0]

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return self.net.llm.device

    def pack(self, turns: Sequence[list[Turn]], clips: Sequence[Sequence[Audio]]) -> Pack:
        """Return a batch of rows on the net's device. Each row has turns, and the clips that these turns contain."""
        rows = [
            # The clips may also be arrays, which `_PromptSamples.read` accepts.
            Row(str(n), cast("tuple[Clip, ...]", tuple(row)), {"task": "chat", "mode": "audio_analysis", "turns": own})
            for n, (own, row) in enumerate(zip(turns, clips, strict=True))
        ]
        samples = [self._view.build(row, number, None) for number, row in enumerate(rows)]
        return to_device(collate(samples, geometry=self.net.geometry), self.device)

    def settings(self, *, chat: bool = False, **changed: Any) -> GenerationSettings:
        """Return the generation settings of the model with changes.

        Unless `stop` is changed, tokens that end a response in the prompting style (in ChatML for a chat) also stop it.
        """
        chosen = GenerationSettings.from_config(self.generation, **changed)
        ends = self.dialogue.stop if chat else self.prompt.stop
        return chosen if "stop" in changed else replace(chosen, stop=chosen.stop | set(map(self.tokenizer.id, ends)))

    def _chat(self, dialogues: Sequence[Sequence[Message]], **options: Any) -> list[str]:
        dialogues = [self._recent(_with_segments(messages)) for messages in dialogues]
        turns = [self.dialogue.turns(messages) for messages in dialogues]
        return self._answer([audios(messages) for messages in dialogues], turns, chat=True, **options)

    def _recent(self, messages: Sequence[Message]) -> Sequence[Message]:
        if not isinstance(self.dialogue, QwenAudioChat) or "max_window_size" not in self.generation:
            return messages

        def length(turns: list[Turn], clips: list[Audio]) -> int:
            return len(self.pack([turns], [clips])["ids"])

        return self.dialogue.recent(messages, length, max_window_size=self.generation["max_window_size"])

    def _answer(
        self,
        clips: Sequence[Sequence[Audio]],
        turns: Sequence[list[Turn]],
        *,
        chat: bool = False,
        seed: int | None = None,
        stream: Callable[[int, int], None] | None = None,
        control: bool = False,
        **settings: Any,
    ) -> list[str]:
        self.check_answers()
        chosen = self.settings(chat=chat, **settings)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        ids = generate(self.net, self.pack(turns, clips), chosen, generator=generator, stream=stream)
        return [self.tokenizer.decode(answer, control=control) for answer in ids]


class _PromptSamples(AudioSamples):
    """Samples of rows with explicit turns, whose clips may be arrays."""

    def _turns(self, row: Row, rng: np.random.Generator | None, prompt_only: bool) -> list[Turn]:
        return row.labels["turns"]

    def read(self, clip: Audio | Clip) -> np.ndarray:
        """Return the samples of a clip, a file or an array."""
        if isinstance(clip, (str, Path)):
            clip = Clip(Path(clip))
        if isinstance(clip, Clip):
            return super().read(clip)
        wave = np.asarray(clip, dtype=np.float32)
        if wave.ndim != 1 or not len(wave):
            raise UserError(f"audio of shape {wave.shape}: expected samples (L,) of one channel at 16 kHz")
        return self.apply_policies(wave)

    def apply_policies(self, wave: np.ndarray) -> np.ndarray:
        start = super().apply_policies(wave)
        if len(start) < len(wave):
            dropped = (len(wave) - len(start)) / SAMPLE_RATE
            warnings.warn(f"long_audio=first: dropped {dropped:.1f} s after the first 30 s", stacklevel=2)
        return start


def _with_segments(messages: Sequence[Message]) -> list[Message]:
    """Return a dialogue in which files with an `offset` or a `duration` are clips. Raise UserError for such arrays."""
    parts = iter(audio_parts(messages))

    def clip(audio: Audio) -> Audio | Clip:
        segment = parse_segment(next(parts))
        if not segment:
            return audio
        if not isinstance(audio, (str, Path)):
            raise UserError(f"{segment} of samples: only files have an offset and a duration, slice the array instead")
        return Clip(Path(audio), **segment)

    return map_audios(clip, messages)


def prompt_styles(config: Config) -> tuple[Prompt, Chat]:
    """Return the prompting styles of a model trained with this config: as a base model, and in a dialogue.

    A fine-tuned model is prompted like the base model of its system. A model that was trained on both prompting styles
    is prompted like Qwen2-Audio.
    """
    style = configs.build(config["prompt"])
    if isinstance(style, Chat):
        return (TagPrompt() if isinstance(style, QwenAudioChat) else NaturalPrompt()), style
    style = NaturalPrompt() if isinstance(style, BothPrompts) else style
    return style, (QwenAudioChat() if isinstance(style, TagPrompt) else Qwen2AudioChat())


def _rows(
    audio: Audio | Sequence[Audio | Sequence[Audio]] | None, prompt: str | Sequence[str]
) -> tuple[list[list[Audio]], list[str]]:
    """Return the clips and the prompt of every row; a single value is used for all rows."""
    values: dict[str, Any] = {"audio": audio, "prompt": prompt}
    sizes = {name: len(value) for name, value in values.items() if isinstance(value, (list, tuple))}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise UserError(f"a batch of {sizes}: expected lists of equal length, or a single value for all rows")
    n = next(iter(sizes.values()), 1)
    entries, prompts = (list(value) if name in sizes else [value] * n for name, value in values.items())
    clips = [list(entry) if isinstance(entry, (list, tuple)) else [] if entry is None else [entry] for entry in entries]
    return clips, prompts


class StreamingDecoder:
    """Decoder of a growing response that returns complete characters only, because a token may end within one.

    Args:
        decode: converts token ids to text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self.decode = decode
        self.ids: list[int] = []
        self.returned = 0  # number of characters

    def add(self, token: int) -> str:
        """Return the new text that this token completes."""
        self.ids.append(token)
        return "" if self.decode(self.ids).endswith(INCOMPLETE) else self.rest()

    def rest(self) -> str:
        """Return the remaining text at the end of the response."""
        text = self.decode(self.ids)[self.returned :]
        self.returned += len(text)
        return text


def user_message(clips: Sequence[Audio], text: str) -> Message:
    """Return a user's message: clips, then text unless it is empty (as in voice chat)."""
    parts = [{"type": "text", "text": text}] if text else []
    return {"role": "user", "content": [*({"type": "audio", "audio": clip} for clip in clips), *parts]}
