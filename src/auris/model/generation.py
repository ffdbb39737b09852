"""Generation of responses to packed prompts, greedy or sampled.

Greedy responses equal those of transformers' `generate`, and sampled tokens have the same probabilities. Two properties
differ from transformers. Nothing is padded, so finished rows cost nothing. The response to a row does not depend on the
other rows of the pack, neither through the repetition penalty nor through random numbers.

Shapes: S rows of a pack, R active rows (not finished yet), T tokens of all rows, H hidden width, V logits per token.
"""

from __future__ import annotations

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
from auris.model.vocabulary import input_table


class Net(Protocol):
    """A model for which `generate` can compute responses."""

    llm: PreTrainedModel

    def embed(self, batch: Pack) -> Tensor:
        """Return the token embeddings of a pack (T, H), audio included."""
        ...

    def head(self, h: Tensor) -> Tensor:
        """Return the logits (R, V) of hidden states (R, H)."""
        ...


NextPack = Callable[[int], Pack | None]
"""A function that takes the number of active rows and returns a pack of further prompts or None."""

_SAMPLING = frozenset({"temperature", "top_k", "top_p"})

# Keys of generation_config.json (GenerationConfig in transformers 5.23) that auris does not support, each with the
# value at which it has no effect. Null has no effect either. Keys that affect only beam search are left out, because
# beam search itself is refused (num_beams must be 1).
_NEUTRAL_SAMPLING_VALUES = {"min_p": 0, "top_h": None, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0}
_NEUTRAL_VALUES = {
    **dict.fromkeys(("num_beams", "num_return_sequences", "guidance_scale", "encoder_repetition_penalty"), 1),
    **dict.fromkeys(("penalty_alpha", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length"), 0),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"), None),
    **dict.fromkeys(("dola_layers", "watermarking_config", "max_time"), None),
    **{key: [] for key in ("constraints", "force_words_ids", "bad_words_ids", "stop_strings")},
    **{key: [] for key in ("suppress_tokens", "begin_suppress_tokens")},
    **dict.fromkeys(("remove_invalid_values", "token_healing"), False),
    "sequence_bias": {},
}


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """Settings of generation. A setting that would have no effect is an error.

    Args:
        max_new_tokens: maximum number of tokens in a response.
        min_new_tokens: minimum number of tokens before a stop token.
        stop: ids of the tokens that end a response. The stop token is not part of the response.
        do_sample: sample each token; otherwise take the most likely token.
        temperature: divides the logits before sampling.
        top_k: sample from the k most likely tokens only; 0: from all tokens.
        top_p: sample from the smallest set of most likely tokens whose total probability is at least this value.
        repetition_penalty: factor that makes a token less likely if it is in the prompt, which includes the audio
            tokens, or in the response so far (Keskar et al. 2019).
        unused: keys of a generation_config.json that `from_config` has ignored.

    Raises:
        UserError: a value is out of range or has no effect.
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
        conditions = {
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "min_new_tokens": (0 <= self.min_new_tokens <= self.max_new_tokens, f"0 to {self.max_new_tokens}"),
            "temperature": (self.temperature > 0, "more than 0 (do_sample=false takes the most likely token)"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "more than 0 and at most 1 (off)"),
            "repetition_penalty": (self.repetition_penalty > 0, "more than 0 (1 is off)"),
        }
        for name, (is_met, expected) in conditions.items():
            if not is_met:
                raise UserError(f"{name}={getattr(self, name)}: expected {expected}")
        for name in _SAMPLING:
            value = getattr(self, name)
            if not self.do_sample and value != getattr(GenerationSettings, name):
                raise UserError(f"{name}={value} has no effect without sampling: set do_sample=true")
        if self.min_new_tokens and not self.stop:
            raise UserError(f"min_new_tokens={self.min_new_tokens} has no effect without a stop token")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> GenerationSettings:
        """Return the settings of a generation_config.json, some of them overridden.

        As in transformers, null means absent, `top_k` defaults to 50, and sampling settings are ignored without
        sampling. Unlike in transformers, `max_new_tokens` defaults to 256 regardless of `max_length`, which includes
        the prompt.

        Args:
            config: the content of the file. The field `stop` combines its `eos_token_id` (a token id or a list of
                them) and Qwen-Audio's `stop_words_ids`.
            overrides: fields of `GenerationSettings`; None means absent.

        Raises:
            UserError: the config has a setting that would change responses and is not supported, or an override is not
                a field.
        """
        field_names = {entry.name for entry in fields(cls)} - {"unused"}
        if unknown := overrides.keys() - field_names:
            raise UserError(
                f"{', '.join(sorted(unknown))}: expected generation settings, one of {', '.join(sorted(field_names))}"
            )
        changes = {name: value for name, value in overrides.items() if value is not None}
        configured = {key: value for key, value in config.items() if value is not None}
        settings: dict[str, Any] = {"top_k": 50} | {name: configured[name] for name in field_names & configured.keys()}
        settings |= changes
        settings["stop"] = frozenset(changes.get("stop", _stop_tokens(configured)))
        neutral_values = _NEUTRAL_VALUES
        if settings.get("do_sample"):
            neutral_values = _NEUTRAL_VALUES | _NEUTRAL_SAMPLING_VALUES
        else:
            for name in _SAMPLING - changes.keys():
                settings.pop(name, None)
        for key, value in neutral_values.items():
            if key in configured and configured[key] != value:
                raise UserError(
                    f"generation_config.json: {key}={configured[key]} is not supported, expected {value} or no such key"
                )
        used = settings.keys() | neutral_values.keys() | {"eos_token_id", "stop_words_ids"}
        return cls(**settings, unused=tuple(sorted(configured.keys() - used)))


def _stop_tokens(config: Mapping[str, Any]) -> list[int]:
    eos, stop_words = config.get("eos_token_id", []), config.get("stop_words_ids", [])
    if longer := [word for word in stop_words if len(word) != 1]:
        raise UserError(
            f"generation_config.json: stop_words_ids={longer} is not supported, expected words of one token each"
        )
    return [*([eos] if isinstance(eos, int) else eos), *(token for word in stop_words for token in word)]


def no_more_prompts(n_active: int) -> None:
    """Return None, because there are no prompts after the first pack."""


@torch.compiler.set_stance("force_eager")  # blocks are compiled for training; with a cache they would be recompiled
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
    """Continue every row of a pack up to a stop token, which is not returned, or up to `max_new_tokens`.

    The rows are prefilled as one pack. Then each step computes one token of every active row. `next_pack` provides
    further rows in place of finished ones, so that steps stay large.

    Args:
        net: a model in eval mode.
        batch: prompts, as built by `auris.data.collate`.
        settings: how tokens are chosen.
        generator: source of the seed of the sampling, one number per call. All random numbers of a row follow from this
            seed and the row's number (`rows` of the batch), so a row has the same response in any pack if the generator
            is in the same state. None: torch's global generator.
        stream: called with (index of the response, token) as soon as a token is known.
        any_rank_active: called in each step with whether this rank has active rows; returns whether any rank has active
            rows. A sharded net needs all ranks in every forward, so a rank without active rows continues to compute.
        next_pack: takes the number of active rows, returns a pack of further prompts. None means that there are no
            prompts now or, if no row is active, no more prompts at all.

    Returns:
        The token ids of each response: those to the rows of the batch, then those to the rows of further packs.

    Raises:
        UserError: the model does not have one of the stop tokens.
    """
    vocab_size = input_table(net.llm).num_embeddings
    if unknown := [token for token in sorted(settings.stop) if not 0 <= token < vocab_size]:
        raise UserError(f"stop={unknown}: expected token ids below {vocab_size}, the size of the model's vocabulary")
    seed = _draw_seed(generator) if settings.do_sample else None
    state = _DecodingState(net, settings, seed, batch["ids"].device)
    state.prefill(batch)
    responses: list[list[int]] = [[] for _ in state.response_indices]
    is_idle = False  # whether this rank has no active rows
    step = 0
    while True:
        step += 1
        n_generated = torch.tensor([len(responses[index]) for index in state.response_indices])
        ids = state.choose_tokens(n_generated)
        active = [i for i, token in enumerate(ids.tolist()) if token not in settings.stop and not is_idle]
        for index, i in sorted((state.response_indices[i], i) for i in active):
            responses[index].append(int(ids[i]))
            if stream is not None:
                stream(index, int(ids[i]))
        is_any_active = any_rank_active(bool(active))
        active = [i for i in active if n_generated[i] + 1 < settings.max_new_tokens]
        prompts = next_pack(len(active))
        if prompts is None and not active and (not is_any_active or step >= settings.max_new_tokens):
            return responses
        is_idle = not active and prompts is None
        state.advance([0] if is_idle else active, ids)  # an idle rank computes one row, whose tokens are ignored
        if prompts is not None:
            state.prefill(prompts)
            responses += [[] for _ in range(state.n_prefilled - len(responses))]


class _DecodingState:
    """The active rows, with everything that the next step of decoding needs."""

    def __init__(self, net: Net, settings: GenerationSettings, seed: int | None, device: torch.device):
        self.net, self.settings, self.seed = net, settings, seed
        self.cache = lm.SlotCache(settings.max_new_tokens, device)
        self.response_indices: list[int] = []  # index of each active row's response
        self.n_prefilled = 0  # number of rows that were prefilled so far
        self.prompt_lengths = torch.zeros(0, dtype=torch.long)  # (R,) tokens of each row's prompt, on the host
        self.h: Tensor | None = None  # (R, H) hidden states of the newest tokens
        self.seen: Tensor | None = None  # (R, V) bool: the row already has this token; for a repetition penalty
        self.uniform: Tensor | None = None  # (R, max_new_tokens) uniform random numbers, for sampling

    def prefill(self, batch: Pack) -> None:
        """Prefill a pack of prompts and append its rows to the active rows."""
        cu = batch["cu_seqlens"]
        prompt_lengths = torch.tensor(attention.sequence_lengths(cu))
        self.cache.begin_prompts(prompt_lengths)
        last = cu[1:].long() - 1
        embeds = self.net.embed(batch)
        h = lm.hidden_states(
            self.net.llm, embeds, batch["positions"], cu, self.cache, prompt_lengths=prompt_lengths, indices=last
        )  # (S, H)
        self.h, self.prompt_lengths = _append(self.h, h), torch.cat([self.prompt_lengths, prompt_lengths])
        self.response_indices += range(self.n_prefilled, self.n_prefilled + len(prompt_lengths))
        self.n_prefilled += len(prompt_lengths)
        if self.settings.repetition_penalty != 1:
            vocab_size = input_table(self.net.llm).num_embeddings
            self.seen = _append(self.seen, _mark_seen(batch["ids"], prompt_lengths, vocab_size))
        if self.seed is not None:
            self.uniform = _append(self.uniform, _draw_uniform(batch, self.settings.max_new_tokens, self.seed))

    def choose_tokens(self, n_generated: Tensor) -> Tensor:
        """Return the next token of every row (R,) on the host. `n_generated` (R,): tokens in each response."""
        assert self.h is not None, "there are active rows"
        scores = process_logits(self.net.head(self.h), self.settings, n_generated=n_generated, seen=self.seen)
        if self.uniform is None:
            return scores.argmax(-1).cpu()
        return sample_tokens(scores, self.uniform.gather(1, n_generated[:, None])[:, 0].to(scores.device)).cpu()

    def advance(self, active: list[int], ids: Tensor) -> None:
        """Drop all rows except `active`, and compute the hidden states of the new tokens of these rows.

        Args:
            active: indices of the rows that continue.
            ids: (R,) the new token of each row, including the rows that are dropped.
        """
        order = self.cache.keep(active)
        ids, self.prompt_lengths = ids[order], self.prompt_lengths[order]
        self.response_indices = [self.response_indices[i] for i in order]
        if self.uniform is not None:
            self.uniform = self.uniform[order]
        if self.seen is not None:
            self.seen = self.seen[order]
            self.seen[torch.arange(len(order)), ids] = True
        if not order:
            self.h = None
            return
        assert self.h is not None, "there are active rows"
        device = self.h.device
        positions = self.cache.lengths.to(device)
        self.cache.extend()
        cu = torch.arange(len(order) + 1, dtype=torch.int32, device=device)
        embeds = lm.embed(self.net.llm, ids.to(device))
        self.h = lm.hidden_states(self.net.llm, embeds, positions, cu, self.cache, prompt_lengths=self.prompt_lengths)


def _append(rows: Tensor | None, new_rows: Tensor) -> Tensor:
    return new_rows if rows is None else torch.cat([rows, new_rows])


def process_logits(
    logits: Tensor, settings: GenerationSettings, *, n_generated: Tensor, seen: Tensor | None = None
) -> Tensor:
    """Return the scores (R, V) of each row's next token, -inf for excluded tokens.

    The steps and their order are the same as for the logits processors of transformers 5.23 (generation/utils.py), in
    float32.

    Args:
        logits: (R, V).
        settings: how tokens are chosen.
        n_generated: (R,) number of tokens in each row's response so far, on the host.
        seen: (R, V) bool, whether the row already has this token; None: no repetition penalty.
    """
    scores = logits.float()
    if seen is not None:
        penalty = settings.repetition_penalty
        scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
    if (early := n_generated < settings.min_new_tokens).any():
        stop = torch.tensor(sorted(settings.stop))
        excluded = early[:, None] & torch.isin(torch.arange(scores.shape[1]), stop)
        scores = scores.masked_fill(excluded.to(scores.device), -torch.inf)
    if settings.do_sample:
        input_ids: Any = None  # these three processors do not read them
        scores = TemperatureLogitsWarper(float(settings.temperature))(input_ids, scores)
        if settings.top_k:
            scores = TopKLogitsWarper(settings.top_k)(input_ids, scores)
        if settings.top_p < 1:
            scores = TopPLogitsWarper(settings.top_p)(input_ids, scores)
    return scores


def sample_tokens(scores: Tensor, uniform: Tensor) -> Tensor:
    """Sample a token of each row (R,) from its scores (R, V), with random numbers `uniform` (R,) in [0, 1)."""
    cumulative = scores.double().softmax(-1).cumsum(-1)
    # The first entry above the random number never belongs to a token of probability 0.
    return torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]


def _draw_seed(generator: torch.Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (1,), generator=generator, device=device))


def _draw_uniform(batch: Pack, n: int, seed: int) -> Tensor:
    """Draw `n` uniform numbers per row: (S, n) float64, on the host so that they do not depend on the device."""
    row_numbers = batch["rows"] or [0]  # a pack without rows is one dummy row
    return torch.from_numpy(np.stack([np.random.default_rng((seed, number)).random(n) for number in row_numbers]))


def _mark_seen(ids: Tensor, lengths: Tensor, vocab_size: int) -> Tensor:
    """Return which tokens each row contains: ids (T,) of rows with `lengths` (S,) -> (S, V) bool."""
    row_index = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(ids.device)
    seen = torch.zeros(len(lengths), vocab_size, dtype=torch.bool, device=ids.device)
    seen[row_index, ids] = True
    return seen
