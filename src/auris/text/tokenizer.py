"""The language model's tokenizer plus the audio, task, language and timestamp tokens; turns -> ids and masks.

Vocabularies come from a local directory or a hub name, or are built from Qwen-Audio's `qwen.tiktoken`. One that knows
audio is taken as it is, ids and all; a plain language model's grows. The embedded default is a byte-level BPE trained
on the corpus's text. Text tokens come first, control tokens after them, as in Qwen's vocabularies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer

from auris.errors import MissingFileError, UserError
from auris.text import byte_level
from auris.text.prompts import (
    END_OF_TEXT,
    IM_END,
    IM_START,
    Control,
    NaturalPrompt,
    TagPrompt,
    Turn,
    audio_tags,
)
from auris.text.tasks import LANGUAGES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

INCOMPLETE = "\ufffd"  # what `decode` makes of the first bytes of a character

_PADS = (NaturalPrompt.audio_pad, TagPrompt.audio_pad)
_BRACKETED = re.compile(r"(<\|[^|<>]*\|>|</?audio>|\[\[\[AUDIO:modality\]\]\])")


def control_tokens() -> list[str]:
    """Every control token of both systems: ChatML, tags, languages, 10 ms timestamps, MIDI notes, audio marks.

    Qwen-Audio's in the order of its released vocabulary, then those that Qwen2-Audio adds.
    """
    return [
        END_OF_TEXT,
        IM_START,
        IM_END,
        *_qwen_audio_tokens(),
        NaturalPrompt.audio_pad,
        NaturalPrompt.audio_begin,
        NaturalPrompt.audio_end,
    ]


def _qwen_audio_tokens() -> list[str]:
    """The 3,314 tokens that Qwen-Audio adds to Qwen's vocabulary, in its order."""
    return [TagPrompt.audio_pad, *audio_tags(), TagPrompt.audio_begin, TagPrompt.audio_end]


@dataclass(frozen=True)
class Encoded:
    """Token ids (T,) of turns, which of them are trained (T,), and where audio stands (T,)."""

    ids: np.ndarray
    supervise: np.ndarray
    audio: np.ndarray


