"""`auris.load(path)`: a trained model with its tokenizer and its way of being asked, from whatever `path` holds.

A base model is asked raw, as it was pre-trained: the audio's marks, then the prompt. A chat model is asked in ChatML.
Both answer to `generate`; `chat` is always ChatML.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from auris import config
from auris.audio import MAX_SAMPLES, SAMPLE_RATE
from auris.data.collate import collate
from auris.data.long_audio import merge, windows
from auris.data.rows import Clip, Row, audio_parts, seconds
from auris.data.samples import AudioSamples
from auris.errors import UserError
from auris.model.audio_lm import AudioLM
from auris.model.generation import Generation, generate
from auris.model.pack import Pack, to_device
from auris.model.weights import loading
from auris.model.weights.identify import KINDS, ModelSource, identify
from auris.model.weights.layouts import LAYOUTS
from auris.model.weights.tensors import TensorSource
from auris.text.chat import Chat, Qwen2AudioChat, QwenAudioChat, audios, map_audios
from auris.text.prompts import BothPrompts, NaturalPrompt, Prompt, TagPrompt, Turn
from auris.text.tokenizer import Tokenizer
from auris.training import sharding

RELEASED = "released"
"""The study that models of published systems are filed under, which auris has not trained."""

Audio = str | Path | np.ndarray | Tensor
"""A sound file, or samples (L,) at 16 kHz."""


def load(
    path: str | Path,
    *,
    which: str = "last",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    chat: bool | None = None,
    long_audio: str = "window",
) -> AudioModel:
    """The model that a path holds, in eval mode.

    Args:
        path: a run directory, one of its checkpoints, a directory that auris exported, or a directory of a published
            system: Qwen2-Audio as transformers has it, Qwen-Audio (v1) as released.
        which: checkpoint of a run: last or best.
        device: where it will run; "auto": on a GPU if there is one.
        dtype: of its parameters; None: each as it is stored.
        long_audio: clips over 30 s: "window" hears all of them, "first" drops the rest with a warning, as both released
            systems do without one; "error" refuses them.
        chat: asked in ChatML; None: as the `chat_format` of its generation_config.json says; without one, if
            it was trained on dialogues.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: it is no whole model, its files contradict each other, or weights are missing or do not fit.
    """
    found = identify(path, which)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    made, tokenizer, net = build(found)
    objective = config.build_objective(made, net, tokenizer)
    source = found.source()
    _set_dtypes(net, source, found.layout, dtype)
    sharding.materialise(net, device, draw=False)
    loading.load(net, source, layout=found.layout, where=str(path))
    _load_objective(objective, found, device)
    return AudioModel(
        net=net.eval(),
        objective=objective.eval(),
        tokenizer=tokenizer,
        recipe=made,
        generation=found.generation or {"eos_token_id": tokenizer.end},
        is_chat=_speaks_chatml(found, made) if chat is None else chat,
        long_audio=long_audio,
    )


def _speaks_chatml(found: ModelSource, made: Mapping[str, Any]) -> bool:
    """A published model says it in its generation config, one of ours by what it was trained on."""
    said = found.generation.get("chat_format")
    return said == "chatml" if said else isinstance(config.build(made["prompt"]), Chat)


def build(found: ModelSource) -> tuple[dict[str, Any], Tokenizer, AudioLM]:
    """A whole model's recipe, its tokenizer, and its net on the meta device. Raises as `load`."""
    made, tokenizer = recipe_of(found), tokenizer_of(found)
    return made, tokenizer, config.build_net(made, tokenizer)


def recipe_of(found: ModelSource) -> dict[str, Any]:
    """The recipe of a whole model: its own; for a published system the defaults, with its model, prompts and tokenizer.

    Raises ValueError if the checkpoint is a part of a model.
    """
    if found.model is None:
        [part] = found.parts
        raise UserError(f"{found.path} is {KINDS[found.kind]}, no whole model: train with weights.{part}={found.path}")
    if found.kind in ("run", "checkpoint", "auris"):
        made = dict(found.config)
    else:
        prompt = "tags" if found.kind == "qwen_audio" else "natural"
        made = config.resolve(config.compose(["scale=full", f"prompt={prompt}"]))
        made |= {"study": RELEASED, "arm": found.path.resolve().name, "model": dict(found.model)}
    return made | {"tokenizer": found.tokenizer}


