"""Generation: answers to the rows of a pack, greedy or sampled, equal to transformers' `generate` token by token.

Unusual: nothing is padded, so finished rows cost nothing, and nothing of a row's answer depends on its neighbours,
neither what repetition is penalised nor the random numbers it is sampled with.

Shapes: S rows, R of them still going on, H hidden width, V vocabulary rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from auris.errors import UserError
from auris.model import attention
from auris.model import llm as lm
from auris.model.pack import Pack


class Net(Protocol):
    """What generation needs of a model.

    `embed` turns a pack into token embeddings (T, H), audio included; `head` turns hidden states (R, H) into logits.
    """

    llm: PreTrainedModel

    def embed(self, batch: Pack) -> Tensor: ...

    def head(self, h: Tensor) -> Tensor: ...


NextPack = Callable[[int], Pack | None]
"""What `generate` calls with the number of unfinished rows to get further prompts."""

_SAMPLING = frozenset({"temperature", "top_k", "top_p"})

# What a generation_config.json may ask for and is not offered here, with the value at which it does nothing (null does
# nothing either): transformers 5.23, GenerationConfig. Keys of beam search alone are not in it, as num_beams is.
_OFF_IN_SAMPLING = {"min_p": 0, "top_h": None, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0}
_OFF = {
    **dict.fromkeys(("num_beams", "num_return_sequences", "guidance_scale", "encoder_repetition_penalty"), 1),
    **dict.fromkeys(("penalty_alpha", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length"), 0),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"), None),
    **dict.fromkeys(("dola_layers", "watermarking_config", "max_time"), None),
    **dict.fromkeys(("constraints", "force_words_ids", "bad_words_ids", "stop_strings"), []),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), []),
    **dict.fromkeys(("remove_invalid_values", "token_healing"), False),
    "sequence_bias": {},
}


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How an answer is chosen, token by token. A setting that would have no effect is refused.

    Args:
        max_new_tokens: of an answer at most.
        min_new_tokens: among so many first ones there is no stop token.
        stop: ids of the tokens that end an answer and are no part of it.
        do_sample: draw tokens; else the likeliest is taken.
        temperature: divides the logits before sampling.
        top_k: sample from the k likeliest tokens only; 0: from all.
        top_p: sample from the likeliest tokens that reach this probability together.
        repetition_penalty: tokens of the prompt and the answer so far get less likely by this factor on their logits
            (Keskar et al. 2019), audio tokens included.
        unused: what `from_config` read and did not need.

    Raises:
        ValueError: a value out of its range, or without effect.
    """

    max_new_tokens: int = 256  # official evaluation scripts (QwenLM/Qwen2-Audio eval_audio)
    min_new_tokens: int = 0
    stop: frozenset[int] = frozenset()
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    unused: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        ranges = {
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "min_new_tokens": (0 <= self.min_new_tokens <= self.max_new_tokens, f"0 to {self.max_new_tokens}"),
            "temperature": (self.temperature > 0, "more than 0 (do_sample=false takes the likeliest token)"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "more than 0 and at most 1 (off)"),
            "repetition_penalty": (self.repetition_penalty > 0, "more than 0 (1 is off)"),
        }
        for name, (holds, expected) in ranges.items():
            if not holds:
                raise UserError(f"{name}={getattr(self, name)}: expected {expected}")
        for name in _SAMPLING:
            value = getattr(self, name)
            if not self.do_sample and value != getattr(GenerationSettings, name):
                raise UserError(f"{name}={value} has no effect without sampling: expected do_sample=true")
        if self.min_new_tokens and not self.stop:
            raise UserError(f"min_new_tokens={self.min_new_tokens} has no effect without a stop token: expected one")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> GenerationSettings:
        """The settings of a generation_config.json, some of them replaced.

        As in transformers, null is as good as absent, `top_k` is 50 if absent, and what only sampling needs is left
        alone where there is none. Unlike there, `max_new_tokens` is 256 if absent, whatever `max_length` says (which
        counts the prompt as well).

        Args:
            config: `stop` is its `eos_token_id` (one or a list) and Qwen-Audio's `stop_words_ids`.
            overrides: fields of `GenerationSettings`; None is not given.

        Raises:
            ValueError: the config asks for what would change the answers and is not offered here, or an override is no
                field.
        """
        names = {entry.name for entry in fields(cls)} - {"unused"}
        if unknown := overrides.keys() - names:
            raise UserError(f"{', '.join(sorted(unknown))}: expected settings among {', '.join(sorted(names))}")
        typed = {name: value for name, value in overrides.items() if value is not None}
        given = {key: value for key, value in config.items() if value is not None}
        settings = {"top_k": 50} | {name: given[name] for name in names & given.keys()} | typed
        settings["stop"] = frozenset(typed.get("stop", _stop_tokens(given)))
        off = _OFF
        if settings.get("do_sample"):
            off = _OFF | _OFF_IN_SAMPLING
        else:
            for name in _SAMPLING - typed.keys():
                settings.pop(name, None)
        for key, value in off.items():
            if key in given and given[key] != value:
                raise UserError(
                    f"generation_config.json: {key}={given[key]} is not offered here, expected {value} or no such key"
                )
        used = settings.keys() | off.keys() | {"eos_token_id", "stop_words_ids"}
        return cls(**settings, unused=tuple(sorted(given.keys() - used)))


