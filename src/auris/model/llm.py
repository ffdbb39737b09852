"""The language model: any causal LM of transformers, built from its config and run packed through its public classes.

Shapes: T tokens of all rows, S rows, H hidden width, V vocabulary rows, K key-value heads, Dh channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    PreTrainedConfig,
    PreTrainedModel,
)

from auris import compat
from auris.errors import MissingFileError, UserError
from auris.model import attention

# Config entries that scale or cap logits behind the output matrix; `head` would skip them silently.
_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")


# Parts of a decoder layer whose output at a token goes into that token's hidden state alone: all but keys and values.
_TOKENWISE = ("self_attn.q_proj", "self_attn.o_proj", "mlp")


def build_llm(config: Mapping[str, Any], vocab_size: int, train_length: int | None = None) -> PreTrainedModel:
    """Build a causal LM with freshly initialised weights (none at all on the meta device).

    Args:
        config: a transformers config as a dict with its `model_type`, or `path`: a directory whose config.json then
            says everything.
        vocab_size: V, rows of the embedding and of the head; replaces the config's own.
        train_length: tokens of a row beyond which, at inference, angles and queries are rescaled as Qwen-7B does it
            (`LongRotary`); None: never.

    Raises:
        ValueError: the model cannot be run packed.
        FileNotFoundError: no config.json in DIR.
    """
    # Special tokens are the tokenizer's and `generate`'s business; ids of another vocabulary would freeze an embedding.
    late = {"vocab_size": vocab_size, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    given = {name: value for name, value in config.items() if name != "path"}
    if config.get("path") is not None:
        path = Path(config["path"])
        if not (path / "config.json").is_file():
            raise MissingFileError(
                f"{path}: expected a transformers directory with a config.json (model.llm.config.path=DIR)"
            )
        hf_config = AutoConfig.from_pretrained(path, local_files_only=True, **late)
    elif "model_type" in given:
        hf_config = AutoConfig.for_model(**{**given, **late})
    else:
        raise UserError(
            f"LLM config with {sorted(config)}: expected a model_type (model.llm.config.model_type=qwen2) or a path"
        )
    _require_packable(hf_config)
    # torch's default, float32, whatever the config says: lower precision is up to the strategy.
    llm = AutoModelForCausalLM.from_config(hf_config, attn_implementation="packed", dtype=torch.get_default_dtype())
    if train_length is not None:
        decoder = llm.get_decoder()
        if hf_config.model_type != "qwen2":
            raise UserError(
                f"model.llm.train_length={train_length}: expected null for {hf_config.model_type}, only qwen2 has it"
            )
        decoder.rotary_emb = LongRotary(decoder.rotary_emb, train_length)
    return llm


def _require_packable(config: PreTrainedConfig) -> None:
    """Refuse models in which a row would see its neighbours, or whose logits are more than a matrix product."""
    name = config.model_type
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"{name} is no causal language model of transformers (model.llm=...)")
    if not MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].is_backend_compatible():
        raise UserError(
            f"{name} does not call transformers' attention interface: expected an LLM that does (model.llm=...)"
        )
    mixers = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if mixers:
        raise UserError(
            f"{name} has layers of type {sorted(mixers)}, which mix packed rows: expected attention (model.llm=...)"
        )
    for key in _LOGIT_CHANGES:
        if getattr(config, key, None) not in (None, 1.0):
            raise UserError(f"{name} changes its logits by {key}={getattr(config, key)}: expected none (model.llm=...)")


@torch.no_grad()
def reset_parameters(llm: PreTrainedModel) -> None:
    """Initialise all weights and buffers, also those that no checkpoint holds, after `to_empty`.

    transformers marks the modules that it has initialised and skips them from then on, and `to_empty` parts tied
    weights, unless they are sharded. So: forget the marks, tie again, initialise: a tied weight ends as the last of its
    draws, sharded or not. Draws from torch's global generator.
    """
    llm.tie_weights(recompute_mapping=False)
    compat.forget_initialisation(llm)
    llm.init_weights()


class LongRotary(nn.Module):
    """Qwen-7B beyond the length it was trained on: dynamic NTK angles and log-n queries, at inference only.

    As released (QwenLM/Qwen-Audio modeling_qwen.py): the rotary base of a row grows with its prompt's length in steps
    and keeps that value while an answer is decoded; the query at position p is scaled by log(p + 1) / log(train length)
    where that is above one.

    Args:
        rotary: the model's own rotary embedding.
        train_length: tokens of the rows it was trained on (Qwen-Audio: 2048).
    """

    def __init__(self, rotary: nn.Module, train_length: int) -> None:
        super().__init__()
        self.rotary, self.train_length = rotary, train_length
        self._alpha: Tensor | None = None

    def set_angles(self, positions: Tensor, prompt_lengths: Tensor, row_lengths: Tensor) -> Tensor | None:
        """Set the angles of the next forward: positions (T,), tokens of each row's prompt (S,), its rows in it (S,).

        Returns what the queries are scaled by (T,), or None if no row is long enough for any of it.
        """
        self._alpha = None
        longest = max(int(prompt_lengths.max()), int(positions.max()) + 1)
        if longest <= self.train_length:
            return None
        steps = torch.ceil(torch.log2(prompt_lengths.double() / self.train_length) + 1)
        alpha = (2**steps - 1).clamp(min=1).float()
        self._alpha = torch.repeat_interleave(alpha, row_lengths).to(positions.device)
        return (torch.log(positions + 1) / math.log(self.train_length)).clamp(min=1)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        if self._alpha is None:
            return self.rotary(x, position_ids)
        alpha, self._alpha = self._alpha, None
        rates = self.rotary.inv_freq.float()  # base ** (-2 i / d); base * alpha ** (d / (d - 2)) in its place
        exponents = torch.arange(len(rates), device=x.device) / (len(rates) - 1)
        angles = position_ids[0, :, None].float() * rates * alpha[:, None] ** -exponents
        angles = torch.cat([angles, angles], dim=-1)[None]
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def layers(llm: PreTrainedModel) -> nn.ModuleList:
    """The decoder's layers, from the bottom."""
    return next(child for child in llm.get_decoder().children() if isinstance(child, nn.ModuleList))