# kind -> config.json's field with an audio token's id, which token that is, and the field with the vocabulary's rows.
_VOCABULARY_FIELDS = {
    "qwen2_audio": ("audio_token_index", NaturalPrompt.audio_pad, "text_config.vocab_size"),
    "qwen_audio": ("audio.audio_start_id", TagPrompt.audio_begin, "vocab_size"),
}


def tokenizer_of(found: ModelSource) -> Tokenizer:
    """A whole model's tokenizer. A run's may be that of a plain language model, which grew when the run began.

    Raises ValueError if there is none, none for audio, or one that the model's config contradicts.
    """
    if found.tokenizer is None:
        raise UserError(f"{found.path} has no tokenizer: expected tokenizer.json or qwen.tiktoken beside its weights")
    tokenizer = Tokenizer.load(found.tokenizer, grow=found.kind in ("run", "checkpoint"))
    if found.kind not in _VOCABULARY_FIELDS:
        return tokenizer
    file = found.path / "config.json"
    field, token, rows = _VOCABULARY_FIELDS[found.kind]
    said: Any = found.config
    for key in field.split("."):
        said = said.get(key)
    if said is not None and said != tokenizer.id(token):
        raise UserError(f"{file} says {field}={said}, but {token} is {tokenizer.id(token)} in its tokenizer")
    if found.model["vocab_rows"] < tokenizer.size:
        raise UserError(
            f"{file} says {rows}={found.model['vocab_rows']}, but its tokenizer has {tokenizer.size} tokens"
        )
    return tokenizer


def _set_dtypes(net: nn.Module, source: TensorSource, layout: str, dtype: torch.dtype | None) -> None:
    """Give a net on the meta device the dtypes that it will have: one for its parameters, or all as they are stored."""
    table = LAYOUTS[layout]
    names = source.keys()
    stored = {table.spell(name): name for name in names}
    owners = {id(x): (x, name) for name, x in net.state_dict(keep_vars=True).items()}  # tied ones once
    for tensor, name in owners.values():
        theirs = table.theirs(name)
        if dtype is None and theirs in stored:
            tensor.data = tensor.data.to(source.dtype(stored[theirs]))
        elif dtype is not None and isinstance(tensor, nn.Parameter):
            tensor.data = tensor.data.to(dtype)


def _load_objective(objective: nn.Module, found: ModelSource, device: torch.device | str) -> None:
    """The objective's own weights (the head that CTC trains on the encoder), which only a run keeps."""
    state = found.objective_state()
    if objective.state_dict().keys() != state.keys():
        raise UserError(
            f"{found.path} lacks the weights of {type(objective).__name__}, which it was trained with: give the run "
            f"itself, or use its parts (weights.encoder={found.path})"
        )
    sharding.materialise(objective, device, draw=False)
    objective.load_state_dict(state)