def _stop_tokens(config: Mapping[str, Any]) -> list[int]:
    end, words = config.get("eos_token_id", []), config.get("stop_words_ids", [])
    if longer := [word for word in words if len(word) != 1]:
        raise UserError(
            f"generation_config.json: stop_words_ids={longer} is not offered here, expected words of one token each"
        )
    return [*([end] if isinstance(end, int) else end), *(token for word in words for token in word)]


def no_more_prompts(going: int) -> None:
    """`NextPack` where the rows of the first pack are all."""


@torch.compiler.set_stance("force_eager")  # a block is compiled for training: with a cache it would be, again and again
@torch.no_grad()
def generate(
    net: Net,
    batch: Pack,
    settings: GenerationSettings,
    *,
    generator: torch.Generator | None = None,
    stream: Callable[[int, int], None] | None = None,
    any_rank_active: Callable[[bool], bool] = bool,
    next_pack: NextPack = no_more_prompts,
) -> list[list[int]]:
    """Continue every row of a pack until its stop token, which is not returned.

    The rows are prefilled as one pack; then each step computes one token of every row that has not stopped yet. `more`
    puts new rows in the places of those that have, so that steps stay full: their answers follow those of the pack.

    Args:
        net: in eval mode.
        batch: prompts, as auris.data.collate makes them.
        generator: of the one number per call which, with a row's number (`rows` of the batch), all of that row's draws
            follow from: in the same state, it gives a row the same answer in any pack. None: torch's global one.
        stream: called with (row's index among the answers, token) as soon as each token is known.
        any_rank_active: told whether a row of this process goes on, says whether one of any process does. A sharded net
            computes only where all processes do: those whose rows have stopped compute along.
        more: told how many rows go on, gives a pack of prompts to be computed beside them. None: not now or, where none
            goes on, never again.

    Raises:
        ValueError: a stop token that the model does not have.
    """
    vocab_size = net.llm.get_input_embeddings().num_embeddings
    if unknown := [token for token in sorted(settings.stop) if not 0 <= token < vocab_size]:
        raise UserError(f"stop={unknown}: expected tokens of the model, which has {vocab_size}")
    seed = _draw_seed(generator) if settings.do_sample else None
    rows = _Rows(net, settings, seed, batch["ids"].device)
    rows.begin(batch)
    answers: list[list[int]] = [[] for _ in rows.answer]
    stopped = False  # all rows of this process
    for step in itertools.count(1):
        so_far = torch.tensor([len(answers[row]) for row in rows.answer])
        ids = rows.choose(so_far)
        going = [i for i, token in enumerate(ids.tolist()) if token not in settings.stop and not stopped]
        for row, i in sorted((rows.answer[i], i) for i in going):
            answers[row].append(int(ids[i]))
            if stream is not None:
                stream(row, int(ids[i]))
        goes = any_rank_active(bool(going))
        going = [i for i in going if so_far[i] + 1 < settings.max_new_tokens]
        fresh = next_pack(len(going))
        if fresh is None and not going and (not goes or step >= settings.max_new_tokens):
            return answers
        stopped = not going and fresh is None
        rows.advance([0] if stopped else going, ids)  # stopped: one row computes along, unheard
        if fresh is not None:
            rows.begin(fresh)
            answers += [[] for _ in range(rows.began - len(answers))]


