"""Small vocabularies: of a plain language model, in the layout of Qwen2-Audio, and as a file of BPE ranks."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from auris.text.prompts import audio_tags
from auris.text.tasks import LANGUAGES
from support.manifests import TEXTS, tokenizer

TAGGED_LANGUAGES = [code for code in LANGUAGES if f"<|{code}|>" in audio_tags()]  # tagged by the published vocabulary


def plain(special_first: bool = False) -> PreTrainedTokenizerFast:
    """Return a vocabulary without audio tokens; its two special tokens come before or after the text tokens."""
    bpe = FastTokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        initial_alphabet=alphabet,
        special_tokens=special if special_first else [],
        show_progress=False,
    )
    bpe.train_from_iterator(TEXTS, trainer)
    if not special_first:
        bpe.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>", bos_token="<s>")


def qwen2_audio(languages: Iterable[str] = TAGGED_LANGUAGES) -> Qwen2Tokenizer:
    """Return a tokenizer with the class and the order of special tokens of Qwen2-Audio.

    Its text tokens are those of `tokenizer()` and one for two line ends. The latter shows whether two texts were
    tokenised together.
    """
    model = json.loads(tokenizer().fast.backend_tokenizer.to_str())["model"]
    vocabulary = model["vocab"] | {"ĊĊ": len(model["vocab"])}
    fast = Qwen2Tokenizer(vocab=vocabulary, merges=[*map(tuple, model["merges"]), ("Ċ", "Ċ")])
    tags = [f"<|{code}|>" for code in languages] + [f"<|{n / 100:.2f}|>" for n in range(10)]
    audio = ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|sil|>"]
    special = ["<|im_start|>", "<|im_end|>", *audio, *tags]
    fast.add_tokens([AddedToken(token, normalized=False, special=True) for token in special], special_tokens=True)
    return fast


def rank_lines() -> list[str]:
    """Return the text tokens of `tokenizer()` as the lines of a `qwen.tiktoken`."""
    vocabulary = json.loads(tokenizer().fast.backend_tokenizer.to_str())["model"]["vocab"]
    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    tokens = (bytes(byte_of[letter] for letter in token) for token in sorted(vocabulary, key=vocabulary.get))
    return [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]


def write_ranks(path: Path, lines: Iterable[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
    return path