class AudioModel:
    """A model that answers.

    Args:
        net: with weights, in eval mode.
        objective: what it was trained on.
        tokenizer, recipe: as it was trained with.
        generation: what a generation_config.json says; a call may say otherwise.
        is_chat: `generate` asks in ChatML.
        long_audio: what becomes of clips over 30 s.
    """

    def __init__(
        self,
        *,
        net: nn.Module,
        objective: nn.Module,
        tokenizer: Tokenizer,
        recipe: Mapping[str, Any],
        generation: Mapping[str, Any],
        is_chat: bool = False,
        long_audio: str = "window",
    ) -> None:
        self.net, self.objective, self.tokenizer, self.recipe = net, objective, tokenizer, recipe
        self.generation, self.is_chat = generation, is_chat
        self.prompt, self.dialogue = styles_of(recipe)
        view = {"tokenizer": tokenizer, "prompt": self.prompt, "geometry": net.geometry}
        self._view = _Asked(**view, long_audio=long_audio)

    @property
    def name(self) -> str:
        """Which of all runs it is."""
        return "{study}/{arm}/seed_{seed}".format(**self.recipe)

    def check_answers(self) -> None:
        """Raise ValueError if it was trained for something else than answering prompts."""
        if not {"audio", "pair"} & set(self.objective.views):
            raise UserError(
                f"this model was trained on {type(self.objective).__name__} and answers no prompts; "
                "`auris evaluate checkpoint=RUN` scores it"
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
        """Answer a prompt about audio; a list of either is a batch, its answers a list.

        Args:
            audio: a file or samples (L,) at 16 kHz; a list has an entry per row, itself a list where a row has several
                clips. Windows of a clip over 30 s are heard in one prompt. None: text alone.
            prompt: what follows the audio, control tokens included (of a chat model: what the user says, as text).
            seed: of what is sampled, for the same answers again.
            stream: called with (row, token id) as soon as each token is known.
            control: keep control tokens in the answers (word times, notes).
            settings: fields of `Generation`, in place of the model's own.

        Raises:
            ValueError: lists of different lengths, audio that cannot be used, or settings that cannot be followed.
        """
        is_batch = isinstance(audio, (list, tuple)) or isinstance(prompt, (list, tuple))
        options = {"seed": seed, "stream": stream, "control": control, **settings}
        clips, prompts = _rows(audio, prompt)
        if self.is_chat:
            dialogues = [[user_message(row, text)] for row, text in zip(clips, prompts, strict=True)]
            answers = self._chat(dialogues, **options)
        else:
            turns = [self.prompt.raw(text, len(row)) for row, text in zip(clips, prompts, strict=True)]
            answers = self._answer(clips, turns, **options)
        return answers if is_batch else answers[0]

    def transcribe(self, audio: Audio | Sequence[Audio], language: str = "en", **settings: Any) -> str | list[str]:
        """What is said in a clip, or in each of a list, asked as speech recognition is in pre-training.

        A clip over 30 s is heard in windows that overlap, each in a prompt of its own, and their transcripts are joined
        where they agree (`data.long_audio`). `settings` as in `generate`.
        """
        clips = list(audio) if isinstance(audio, (list, tuple)) else [audio]
        parts = [self._windows(clip) for clip in clips]
        flat = [[window] for clip in parts for window in clip]
        asked = self.prompt.turns({"task": "asr", "language": language, "text": "-"}, 1)
        turns = [turn for turn in asked if turn.role == "prompt"]
        options = {"seed": None, "stream": None, "control": False, **settings}
        answers = iter(self._answer(flat, [turns] * len(flat), **options))
        said = [merge([next(answers) for _ in clip], language) for clip in parts]
        return said if isinstance(audio, (list, tuple)) else said[0]

    def _windows(self, clip: Audio) -> list[np.ndarray]:
        wave = self._view.read(clip)
        starts = [round(start * SAMPLE_RATE) for start, _ in windows(len(wave) / SAMPLE_RATE)]
        return [wave[start : start + MAX_SAMPLES] for start in starts] or [wave]

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        *,
        seed: int | None = None,
        stream: Callable[[int, int], None] | None = None,
        control: bool = False,
        **settings: Any,
    ) -> str | list[str]:
        """The assistant's next message in a dialogue, or in each of a list of dialogues.

        Args:
            messages: `{role, content}`; content is a string, or a list of `{type: audio, audio: ...}` and
                `{type: text, text: ...}`. Of a file, `offset` and `duration` beside it say which stretch is heard, as
                in rows. What a message says is text: ChatML in it stays characters. Qwen-Audio forgets the oldest
                exchanges beyond `max_window_size` tokens, as released.
            seed, stream, control, settings: as in `generate`.

        Raises:
            ValueError: messages of no known shape, and as `generate`.
        """
        is_batch = bool(messages) and not isinstance(messages[0], Mapping)
        options = {"seed": seed, "stream": stream, "control": control, **settings}
        answers = self._chat(messages if is_batch else [messages], **options)
        return answers if is_batch else answers[0]

    @property
    def device(self) -> torch.device:
        return self.net.llm.device

    def pack(self, turns: Sequence[list[Turn]], clips: Sequence[Sequence[Audio]]) -> Pack:
        """Rows, each some turns and the clips that they mark, as one batch on the net's device."""
        rows = [
            Row(str(n), tuple(row), {"task": "chat", "mode": "audio_analysis", "turns": said})
            for n, (said, row) in enumerate(zip(turns, clips, strict=True))
        ]
        samples = [self._view.build(row, number, None) for number, row in enumerate(rows)]
        return to_device(collate(samples, geometry=self.net.geometry), self.device)

    def settings(self, *, chat: bool = False, **changed: Any) -> Generation:
        """What an answer is chosen by: the model's generation config, with changes.

        Unless `stop` is among them, what ends an answer in the prompting style (of a chat: in ChatML) stops it as well.
        """
        chosen = Generation.from_config(self.generation, **changed)
        ends = self.dialogue.stop if chat else self.prompt.stop
        return chosen if "stop" in changed else replace(chosen, stop=chosen.stop | set(map(self.tokenizer.id, ends)))

    def _chat(self, dialogues: Sequence[Sequence[Mapping[str, Any]]], **options: Any) -> list[str]:
        dialogues = [self._recent(_with_stretches(messages)) for messages in dialogues]
        turns = [self.dialogue.turns(messages) for messages in dialogues]
        return self._answer([audios(messages) for messages in dialogues], turns, chat=True, **options)

    def _recent(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        if not isinstance(self.dialogue, QwenAudioChat) or "max_window_size" not in self.generation:
            return messages
        size = self.generation["max_window_size"]

        def length(turns: list[Turn], clips: list[Audio]) -> int:
            return len(self.pack([turns], [clips])["ids"])

        return self.dialogue.recent(messages, length, max_window_size=size)

    def _answer(
        self,
        clips: Sequence[Sequence[Audio]],
        turns: Sequence[list[Turn]],
        *,
        chat: bool = False,
        seed: int | None,
        stream: Callable[[int, int], None] | None,
        control: bool,
        **settings: Any,
    ) -> list[str]:
        self.check_answers()
        chosen = self.settings(chat=chat, **settings)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        ids = generate(self.net, self.pack(turns, clips), chosen, generator=generator, stream=stream)
        return [self.tokenizer.decode(answer, control=control) for answer in ids]


class _Asked(AudioSamples):
    """Rows that bring their turns with them, and whose clips may be samples."""

    def _turns(self, row: Row, rng: np.random.Generator | None, prompt_only: bool) -> list[Turn]:
        return row.labels["turns"]

    def read(self, clip: Audio | Clip) -> np.ndarray:
        if isinstance(clip, (str, Path)):
            clip = Clip(Path(clip))
        if isinstance(clip, Clip):
            return super().read(clip)
        wave = np.asarray(clip, dtype=np.float32)
        if wave.ndim != 1 or not len(wave):
            raise UserError(f"audio of shape {wave.shape}: expected samples (L,) at 16 kHz, one channel")
        return self._limit(wave)

    def _limit(self, wave: np.ndarray) -> np.ndarray:
        heard = super()._limit(wave)
        if len(heard) < len(wave):
            seconds = (len(wave) - len(heard)) / SAMPLE_RATE
            warnings.warn(f"long_audio=first: {seconds:.1f} s after the first 30 s are dropped", stacklevel=2)
        return heard


def _with_stretches(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A dialogue in which files that have an `offset` or a `duration` are clips. Raises ValueError for such samples."""
    parts = iter(audio_parts(messages))

    def clip(given: Audio) -> Audio | Clip:
        stretch = seconds(next(parts))
        if stretch and not isinstance(given, (str, Path)):
            raise UserError(f"{stretch} of samples: expected them of a file alone; hand over the stretch itself")
        return Clip(Path(given), **stretch) if stretch else given

    return map_audios(clip, messages)


def styles_of(made: Mapping[str, Any]) -> tuple[Prompt, Chat]:
    """How a model of this recipe is asked: as a base model, and in a dialogue.

    After fine-tuning, the base model's way is that of its system; of a model that was trained on both prompting styles,
    Qwen2-Audio's.
    """
    style = config.build(made["prompt"])
    if isinstance(style, Chat):
        return (TagPrompt() if isinstance(style, QwenAudioChat) else NaturalPrompt()), style
    style = NaturalPrompt() if isinstance(style, BothPrompts) else style
    return style, (QwenAudioChat() if isinstance(style, TagPrompt) else Qwen2AudioChat())


def _rows(
    audio: Audio | Sequence[Audio | Sequence[Audio]] | None, prompt: str | Sequence[str]
) -> tuple[list[list[Audio]], list[str]]:
    """Clips and prompt of every row; what is not a list is the same for all."""
    lists = {name: given for name, given in (("audio", audio), ("prompt", prompt)) if isinstance(given, (list, tuple))}
    sizes = {name: len(given) for name, given in lists.items()}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise UserError(f"a batch of {sizes}: expected lists of one length, or one of the two for all rows")
    n = next(iter(sizes.values()), 1)
    entries = audio if "audio" in lists else [audio] * n
    clips = [list(entry) if isinstance(entry, (list, tuple)) else [] if entry is None else [entry] for entry in entries]
    return clips, list(prompt) if "prompt" in lists else [prompt] * n


def user_message(clips: Sequence[Audio], text: str) -> dict[str, Any]:
    """What a user says: the clips, then the text that goes with them (voice chat: none)."""
    said = [{"type": "text", "text": text}] if text else []
    return {"role": "user", "content": [*({"type": "audio", "audio": clip} for clip in clips), *said]}
