"""Byte-level BPE as in Qwen's vocabularies, read from a file of ranks or trained. It has no control tokens."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from auris.errors import UserError

RANKS_FILE = "qwen.tiktoken"  # the BPE ranks in a directory of Qwen-Audio (v1)

# Pre-tokenisation of Qwen's vocabularies (Qwen-Audio tokenization_qwen.py, PAT_STR).
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Train a BPE of `vocab_size` tokens, including one token for every byte."""
    bpe = _add_preprocessing(models.BPE())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    )
    return bpe


def find_ranks(path: Path) -> Path | None:
    """Return `path` if it is a file, or the file of BPE ranks in the directory `path`.

    The result is None if there is no such file, or if the directory also has a tokenizer.json.
    """
    if path.is_file():
        return path
    file = path / RANKS_FILE
    return file if file.is_file() and not (path / "tokenizer.json").is_file() else None


def from_ranks(path: Path) -> Tokenizer:
    """Read a file of ranks. The rank of a token is its id (Qwen-Audio tokenization_qwen.py).

    Raises:
        UserError: The file is broken; the message names the line.
    """
    vocabulary = _read_ranks(path)
    return _add_preprocessing(models.BPE(vocab=vocabulary, merges=_find_merges(vocabulary, path)))


def _add_preprocessing(model: models.BPE) -> Tokenizer:
    """Return a tokenizer that normalises text (NFC), splits it by `PATTERN` and encodes it as bytes, as Qwen's does."""
    bpe = Tokenizer(model)
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    return bpe


def _read_ranks(path: Path) -> dict[str, int]:
    """Read lines of a base64 token and its rank. Return {token: rank}, with tokens spelt with one letter per byte."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    vocabulary: dict[str, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines()):
        try:
            token, rank = line.split()
            token = base64.b64decode(token, validate=True).decode("latin-1").translate(letters)
            if int(rank) != number or token in vocabulary:
                raise ValueError
        except ValueError as error:  # base64's errors are ValueErrors too
            raise UserError(
                f"{path}, line {number + 1}: {line[:40]!r}, expected a token in base64 and its rank {number}"
            ) from error
        vocabulary[token] = number
    if missing := set(letters.values()) - set(vocabulary):
        raise UserError(f"{path}: {len(missing)} of the 256 single bytes have no rank, expected a rank for every byte")
    return vocabulary


def _find_merges(ranks: Mapping[str, int], path: Path) -> list[tuple[str, str]]:
    """Return the merge that makes each token of two or more bytes.

    The rank of a token is both its id and the priority of its merge. If the bytes of a token are merged with the merges
    of lower rank, two parts remain, and these are the parts that the token's own merge joins.
    """
    merges = []
    for token, token_rank in ranks.items():
        if len(token) == 1:
            continue
        parts = list(token)
        while len(parts) > 2:
            rank, index = min((ranks.get(a + b, token_rank), index) for index, (a, b) in enumerate(pairwise(parts)))
            if rank >= token_rank:
                raise UserError(f"{path}, line {token_rank + 1}: the token is not the join of two earlier tokens")
            parts[index : index + 2] = [parts[index] + parts[index + 1]]
        merges.append((parts[0], parts[1]))
    return merges
