"""Sentences sampled from a causal language model, for a corpus of their speech.

The model continues short openings of several kinds of text. They are plain text, so base and chat models take them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from auris.corpus.output import derive_seed
from auris.corpus.sentences import Selection, describe_selection, split_words
from auris.errors import MissingFileError, UserError
from auris.text.console import track

OPENINGS = (
    "She closed the door behind her and walked down to the river.",
    "Good evening, and here is the news.",
    "Dear friend, thank you for your letter.",
    "The old house stood at the end of the road.",
    "Let me explain how this machine works.",
    "Today we learn how plants and animals live together.",
    "First, wash the vegetables and heat the oil in a large pan.",
    "The king called his soldiers to the castle.",
    "Doctors say that sleep is important for our health.",
    "We took the early train to the mountains.",
    "The team played badly in the first half of the game.",
    "My grandmother used to tell us about her childhood.",
    "The court heard the witness in the afternoon.",
    "A storm is moving towards the coast.",
    "The company opened a new factory last year.",
    "In the library I found a strange old book.",
    "The children were playing in the garden after school.",
    "Music was always important in our village.",
    "The ship left the harbour before sunrise.",
    "Please listen carefully to the following instructions.",
    "Nobody knew where the money had gone.",
    "The painting hangs in a small museum.",
    "Scientists have observed a distant star.",
    "He ordered a cup of coffee and opened the newspaper.",
    "The teacher asked the class a difficult question.",
    "Our dog does not like the neighbour's cat.",
    "The farmers are waiting for rain.",
    "Welcome to the city tour, ladies and gentlemen.",
    "The war was over, but the soldiers did not come home.",
    "I would like to book a room for two nights.",
    "The detective looked at the broken window.",
    "Every religion has its own festivals.",
)
_N_TOKENS = 64  # tokens of a continuation: three or four sentences; one of two tokens is in a sentence that is kept
_TOP_K = 200  # the sort that top_p needs would take as long as the model itself (SmolLM2-135M on a CPU)
# Numbers of words of the kept sentences: shorter ones are mostly exclamations, longer ones ramble.
_MIN_WORDS, _MAX_WORDS = 3, 25
_MIN_DISTINCT = 0.6  # smallest number of distinct words of a sentence as a fraction of its words
# Sampling ends with an error if the batches after so many have less than one sentence each that can be spoken.
_MAX_POOR_BATCHES = 10

_BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"”’')])\s+|\n")
_WHOLE_SENTENCE = re.compile(r"[\"“‘'(]*[^\W\d_a-z].*[.!?][\"”’')]*")


def sample_sentences(llm: Path, n: int, seed: int, processes: int | None = None) -> Selection:
    """Sample `n` different English sentences that eSpeak can speak, and show progress.

    The same seed gives the same sentences on the same machine. A larger `n` adds sentences to those of a smaller one.

    Args:
        llm: Directory of a causal language model with its tokenizer, as transformers stores it.
        n: Number of sentences.
        seed: Random seed.
        processes: Number of processes in which eSpeak tries the sentences; None for one per core.

    Raises:
        UserError: No model or tokenizer can be read from `llm`, or hardly any of its sentences can be spoken.
        MissingFileError: The directory does not exist.
    """
    model, tokenizer = _load(llm)
    selection = Selection(min_words=_MIN_WORDS, max_words=_MAX_WORDS)
    batch_numbers = itertools.count()

    def count_found() -> int:
        return len(selection.kept) + len(selection.candidates)

    def find_sentences() -> Iterator[None]:
        """Add candidates until there are enough; yield once for each of them."""
        while (n_found := count_found()) < n:
            number = next(batch_numbers)
            if n_found < number - _MAX_POOR_BATCHES:
                raise UserError(
                    f"llm={llm}: the model writes hardly any sentence that can be spoken "
                    f"({describe_selection(selection.counts)}); choose another model with llm=DIR"
                )
            for continuation in sample_batch(model, tokenizer, derive_seed(seed, "sentences", number)):
                for sentence in split_sentences(continuation):
                    if reason := find_fault(sentence):
                        selection.dropped[reason] += 1
                    else:
                        selection.add(sentence)
            yield from [None] * (count_found() - n_found)

    while len(selection.kept) < n:
        for _ in track(find_sentences(), "sentences", console=Console(), total=n - count_found()):
            pass
        selection.try_candidates(processes)
    for text in list(selection.kept)[n:]:
        del selection.kept[text]
        selection.dropped["more than needed"] += 1
    return selection


def split_sentences(text: str) -> list[str]:
    """Split a text at the ends of its lines and after full stops, exclamation and question marks with their quotes."""
    pieces = (" ".join(piece.split()) for piece in _BETWEEN_SENTENCES.split(text))
    return [piece for piece in pieces if piece]


def find_fault(sentence: str) -> str | None:
    """Return why a sampled piece of text is no good sentence; None if it is one.

    Titles, items of lists and the unfinished end of a sample do not have both a capital letter at the beginning and a
    mark at the end. A model that gets into a loop repeats a few words.
    """
    if not _WHOLE_SENTENCE.fullmatch(sentence):
        return "not a whole sentence"
    words = split_words(sentence)
    if len(set(words)) < _MIN_DISTINCT * len(words):
        return "mostly repeated words"
    return None


@torch.inference_mode()
def sample_batch(model: Any, tokenizer: PreTrainedTokenizerBase, seed: int) -> list[str]:
    """Sample a continuation of each opening."""
    inputs = tokenizer(list(OPENINGS), padding=True, return_tensors="pt").to(model.device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ids = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=True,
            temperature=1.0,
            top_k=_TOP_K,
            top_p=1.0,
            max_new_tokens=_N_TOKENS,
            pad_token_id=tokenizer.pad_token_id,
        )
    return tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _load(llm: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return the model, which has the method `generate`, and its tokenizer."""
    if not llm.is_dir():
        raise MissingFileError(f"llm={llm}: there is no such directory, expected a causal language model")
    device, dtype = ("cuda", "auto") if torch.cuda.is_available() else ("cpu", torch.float32)  # CPUs are slow in bf16
    try:
        tokenizer = cast("Any", AutoTokenizer.from_pretrained(str(llm), padding_side="left", trust_remote_code=False))
        model, report = AutoModelForCausalLM.from_pretrained(
            str(llm), dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"llm={llm}: expected a causal language model with its tokenizer, as transformers stores it ({reason})"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"llm={llm}: {missing[0]} is missing, expected all weights of a causal language model")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model.eval().to(device), tokenizer
