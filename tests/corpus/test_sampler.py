"""Tests of sampling sentences from a language model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from auris.corpus import sampler
from auris.corpus.sampler import find_fault, sample_batch, sample_sentences, split_sentences
from auris.errors import MissingFileError, UserError
from auris.text.tokenizer import Tokenizer

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def test_a_text_is_split_into_sentences() -> None:
    text = ' He came. "Who?" she asked... "Me!" She (Ann.)  left\n\n# List\n- An item. '
    assert split_sentences(text) == [
        "He came.",
        '"Who?"',
        "she asked...",
        '"Me!"',
        "She (Ann.)",
        "left",
        "# List",
        "- An item.",
    ]


@pytest.mark.parametrize("sentence", ["He came.", '"Who is it?"', "“Élan,” she said.", "(I know!)"])
def test_a_whole_sentence_has_no_fault(sentence: str) -> None:
    assert find_fault(sentence) is None


@pytest.mark.parametrize("sentence", ["she asked.", "A Title", "- An item.", "* Item.", "1. Item.", "He came and"])
def test_titles_items_and_unfinished_sentences_are_not_whole(sentence: str) -> None:
    assert find_fault(sentence) == "not a whole sentence"


def test_a_sentence_that_repeats_a_few_words_has_a_fault() -> None:
    assert find_fault("The bee saw the bee and the bee saw the bee.") == "mostly repeated words"


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let a model write three sentences in each batch, of which one is not whole; return the seeds of the batches."""
    seeds: list[int] = []

    def sample(_model: object, _tokenizer: object, seed: int) -> list[str]:
        seeds.append(seed)
        first, second = NUMBERS[len(seeds) // len(NUMBERS)], NUMBERS[len(seeds) % len(NUMBERS)]
        return [f"The dog saw {first} cats and {second} mice. Birds flew to {first} or {second} trees. And then"]

    monkeypatch.setattr(sampler, "_load", lambda _: (None, None))
    monkeypatch.setattr(sampler, "sample_batch", sample)
    return seeds


def test_sampling_ends_with_as_many_sentences_as_asked_for(scripted: list[int]) -> None:
    selection = sample_sentences(Path("llm"), 5, seed=0, processes=1)
    assert len(selection.kept) == 5
    assert len(scripted) == len(set(scripted)) == 3
    assert selection.counts == {"read": 9, "kept": 5, "dropped": {"not a whole sentence": 3, "more than needed": 1}}


def test_more_sentences_begin_with_those_of_a_smaller_number(scripted: list[int]) -> None:
    few = sample_sentences(Path("llm"), 3, seed=0, processes=1).kept
    scripted.clear()
    assert list(sample_sentences(Path("llm"), 7, seed=0, processes=1).kept)[:3] == list(few)


def test_sentences_that_espeak_cannot_speak_are_replaced(monkeypatch: pytest.MonkeyPatch, scripted: list[int]) -> None:
    verdicts: Iterator[bool] = itertools.cycle([True, False])
    monkeypatch.setattr(
        "auris.corpus.sentences.make_in_groups", lambda make, items, *_, **__: [next(verdicts) for _ in items]
    )
    selection = sample_sentences(Path("llm"), 4, seed=0, processes=1)
    assert len(selection.kept) == 4
    assert selection.dropped["eSpeak reports no time of a word"] >= 3
    assert selection.counts["read"] == 3 * len(scripted)


def test_a_model_that_writes_no_sentences_is_an_error(monkeypatch: pytest.MonkeyPatch, scripted: list[int]) -> None:
    monkeypatch.setattr(sampler, "sample_batch", lambda *_: ["and and"])
    with pytest.raises(UserError, match=r"llm=llm: the model writes hardly any sentence .*11 dropped: not a whole"):
        sample_sentences(Path("llm"), 5, seed=0, processes=1)


def test_a_missing_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="llm=.*none: there is no such directory"):
        sample_sentences(tmp_path / "none", 5, seed=0)


def test_a_directory_without_a_model_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="llm=.*: expected a causal language model with its tokenizer") as caught:
        sample_sentences(tmp_path, 5, seed=0)
    assert "\n" not in str(caught.value)


def test_weights_without_a_head_are_an_error(tmp_path: Path) -> None:
    Tokenizer.train(["some words"], vocab_size=300).save(tmp_path)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaModel(LlamaConfig(vocab_size=8000, tie_word_embeddings=False, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"llm=.*: lm_head.weight is missing"):
        sample_sentences(tmp_path, 5, seed=0)


def test_the_same_seed_gives_the_same_text_whatever_was_drawn_before(
    smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "_N_TOKENS", 5)
    monkeypatch.setattr(sampler, "OPENINGS", sampler.OPENINGS[:2])
    model, tokenizer = sampler._load(smollm2)
    first = sample_batch(model, tokenizer, 1)
    state = torch.random.get_rng_state()
    assert len(first) == 2 and all(first)
    assert sample_batch(model, tokenizer, 1) == first
    assert sample_batch(model, tokenizer, 2) != first
    assert torch.equal(torch.random.get_rng_state(), state)
