"""Tokenizer of the language model with tokens for audio, tasks, languages and timestamps.

The tokenizer encodes turns, which are pieces of prompts and answers (`prompts.Turn`). A vocabulary is read from a local
directory or the hub, or is built from Qwen-Audio's `qwen.tiktoken`. A vocabulary with an audio token is used unchanged;
to the vocabulary of a plain language model, the control tokens of the prompt style are added. The synthetic corpus
that `auris corpus` writes has a byte-level BPE that is trained on its text. Its control tokens follow its text tokens,
as in Qwen's vocabularies.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer

from auris.errors import MissingFileError, UserError, count, shorten
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

INCOMPLETE = "\ufffd"  # what `decode` returns for an incomplete character, of which only the first bytes are decoded

AUDIO_PADS = (NaturalPrompt.audio_pad, TagPrompt.audio_pad)
# Text that looks like a control token, whether or not the vocabulary has it.
_BRACKETED = re.compile(r"(<\|[^|<>]*\|>|</?audio>|\[\[\[AUDIO:modality\]\]\])")


def control_tokens(audio_pads: Collection[str] = AUDIO_PADS) -> list[str]:
    """Return the control tokens of prompts with these audio pads; by default, every one of both systems.

    Every prompt may have ChatML tokens. Prompts of Qwen-Audio have its tags, languages, 10 ms timestamps, MIDI notes
    and tokens for audio, in the order of its released vocabulary. Prompts of Qwen2-Audio only add tokens for audio.
    """
    tokens = [END_OF_TEXT, IM_START, IM_END]
    if TagPrompt.audio_pad in audio_pads:
        tokens += _qwen_audio_tokens()
    if NaturalPrompt.audio_pad in audio_pads:
        tokens += [NaturalPrompt.audio_pad, NaturalPrompt.audio_begin, NaturalPrompt.audio_end]
    return tokens


def _qwen_audio_tokens() -> list[str]:
    """Return the 3,314 tokens that Qwen-Audio adds to Qwen's vocabulary, in the order of its vocabulary."""
    return [TagPrompt.audio_pad, *audio_tags(), TagPrompt.audio_begin, TagPrompt.audio_end]


@dataclass(frozen=True)
class Encoded:
    """Encoded turns.

    Attributes:
        ids: (T,) int64, token ids.
        supervise: (T,) bool, whether the model is trained to predict the token.
        audio: (T,) bool, whether the token is replaced by an embedding of audio.
    """

    ids: np.ndarray
    supervise: np.ndarray
    audio: np.ndarray


