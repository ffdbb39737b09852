"""The language model's tokenizer plus the audio, task, language and timestamp tokens; turns -> ids and masks.

Real vocabularies come from a local directory or a hub name. The embedded default is a byte-level BPE trained on the
corpus's text. Text tokens come first, control tokens after them, as in Qwen's vocabularies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from auris.prompts import END_OF_TEXT, NaturalPrompt, TagPrompt, Turn

# Pre-tokenisation of Qwen's vocabularies (Qwen-Audio tokenization_qwen.py, PAT_STR).
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TAGS = (  # Qwen-Audio tokenization_qwen.py, in its order
    "startoftranscript startofanalysis translate transcribe caption keyword unknown "
    "en zh de es ko fr ja it zh_tr notimestamps sil timestamps",
    "caption_audiocaps caption_clotho audioset_ontology caption_plain itn wo_itn startofentityvalue endofentityvalue "
    "startofentitytype endofentitytype named_entity_recognition audio_grounding startofword endofword delim "
    "emotion_recognition music_description note_analysis pitch",
    "sonic instrument speaker_meta song_meta question answer choice scene event vocal_classification "
    "speech_understanding scenario action entities speech_edit",
)


def control_tokens() -> list[str]:
    """Every control token of both systems: ChatML, tags, languages, 10 ms timestamps, MIDI notes, audio marks.

    Qwen-Audio's in the order of its released vocabulary, then those that Qwen2-Audio adds.
    """
    first, second, third = ([f"<|{name}|>" for name in names.split()] for names in _TAGS)
    return [
        END_OF_TEXT,
        "<|im_start|>",
        "<|im_end|>",
        TagPrompt.audio_pad,
        *first,
        *(f"<|{hundredths / 100:.2f}|>" for hundredths in range(3001)),  # <|0.00|> .. <|30.00|>
        *second,
        *(f"<|midi_pitch_{note}|>" for note in range(128)),
        "<|velocity|>",
        *(f"<|midi_velocity_{level}|>" for level in range(128)),
        *third,
        TagPrompt.audio_begin,
        TagPrompt.audio_end,
        NaturalPrompt.audio_pad,
        NaturalPrompt.audio_begin,
        NaturalPrompt.audio_end,
    ]


@dataclass(frozen=True)
class Encoded:
    """Token ids (T,) of turns, which of them are trained (T,), and where audio stands (T,)."""

    ids: np.ndarray
    supervise: np.ndarray
    audio: np.ndarray


class Tokenizer:
    """A fast transformers tokenizer that knows every control token."""

    def __init__(self, fast: PreTrainedTokenizerFast):
        known = fast.get_added_vocab()
        missing = [token for token in control_tokens() if token not in known]
        if missing:  # a plain LLM's vocabulary grows by the tokens that audio needs
            fast.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
        self.fast = fast
        self.end = self.id(END_OF_TEXT)
        self.pads = frozenset(self.id(style.audio_pad) for style in (TagPrompt, NaturalPrompt))
        self._plain = lru_cache(maxsize=100_000)(self._encode_plain)
        self._special = lru_cache(maxsize=10_000)(self._encode_special)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """From a local directory (or a hub name, if transformers can reach the hub)."""
        if not Path(path).is_dir() and len(Path(path).parts) > 2:  # a hub name is `name` or `owner/name`
            raise FileNotFoundError(
                f"tokenizer={path}: no such directory. The embedded corpus brings its own: "
                f"`python -m auris.corpus out={Path(path).parent}`; or set tokenizer=DIR or a hub name"
            )
        try:
            fast = AutoTokenizer.from_pretrained(str(path))
        except (OSError, ValueError) as error:
            raise ValueError(f"tokenizer={path}: no tokenizer can be read there ({error})") from error
        if not fast.is_fast:
            raise ValueError(f"tokenizer={path}: {type(fast).__name__} is not a fast tokenizer (no tokenizer.json)")
        return cls(fast)

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
        """A byte-level BPE of `vocab_size` text tokens, with every control token after them."""
        bpe = FastTokenizer(models.BPE())
        bpe.normalizer = normalizers.NFC()
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        bpe.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=sorted(alphabet), show_progress=False)
        bpe.train_from_iterator(texts, trainer)
        bpe.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control_tokens()])
        return cls(PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT))

    def save(self, path: str | Path) -> None:
        self.fast.save_pretrained(str(path))

    @property
    def size(self) -> int:
        """Rows that the embedding table needs."""
        return max(self.fast.get_vocab().values()) + 1

    @property
    def n_text(self) -> int:
        """Ids of text are below this (so may be control tokens of a plain vocabulary that has them first)."""
        control = self.fast.get_added_vocab()
        return 1 + max(number for token, number in self.fast.get_vocab().items() if token not in control)

    def id(self, token: str) -> int:
        """The id of a control token. Raises ValueError if it is not one token."""
        number = self.fast.convert_tokens_to_ids(token)
        if number is None or number == self.fast.unk_token_id:
            raise ValueError(f"{token!r} is not a token of this vocabulary")
        return number

    def encode(self, turns: Sequence[Turn], spans: Sequence[Sequence[int]], *, is_audio: bool = True) -> Encoded:
        """Turns as ids. The k-th audio pad is replaced by `spans[k]`.

        A span is the pad id once per audio token, or the ids of a text in the audio's place (`is_audio=False`).
        Raises ValueError if pads and spans differ in number.
        """
        ids: list[int] = []
        supervise: list[bool] = []
        audio: list[bool] = []
        remaining = iter(spans)
        used = 0
        for turn in turns:
            for number in self._special(turn.text) if turn.special else self._plain(turn.text):
                if turn.special and number in self.pads:
                    span = next(remaining, None)
                    if span is None:
                        raise ValueError(f"the prompt has more audio marks than the {len(spans)} clips of the row")
                    used += 1
                    ids.extend(span)
                    supervise.extend([False] * len(span))
                    audio.extend([is_audio] * len(span))
                else:
                    ids.append(number)
                    supervise.append(turn.supervise)
                    audio.append(False)
        if used != len(spans):
            raise ValueError(f"the prompt has {used} audio marks, the row has {len(spans)} clips")
        return Encoded(np.array(ids, dtype=np.int64), np.array(supervise, dtype=bool), np.array(audio, dtype=bool))

    def pad_of(self, turns: Sequence[Turn]) -> int:
        """The audio pad that these turns use."""
        text = "".join(turn.text for turn in turns if turn.special)
        return self.id(TagPrompt.audio_pad if TagPrompt.audio_pad in text else NaturalPrompt.audio_pad)

    def plain(self, text: str) -> tuple[int, ...]:
        """Ids of text in which control-token strings are ordinary characters."""
        return self._plain(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer, control tokens left out."""
        return self.fast.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _encode_plain(self, text: str) -> tuple[int, ...]:
        return tuple(self.fast.encode(text, add_special_tokens=False, split_special_tokens=True))

    def _encode_special(self, text: str) -> tuple[int, ...]:
        return tuple(self.fast.encode(text, add_special_tokens=False))