def last_tokenwise(llm: PreTrainedModel) -> list[nn.Module]:
    """Parts of the last layer that need not see a token whose hidden state nobody asks for."""
    parts = dict(layers(llm)[-1].named_modules())
    return [parts[name] for name in _TOKENWISE if name in parts]


@contextmanager
def _only_at(indices: Tensor, n_tokens: int, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within it, modules compute their outputs (1, T, ...) for tokens `indices` (R,) alone; the others get zeros."""

    def take(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return args[0].index_select(1, indices), *args[1:]

    def put(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out.new_zeros(1, n_tokens, out.shape[-1]).index_copy(1, indices, out)

    # Outermost, so that hooks which divide a module over processes see less of the same kind.
    handles = [module.register_forward_pre_hook(take, prepend=True) for module in modules]
    handles += [module.register_forward_hook(put) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def embed(llm: PreTrainedModel, ids: Tensor) -> Tensor:
    """Token ids (T,) -> embeddings (T, H)."""
    return llm.get_input_embeddings()(ids)


def hidden_states(
    llm: PreTrainedModel,
    embeds: Tensor,
    positions: Tensor,
    cu_seqlens: Tensor,
    cache: SlotCache | None = None,
    cu_k: Tensor | None = None,
    prompt_lengths: Tensor | None = None,
    key_index: Tensor | None = None,
    indices: Tensor | None = None,
) -> Tensor:
    """Hidden states behind the final norm of packed rows: embeddings (T, H), positions (T,) -> (T, H).

    With `indices` (R,), without duplicates: of these tokens alone (R, H); the last layer skips work that only others
    would need.

    With a cache, `embeds` are what it was told of: prompts of new rows, or a token of each row.
    `prompt_lengths` (S,), on the host, says that this is inference, and how long each row's prompt was: an LLM with a
    `train_length` needs it.
    With `key_index` (Tk,), instead of a cache, the keys of a row are not its own tokens but those at these places in
    `embeds`, `cu_k` (S + 1,) of them: rows that begin alike share what they begin with.
    """
    assert cache is None or key_index is None, "a cache holds each row's own keys"
    extra = {} if key_index is None else {"key_index": key_index}
    rotary = getattr(llm.get_decoder(), "rotary_emb", None)
    if isinstance(rotary, LongRotary) and prompt_lengths is not None:
        rows = torch.tensor(attention.lengths(cu_seqlens))
        scale = rotary.set_angles(positions, prompt_lengths, rows)
        if scale is not None:
            extra["query_scale"] = scale
    cu_k = cu_seqlens if cu_k is None else cu_k
    longest = max(attention.lengths(cu_k))
    if cache is not None and cache.mask is not None:
        extra["slot_mask"], longest = cache.mask, cache.mask.shape[1]
    # A layer that is compiled is left whole: it would be compiled once more, being the only one to leave something out.
    is_whole = indices is None or compat.is_compiled(layers(llm)[-1])
    with nullcontext() if is_whole else _only_at(indices, len(embeds), last_tokenwise(llm)):
        out = llm.get_decoder()(
            inputs_embeds=torch.stack([embeds]),  # no view: the first layer would be compiled apart from the others
            position_ids=positions[None],
            past_key_values=cache,
            use_cache=cache is not None,
            cu_seq_lens_q=cu_seqlens,
            cu_seq_lens_k=cu_k,
            max_length_q=max(attention.lengths(cu_seqlens)),
            max_length_k=longest,
            **extra,
        )
    return out.last_hidden_state[0] if indices is None else out.last_hidden_state[0, indices]


class SlotCache(Cache):
    """Keys and values of rows of different lengths, each row in a slot of its own. Slots are equally long, so that a
    token of every row reads its keys in one call, and what they hold is read where it lies: the rows that there are
    stand in the first slots.

    Before each forward comes `begin`, of new rows' prompts, or `extend`, of one token of every row.

    Args:
        room: tokens that a row may get behind its prompt.
        device: where the indices live.
    """

    def __init__(self, room: int, device: torch.device) -> None:
        super().__init__(layers=[])
        self.room, self.device = room, device
        self.lengths = torch.zeros(0, dtype=torch.long)  # (R,) tokens of each row, on the host
        self.size = 0  # of a slot
        self.mask: Tensor | None = None  # (R, L), of the slots' first L places; None: in a forward of prompts
        self.keys: dict[int, Tensor] = {}  # of each layer (slots, K, size, Dh)
        self.values: dict[int, Tensor] = {}

    def begin(self, prompts: Tensor) -> None:
        """The next forward is that of new rows, which have so many tokens (S,), on the host."""
        first = len(self.lengths)
        self.lengths = torch.cat([self.lengths, prompts])
        self.size, self.mask = max(self.size, int(prompts.max()) + self.room), None
        slot = torch.repeat_interleave(torch.arange(first, len(self.lengths)), prompts)
        self._at = slot.to(self.device), attention.ranges(torch.zeros_like(prompts), prompts).to(self.device)

    def extend(self) -> None:
        """The next forward is that of one token of each row."""
        self._at = torch.arange(len(self.lengths), device=self.device), self.lengths.to(self.device)
        self.lengths = self.lengths + 1
        free = torch.arange(int(self.lengths.max())) >= self.lengths[:, None]
        self.mask = torch.zeros(free.shape).masked_fill(free, -torch.inf).to(self.device)  # as SDPA has it

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Go on with these rows only, by their slots. The last ones move into slots that have become free: returns,
        for each slot, where its row stood."""
        kept, n = set(rows), len(rows)
        if n == len(self.lengths):
            return list(rows)
        moving = torch.tensor([slot for slot in rows if slot >= n], dtype=torch.long)
        free = torch.tensor([slot for slot in range(n) if slot not in kept], dtype=torch.long)
        here, there = moving.to(self.device), free.to(self.device)
        for store in (self.keys, self.values):
            for held in store.values():
                held[there] = held[here]
        order = torch.arange(n).index_copy(0, free, moving)
        self.lengths = self.lengths[order]
        return order.tolist()

    def update(self, key: Tensor, value: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values (1, K, T, Dh). Returns what they are to be attended with: the prompts'
        own as they came, later all of each slot up to the longest row (R, K, L, Dh)."""
        return self._update(self.keys, key, layer), self._update(self.values, value, layer)

    def _update(self, store: dict[int, Tensor], new: Tensor, layer: int) -> Tensor:
        n = len(self.lengths)
        held = store.get(layer)
        if held is None or held.shape[0] < n or held.shape[2] < self.size:
            # zeros: what a row has not reached is multiplied by nothing, and must be a number
            slots = n if held is None else max(n, held.shape[0])
            store[layer] = new.new_zeros(slots, new.shape[1], self.size, new.shape[3])
            if held is not None:
                store[layer][: held.shape[0], :, : held.shape[2]] = held
        slot, place = self._at
        store[layer][slot, :, place] = rearrange(new, "1 k t d -> t k d")
        return new if self.mask is None else store[layer][:n, :, : self.mask.shape[1]]