class Tokenizer:
    """A fast transformers tokenizer that knows the control tokens of one system or of both.

    A vocabulary with an audio token belongs to a model that was trained with it, and is never changed. Any other grows
    by every control token that it lacks.
    """

    def __init__(self, fast: PreTrainedTokenizerFast):
        self.fast = fast
        if not _hears(fast):
            known = fast.get_added_vocab()
            missing = [token for token in control_tokens() if token not in known]
            fast.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
        self.end = self.id(END_OF_TEXT)
        self.pads = frozenset(self.id(pad) for pad in _PADS if self._has(pad))
        # Reads text alone: `split_special_tokens` would still find the added tokens that are not marked special.
        self.text_encoder = FastTokenizer(fast.backend_tokenizer.model)
        self.text_encoder.normalizer = fast.backend_tokenizer.normalizer
        self.text_encoder.pre_tokenizer = fast.backend_tokenizer.pre_tokenizer
        # What a dialogue may say: the audio pad too, as released (without its begin and end it stands for no audio).
        self._tags = {tag: self.id(tag) for tag in (TagPrompt.audio_pad, *audio_tags()) if self._has(tag)}
        self.ids = lru_cache(maxsize=10_000)(self._encode)
        self._count_marks = lru_cache(maxsize=10_000)(self._count_marks)

    @classmethod
    def load(cls, path: str | Path, *, grow: bool = True) -> Tokenizer:
        """From a local directory, a hub name (if transformers can reach the hub), or Qwen-Audio's `qwen.tiktoken`.

        Args:
            grow: take a vocabulary without an audio token and let it grow; otherwise such a one is a ValueError.
        """
        ranks = byte_level.find_ranks(Path(path))
        fast = _from_pretrained(path) if ranks is None else _with_released_tokens(byte_level.from_ranks(ranks))
        if not grow and not _hears(fast):
            raise UserError(f"tokenizer={path}: its vocabulary has no audio token, expected {' or '.join(_PADS)}")
        try:
            return cls(fast)
        except ValueError as error:
            raise UserError(f"tokenizer={path}: {error}") from error

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
        """Train a byte-level BPE of `vocab_size` text tokens, with every control token after them."""
        return cls(_with_control_tokens(byte_level.train(texts, vocab_size=vocab_size), control_tokens()))

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

    @property
    def audio_ids(self) -> list[int]:
        """Ids of the tokens that a language model without ears lacks: marks of audio and tags."""
        chatml = (END_OF_TEXT, IM_START, IM_END)
        return sorted(self.id(token) for token in control_tokens() if token not in chatml and self._has(token))

    def id(self, token: str) -> int:
        """The id of a control token. Raises ValueError if it is not one token."""
        number = self.fast.backend_tokenizer.token_to_id(token)
        if number is None:
            raise UserError(f"{token!r} is not a token of this vocabulary")
        return number

    def _has(self, token: str) -> bool:
        return self.fast.backend_tokenizer.token_to_id(token) is not None

    def encode(self, turns: Sequence[Turn], spans: Sequence[Sequence[int]], *, is_audio: bool = True) -> Encoded:
        """Turns as ids. The k-th audio pad is replaced by `spans[k]`.

        A span is the pad id once per audio token, or the ids of a text in the audio's place (`is_audio=False`).
        Raises ValueError if pads and spans differ in number, or if the vocabulary lacks a control token of the turns.
        """
        marks = sum(self._count_marks(turn.text) for turn in turns if turn.control is Control.ALL)
        if marks != len(spans):
            raise UserError(f"the prompt has {marks} audio marks, the row has {len(spans)} clips")
        ids: list[int] = []
        supervise: list[bool] = []
        audio: list[bool] = []
        remaining = iter(spans)
        for turn in turns:
            for number in self.ids(turn.text, turn.control):
                is_mark = turn.control is Control.ALL and number in self.pads
                span = next(remaining) if is_mark else (number,)
                ids.extend(span)
                supervise.extend([turn.supervise and not is_mark] * len(span))
                audio.extend([is_audio and is_mark] * len(span))
        return Encoded(np.array(ids, dtype=np.int64), np.array(supervise, dtype=bool), np.array(audio, dtype=bool))

    def pad_of(self, turns: Sequence[Turn]) -> int:
        """The audio pad that these turns use; one of the vocabulary's where they hold no audio."""
        text = "".join(turn.text for turn in turns if turn.control is Control.ALL)
        used = [pad for pad in _PADS if pad in text]
        return self.id(used[0]) if used else min(self.pads)

    def plain(self, text: str) -> tuple[int, ...]:
        """Ids of text in which control-token strings are ordinary characters."""
        return self.ids(text, Control.NONE)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Of each token of `plain`, the characters of the text that it covers, from one to before the other. Some
        tokens are a part of a character: they cover all of it."""
        return self.text_encoder.encode(text, add_special_tokens=False).offsets

    def decode(self, ids: Sequence[int], *, control: bool = False) -> str:
        """Text of an answer, its control tokens left out unless `control` keeps them."""
        return self.fast.decode(list(ids), skip_special_tokens=not control, clean_up_tokenization_spaces=False)

    def _encode(self, text: str, control: Control) -> tuple[int, ...]:
        if control is Control.TAGS:
            return self._encode_tags(text)
        if control is Control.NONE:
            return tuple(self.text_encoder.encode(text, add_special_tokens=False).ids)
        return tuple(self.fast.encode(text, add_special_tokens=False, split_special_tokens=False))

    def _encode_tags(self, text: str) -> tuple[int, ...]:
        normalizer = self.fast.backend_tokenizer.normalizer
        text = normalizer.normalize_str(text) if normalizer else text  # before tags are looked for, as released
        ids: list[int] = []
        plain = ""
        for piece in _BRACKETED.split(text):
            if piece in self._tags:
                ids += [*self.plain(plain), self._tags[piece]]
                plain = ""
            else:
                plain += piece
        return (*ids, *self.plain(plain))

    def _count_marks(self, text: str) -> int:
        """Audio pads in what we wrote, none of whose control tokens may be read as text, as one that the vocabulary
        lacks would be, silently."""
        missing = [token for token in _BRACKETED.findall(text) if token in _OURS and not self._has(token)]
        if missing:
            raise UserError(
                f"the prompt needs {missing[0]!r}, which is not a token of this vocabulary: "
                "prompt=tags is for Qwen-Audio's tokens, prompt=natural for Qwen2-Audio's"
            )
        return sum(number in self.pads for number in self.ids(text, Control.ALL))


# A language tag that ends an instruction of Qwen2-Audio is text where a vocabulary lacks it, as for its own processor.
_OURS = frozenset(control_tokens()) - {f"<|{code}|>" for code in LANGUAGES}


def _hears(fast: PreTrainedTokenizerFast) -> bool:
    return any(fast.backend_tokenizer.token_to_id(pad) is not None for pad in _PADS)


def _from_pretrained(path: str | Path) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    if not Path(path).is_dir() and len(Path(path).parts) > 2:  # a hub name is `name` or `owner/name`
        raise MissingFileError(
            f"tokenizer={path}: no such directory. The embedded corpus brings its own: "
            f"`auris corpus out={Path(path).parent}`; or set tokenizer=DIR or a hub name"
        )
    try:
        fast = AutoTokenizer.from_pretrained(str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"tokenizer={path}: no tokenizer can be read there ({error})") from error
    if not fast.is_fast:
        raise UserError(f"tokenizer={path}: {type(fast).__name__} is not a fast tokenizer (no tokenizer.json)")
    return fast


def _with_released_tokens(bpe: FastTokenizer) -> PreTrainedTokenizerFast:
    """Add the 3,522 special tokens that follow the text tokens of Qwen-Audio (tokenization_qwen.py)."""
    extra = (f"<|extra_{number}|>" for number in range(205))
    special = [END_OF_TEXT, IM_START, IM_END, *extra, *_qwen_audio_tokens()]
    return _with_control_tokens(bpe, special, normalized=True)  # it normalises the text before it looks for them


def _with_control_tokens(
    bpe: FastTokenizer, tokens: Iterable[str], *, normalized: bool = False
) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    bpe.add_special_tokens([AddedToken(token, normalized=normalized, special=True) for token in tokens])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