class Tokenizer:
    """Fast tokenizer of transformers with the control tokens of Qwen-Audio, Qwen2-Audio or both.

    A vocabulary with an audio token belongs to a model that was trained with it, and is not changed. To any other
    vocabulary, the missing control tokens are added. Each of them takes a little probability from the tokens with which
    a language model was trained, so none is added that the prompts do not need.

    Args:
        fast: The tokenizer of transformers.
        audio_pads: Audio pads of the prompts (`PromptStyle.audio_pads`), which determine the control tokens.

    Attributes:
        end: Id of the token that ends an answer.
        pads: Ids of the audio pads in the vocabulary, the tokens that stand for the audio of a clip.
        text_encoder: Encoder of plain text, which knows no control tokens.
        ids: Function that takes a text and a `Control` and returns token ids. It has a cache.
    """

    def __init__(self, fast: PreTrainedTokenizerFast, *, audio_pads: Collection[str] = AUDIO_PADS):
        self.fast = fast
        if not _has_audio_token(fast):
            added_tokens = fast.get_added_vocab()
            missing = [token for token in control_tokens(audio_pads) if token not in added_tokens]
            fast.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
        self.end = self.id(END_OF_TEXT)
        self.pads = frozenset(self.id(pad) for pad in AUDIO_PADS if self._has(pad))
        # A tokenizer without added tokens, because `split_special_tokens` of the fast tokenizer is not enough: it still
        # finds added tokens that are not marked as special.
        self.text_encoder = FastTokenizer(fast.backend_tokenizer.model)
        self.text_encoder.normalizer = fast.backend_tokenizer.normalizer
        self.text_encoder.pre_tokenizer = fast.backend_tokenizer.pre_tokenizer
        # Control tokens that the text of a dialogue may contain. As in the released code, the audio pad is one of them;
        # it does not stand for audio there, because the begin and end token are missing.
        self._tags = {tag: self.id(tag) for tag in (TagPrompt.audio_pad, *audio_tags()) if self._has(tag)}
        self.ids = lru_cache(maxsize=10_000)(self._encode)
        self._count_pads = lru_cache(maxsize=10_000)(self._count_pads)

    @classmethod
    def load(cls, path: str | Path, *, audio_pads: Collection[str] = AUDIO_PADS) -> Tokenizer:
        """Load a tokenizer.

        Args:
            path: A local directory, a hub name (if transformers can reach the hub), or Qwen-Audio's `qwen.tiktoken`.
            audio_pads: Audio pads of the prompts (`PromptStyle.audio_pads`). Their control tokens are added to a
                vocabulary without an audio token; if there are no pads, such a vocabulary is refused.

        Raises:
            UserError: The tokenizer cannot be read, or its vocabulary has no audio token and `audio_pads` is empty.
        """
        fast = _read(path)
        if not audio_pads and not _has_audio_token(fast):
            raise UserError(f"tokenizer={path}: the vocabulary has no audio token, expected {' or '.join(AUDIO_PADS)}")
        try:
            return cls(fast, audio_pads=audio_pads)
        except ValueError as error:
            raise UserError(f"tokenizer={path}: {error}") from error

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
        """Train a byte-level BPE of `vocab_size` text tokens; every control token is added after them."""
        return cls(_add_control_tokens(byte_level.train(texts, vocab_size=vocab_size), control_tokens()))

    def save(self, path: str | Path) -> None:
        """Save the tokenizer to a directory."""
        self.fast.save_pretrained(str(path))

    @property
    def size(self) -> int:
        """Number of rows that an embedding table needs: the largest id + 1."""
        return max(self.fast.get_vocab().values()) + 1

    @property
    def n_text(self) -> int:
        """Upper bound (exclusive) of the ids of text tokens.

        If a plain vocabulary has control tokens before text tokens, the ids of these control tokens are below it too.
        """
        control_vocab = self.fast.get_added_vocab()
        return 1 + max(token_id for token, token_id in self.fast.get_vocab().items() if token not in control_vocab)

    @property
    def added_ids(self) -> list[int]:
        """Ids of the tokens that a plain language model does not have: tags and the tokens for audio."""
        chatml = (END_OF_TEXT, IM_START, IM_END)
        return sorted(self.id(token) for token in control_tokens() if token not in chatml and self._has(token))

    @property
    def chat_format(self) -> str:
        """Format of dialogues in the chat template of the vocabulary: `ChatML`, `not ChatML` or `missing`.

        auris writes dialogues itself (`auris.text.chat`), in ChatML. The template shows whether the language model to
        which the vocabulary belongs has learnt this format.
        """
        template = self.fast.chat_template
        if not template:
            return "missing"
        return "ChatML" if IM_START in str(template) and IM_END in str(template) else "not ChatML"

    def id(self, token: str) -> int:
        """Return the id of a control token.

        Raises:
            UserError: The vocabulary does not contain `token`.
        """
        token_id = self.fast.backend_tokenizer.token_to_id(token)
        if token_id is None:
            raise UserError(f"{shorten(token)} is not a token of this vocabulary")
        return token_id

    def _has(self, token: str) -> bool:
        return self.fast.backend_tokenizer.token_to_id(token) is not None

    def encode(self, turns: Sequence[Turn], spans: Sequence[Sequence[int]], *, is_audio: bool = True) -> Encoded:
        """Encode turns.

        Args:
            turns: The turns.
            spans: For each audio pad in the turns, the ids that replace it: the id of the pad once per audio token, or
                the ids of a text.
            is_audio: Whether the spans stand for audio.

        Raises:
            UserError: The numbers of pads and spans differ, or the vocabulary lacks a control token of the turns.
        """
        n_pads = sum(self._count_pads(turn.text) for turn in turns if turn.control is Control.ALL)
        if n_pads != len(spans):
            raise UserError(
                f"the prompt has {count(n_pads, 'audio placeholder')}, but the row has {count(len(spans), 'clip')}"
            )
        ids: list[int] = []
        supervise: list[bool] = []
        audio: list[bool] = []
        remaining_spans = iter(spans)
        for turn in turns:
            for token_id in self.ids(turn.text, turn.control):
                is_pad = turn.control is Control.ALL and token_id in self.pads
                span = next(remaining_spans) if is_pad else (token_id,)
                ids.extend(span)
                supervise.extend([turn.supervise and not is_pad] * len(span))
                audio.extend([is_audio and is_pad] * len(span))
        return Encoded(np.array(ids, dtype=np.int64), np.array(supervise, dtype=bool), np.array(audio, dtype=bool))

    def audio_pad_id(self, turns: Sequence[Turn]) -> int:
        """Return the id of the audio pad in these turns. If they contain no audio, return any pad of the vocabulary."""
        text = "".join(turn.text for turn in turns if turn.control is Control.ALL)
        pads = [pad for pad in AUDIO_PADS if pad in text]
        return self.id(pads[0]) if pads else min(self.pads)

    def encode_plain(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text in which names of control tokens are ordinary characters."""
        return self.ids(text, Control.NONE)

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Return the range of characters that each token of `encode_plain(text)` covers, as (start, exclusive end).

        The range of a token with a part of a character covers the whole character.
        """
        return self.text_encoder.encode(text, add_special_tokens=False).offsets

    def decode(self, ids: Sequence[int], *, keep_control_tokens: bool = False) -> str:
        """Return the text of an answer. Its control tokens are left out unless `keep_control_tokens` is True."""
        text = self.fast.decode(
            list(ids), skip_special_tokens=not keep_control_tokens, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)  # one sequence of ids gives one text
        return text

    def _encode(self, text: str, control: Control) -> tuple[int, ...]:
        if control is Control.TAGS:
            return self._encode_tags(text)
        if control is Control.NONE:
            return tuple(self.text_encoder.encode(text, add_special_tokens=False).ids)
        return tuple(self.fast.encode(text, add_special_tokens=False, split_special_tokens=False))

    def _encode_tags(self, text: str) -> tuple[int, ...]:
        normalizer = self.fast.backend_tokenizer.normalizer
        if normalizer:  # like the released code, search for tags in the normalised text
            text = normalizer.normalize_str(text)
        ids: list[int] = []
        plain_text = ""
        for piece in _BRACKETED.split(text):
            if piece in self._tags:
                ids += [*self.encode_plain(plain_text), self._tags[piece]]
                plain_text = ""
            else:
                plain_text += piece
        return (*ids, *self.encode_plain(plain_text))

    def _count_pads(self, text: str) -> int:
        """Return the number of audio pads in a text written by auris.

        Raises:
            UserError: The vocabulary lacks a control token of the text, which would be encoded as characters.
        """
        missing = [token for token in _BRACKETED.findall(text) if token in _REQUIRED_TOKENS and not self._has(token)]
        if missing:
            raise UserError(
                f"the prompt needs {missing[0]!r}, which is not a token of this vocabulary; set prompt=tags for a "
                "vocabulary with Qwen-Audio's tokens, or prompt=natural for a vocabulary with Qwen2-Audio's tokens"
            )
        return sum(token_id in self.pads for token_id in self.ids(text, Control.ALL))


# Control tokens that must not be encoded as characters. Language tags are excluded: if a vocabulary lacks the tag at
# the end of an instruction of Qwen2-Audio, the tag is encoded as text, as the processor of that model does.
_REQUIRED_TOKENS = frozenset(control_tokens()) - {f"<|{code}|>" for code in LANGUAGES}


def _has_audio_token(fast: PreTrainedTokenizerFast) -> bool:
    return any(fast.backend_tokenizer.token_to_id(pad) is not None for pad in AUDIO_PADS)


def read_vocabulary(path: str | Path, *, only_text: bool = False) -> dict[str, int]:
    """Return the id of each token of a stored tokenizer, without control tokens that auris would add.

    Args:
        path: A path or name that `Tokenizer.load` takes.
        only_text: Leave out the control tokens.

    Raises:
        UserError: The tokenizer cannot be read.
    """
    fast = _read(path)
    left_out = fast.get_added_vocab() if only_text else {}
    return {token: token_id for token, token_id in fast.get_vocab().items() if token not in left_out}


def _read(path: str | Path) -> PreTrainedTokenizerFast:
    ranks = byte_level.find_ranks(Path(path))
    return _from_pretrained(path) if ranks is None else _add_released_tokens(byte_level.from_ranks(ranks))


def _from_pretrained(path: str | Path) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not Path(path).is_dir() and len(Path(path).parts) > 2:  # a hub name is `name` or `owner/name`
        raise MissingFileError(
            f"tokenizer={path}: there is no such directory. To create the synthetic corpus with its tokenizer, run "
            f"`auris corpus out={Path(path).parent}`; to use another tokenizer, set tokenizer to a directory or a hub "
            "name"
        )
    try:
        fast = AutoTokenizer.from_pretrained(str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"tokenizer={path}: no tokenizer can be read from there ({error})") from error
    if not isinstance(fast, PreTrainedTokenizerFast):
        raise UserError(
            f"tokenizer={path}: {type(fast).__name__} is not a fast tokenizer, expected a directory with tokenizer.json"
        )
    return fast


def _add_released_tokens(bpe: FastTokenizer) -> PreTrainedTokenizerFast:
    """Add the 3,522 special tokens that follow the text tokens in Qwen-Audio's vocabulary (tokenization_qwen.py)."""
    extra = (f"<|extra_{number}|>" for number in range(205))
    special = [END_OF_TEXT, IM_START, IM_END, *extra, *_qwen_audio_tokens()]
    # Qwen-Audio searches for special tokens in normalised text.
    return _add_control_tokens(bpe, special, normalized=True)


def _add_control_tokens(
    bpe: FastTokenizer, tokens: Iterable[str], *, normalized: bool = False
) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    bpe.add_special_tokens([AddedToken(token, normalized=normalized, special=True) for token in tokens])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