class _Rows:
    """The rows that go on, and what computing and choosing their next tokens takes."""

    def __init__(self, net: Net, settings: GenerationSettings, seed: int | None, device: torch.device):
        self.net, self.settings, self.seed = net, settings, seed
        self.cache = lm.SlotCache(settings.max_new_tokens, device)
        self.answer: list[int] = []  # R, whose answers they are
        self.began = 0  # rows so far
        self.prompt = torch.zeros(0, dtype=torch.long)  # (R,) tokens of each row's prompt, on the host, as all counting
        self.h: Tensor | None = None  # (R, H) hidden states of their newest tokens
        self.seen: Tensor | None = None  # (R, V), for a repetition penalty
        self.draws: Tensor | None = None  # (R, max_new_tokens), for sampling

    def begin(self, batch: Pack) -> None:
        """Prefill a pack of prompts: its rows stand behind those that go on."""
        cu = batch["cu_seqlens"]
        prompt = torch.tensor(attention.lengths(cu))
        self.cache.begin(prompt)
        last = cu[1:].long() - 1
        embeds = self.net.embed(batch)
        h = lm.hidden_states(
            self.net.llm, embeds, batch["positions"], cu, self.cache, prompt_lengths=prompt, indices=last
        )  # (S, H)
        self.h, self.prompt = _append(self.h, h), torch.cat([self.prompt, prompt])
        self.answer += range(self.began, self.began + len(prompt))
        self.began += len(prompt)
        if self.settings.repetition_penalty != 1:
            vocab_size = self.net.llm.get_input_embeddings().num_embeddings
            self.seen = _append(self.seen, _mark_seen(batch["ids"], prompt, vocab_size))
        if self.seed is not None:
            self.draws = _append(self.draws, _draw(batch, self.settings.max_new_tokens, self.seed))

    def choose(self, so_far: Tensor) -> Tensor:
        """The next token (R,) of every row, on the host; `so_far` (R,): tokens of its answer."""
        scores = process(self.net.head(self.h), self.settings, so_far=so_far, seen=self.seen)
        if self.draws is None:
            return scores.argmax(-1).cpu()
        return sample(scores, self.draws.gather(1, so_far[:, None])[:, 0].to(scores.device)).cpu()

    def advance(self, going: list[int], ids: Tensor) -> None:
        """Compute with the new tokens ids (R,) of the rows at `going`; the others are gone."""
        order = self.cache.keep(going)
        ids, self.prompt, self.answer = ids[order], self.prompt[order], [self.answer[i] for i in order]
        if self.draws is not None:
            self.draws = self.draws[order]
        if self.seen is not None:
            self.seen = self.seen[order]
            self.seen[torch.arange(len(order)), ids] = True
        if not order:
            self.h = None
            return
        device = self.h.device
        positions = self.cache.lengths.to(device)
        self.cache.extend()
        cu = torch.arange(len(order) + 1, dtype=torch.int32, device=device)
        embeds = lm.embed(self.net.llm, ids.to(device))
        self.h = lm.hidden_states(self.net.llm, embeds, positions, cu, self.cache, prompt_lengths=self.prompt)


def _append(rows: Tensor | None, new: Tensor) -> Tensor:
    return new if rows is None else torch.cat([rows, new])


def process(logits: Tensor, settings: GenerationSettings, *, so_far: Tensor, seen: Tensor | None = None) -> Tensor:
    """Logits (R, V) of the rows' new tokens -> their scores (R, V), -inf for excluded tokens.

    What transformers' processors make of them, in the same order, in float32 (5.23, generation/utils.py).

    Args:
        so_far: (R,) tokens that each row's answer has already, on the host.
        seen: (R, V) bool, the tokens of each row so far; None: no repetition penalty.
    """
    scores = logits.float()
    if seen is not None:
        penalty = settings.repetition_penalty
        scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
    if (early := so_far < settings.min_new_tokens).any():
        stop = torch.tensor(sorted(settings.stop))
        excluded = early[:, None] & torch.isin(torch.arange(scores.shape[1]), stop)
        scores = scores.masked_fill(excluded.to(scores.device), -torch.inf)
    if settings.do_sample:  # these three do not look at the ids, their first argument
        scores = TemperatureLogitsWarper(float(settings.temperature))(None, scores)
        if settings.top_k:
            scores = TopKLogitsWarper(settings.top_k)(None, scores)
        if settings.top_p < 1:
            scores = TopPLogitsWarper(settings.top_p)(None, scores)
    return scores


def sample(scores: Tensor, draws: Tensor) -> Tensor:
    """A token (R,) of each row with the probabilities that scores (R, V) give; `draws` (R,) are uniform in [0, 1)."""
    cumulative = scores.double().softmax(-1).cumsum(-1)  # the first entry above the draw is never one of probability 0
    return torch.searchsorted(cumulative, draws[:, None] * cumulative[:, -1:], right=True)[:, 0]


def _draw_seed(generator: torch.Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (1,), generator=generator, device=device))


def _draw(batch: Pack, n: int, seed: int) -> Tensor:
    """`n` uniform numbers for each row: (S, n) float64, on the host, so that they do not depend on the device."""
    numbers = batch["rows"] or [0]  # a pack without rows is one dummy row
    return torch.from_numpy(np.stack([np.random.default_rng((seed, number)).random(n) for number in numbers]))


def _mark_seen(ids: Tensor, lengths: Tensor, vocab_size: int) -> Tensor:
    """Which tokens stand in each row: ids (T,) of rows with `lengths` (S,) -> (S, V) bool."""
    row = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(ids.device)
    seen = torch.zeros(len(lengths), vocab_size, dtype=torch.bool, device=ids.device)
    seen[row, ids] = True
    return seen
