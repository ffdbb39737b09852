"""The language model: any causal LM of transformers, built from its config and run on packed rows.

Shapes: T tokens of all rows, S rows, H hidden width, V vocabulary rows, K key-value heads, Dh channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

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
from auris.model.vocabulary import input_table

# Config entries that scale or cap logits after the output matrix. `AudioLM.head` would silently skip them.
_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")
# Parts of a decoder layer whose output at a token affects the hidden state of that token only: all but keys and values.
_TOKENWISE = ("self_attn.q_proj", "self_attn.o_proj", "mlp")


def build_llm(config: Mapping[str, Any], vocab_size: int, train_length: int | None = None) -> PreTrainedModel:
    """Build a causal LM with new weights (without memory on the meta device).

    Args:
        config: a transformers config as a dict with its `model_type`, or `path`, a directory whose config.json replaces
            all other entries.
        vocab_size: V, rows of the embedding and of the head; replaces that of the config.
        train_length: number of tokens beyond which, at inference, angles and queries are rescaled as in Qwen-7B
            (`LongRotary`); None: never.

    Raises:
        UserError: the model cannot run on packed rows.
        MissingFileError: the directory has no config.json.
    """
    # The tokenizer and `generate` handle special tokens. A pad id of another vocabulary would freeze an embedding.
    overrides: dict[str, Any] = {
        "vocab_size": vocab_size,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    fields = {name: value for name, value in config.items() if name != "path"}
    if config.get("path") is not None:
        path = Path(config["path"])
        if not (path / "config.json").is_file():
            raise MissingFileError(
                f"{path}: expected a transformers directory with a config.json (model.llm.config.path=DIR)"
            )
        hf_config = AutoConfig.from_pretrained(path, local_files_only=True, **overrides)
    elif "model_type" in fields:
        hf_config = AutoConfig.for_model(**{**fields, **overrides})
    else:
        raise UserError(
            f"model.llm.config has {sorted(config)}: expected model_type (model.llm.config.model_type=qwen2) or path"
        )
    _require_packable(hf_config)
    # Always torch's default dtype, float32, because the training strategy decides about lower precision.
    llm = AutoModelForCausalLM.from_config(hf_config, attn_implementation="packed", dtype=torch.get_default_dtype())
    if train_length is not None:
        decoder = llm.get_decoder()
        if hf_config.model_type != "qwen2":
            raise UserError(
                f"model.llm.train_length={train_length}: expected null, because {hf_config.model_type} is not qwen2"
            )
        decoder.rotary_emb = LongRotary(cast("nn.Module", decoder.rotary_emb), train_length)
    return llm


def _require_packable(config: PreTrainedConfig) -> None:
    """Raise UserError for models in which packed rows would interact, or whose logits are not just a matrix product."""
    name = config.model_type
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"{name} is not a causal language model of transformers (model.llm=...)")
    model_class = cast("type[PreTrainedModel]", MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])  # never a tuple of classes
    if not model_class.is_backend_compatible():
        raise UserError(
            f"{name} does not use transformers' attention interface: choose an LLM that does (model.llm=...)"
        )
    mixers = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if mixers:
        raise UserError(
            f"{name} has layers of type {sorted(mixers)}, which mix packed rows: choose an LLM with attention "
            "only (model.llm=...)"
        )
    for key in _LOGIT_CHANGES:
        if getattr(config, key, None) not in (None, 1.0):
            raise UserError(f"{name} changes its logits by {key}={getattr(config, key)}: expected null (model.llm=...)")


@torch.no_grad()
def reset_parameters(llm: PreTrainedModel) -> None:
    """Initialise all weights and buffers after `to_empty`, including those that no checkpoint contains.

    `to_empty` separates tied weights unless they are sharded, so they are tied again first. transformers marks modules
    that it has initialised and skips them later, so the marks are removed. The value of a tied weight is the last of
    its draws, sharded or not. All values are drawn from torch's global generator.
    """
    llm.tie_weights(recompute_mapping=False)
    compat.forget_initialisation(llm)
    llm.init_weights()


class LongRotary(nn.Module):
    """Qwen-7B's rotary embedding for rows longer than in training: dynamic NTK and log-n scaling, at inference only.

    As released (QwenLM/Qwen-Audio modeling_qwen.py), the rotary base of a row grows in steps with the length of its
    prompt, and does not change while the response is decoded. The query at position p is scaled by
    log(p + 1) / log(train_length) if this is above one.

    Args:
        rotary: the rotary embedding of the model.
        train_length: tokens of a row in training (Qwen-Audio: 2048).
    """

    def __init__(self, rotary: nn.Module, train_length: int) -> None:
        super().__init__()
        self.rotary, self.train_length = rotary, train_length
        self._alpha: Tensor | None = None

    def set_angles(self, positions: Tensor, prompt_lengths: Tensor, row_lengths: Tensor) -> Tensor | None:
        """Set the angles of the next forward.

        Args:
            positions: (T,) position of each token in its row.
            prompt_lengths: (S,) tokens of each row's prompt.
            row_lengths: (S,) tokens of each row in the next forward.

        Returns:
            The factors (T,) of the queries, or None if no row is longer than `train_length`.
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
        """Return cosines and sines (1, T, Dh) for the angles that `set_angles` has set, or those of the model."""
        if self._alpha is None:
            return self.rotary(x, position_ids)
        alpha, self._alpha = self._alpha, None
        # The rates are base ** (-2 i / d); the factor below turns base into base * alpha ** (d / (d - 2)).
        rates = cast("Tensor", self.rotary.inv_freq).float()
        exponents = torch.arange(len(rates), device=x.device) / (len(rates) - 1)
        angles = position_ids[0, :, None].float() * rates * alpha[:, None] ** -exponents
        angles = torch.cat([angles, angles], dim=-1)[None]
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def layers(llm: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder layers, first to last."""
    return next(child for child in llm.get_decoder().children() if isinstance(child, nn.ModuleList))


def last_tokenwise(llm: PreTrainedModel) -> list[nn.Module]:
    """Return the parts of the last layer that may skip tokens whose hidden states are not needed."""
    parts = dict(layers(llm)[-1].named_modules())
    return [parts[name] for name in _TOKENWISE if name in parts]


@contextmanager
def _only_at(indices: Tensor, n_tokens: int, modules: Sequence[nn.Module]) -> Generator[None]:
    """Let modules compute their outputs (1, T, ...) for tokens `indices` (R,) only; the others get zeros."""

    def take(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return args[0].index_select(1, indices), *args[1:]

    def put(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out.new_zeros(1, n_tokens, out.shape[-1]).index_copy(1, indices, out)

    # These hooks run first, so the hooks that shard a module only see the selected tokens.
    handles = [module.register_forward_pre_hook(take, prepend=True) for module in modules]
    handles += [module.register_forward_hook(put) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def embed(llm: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the embeddings (T, H) of token ids (T,)."""
    return input_table(llm)(ids)


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
    """Return the hidden states of packed rows after the final norm: (T, H), or (R, H) if `indices` are given.

    Args:
        llm: the language model.
        embeds: (T, H) token embeddings of all rows. With a cache: the prompts that it was prepared for by `begin`, or
            after `extend` one token of each row.
        positions: (T,) position of each token in its row.
        cu_seqlens: (S + 1,) cumulative lengths of the rows.
        cache: keys and values of earlier tokens.
        cu_k: (S + 1,) cumulative numbers of keys of the rows, with `key_index`.
        prompt_lengths: (S,) tokens of each row's prompt, on the host, at inference only. An LLM with a `train_length`
            needs them.
        key_index: (Tk,) positions in `embeds` of each row's keys, so that rows can share a prompt. Excludes a cache.
        indices: (R,) the tokens whose hidden states are needed, without duplicates. The last layer skips work that only
            the others would need.
    """
    assert cache is None or key_index is None, "a cache holds each row's own keys"
    extra: dict[str, Tensor] = {} if key_index is None else {"key_index": key_index}
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
    # A compiled last layer does all of its work. It would be compiled again if it alone skipped tokens.
    is_partial = indices is not None and not compat.is_compiled(layers(llm)[-1])
    with _only_at(indices, len(embeds), last_tokenwise(llm)) if is_partial else nullcontext():
        out = llm.get_decoder()(
            inputs_embeds=torch.stack([embeds]),  # not a view, for which the first layer would be compiled separately
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
    """Key-value cache of rows of different lengths, with one slot per row.

    All slots have the same length, so the keys of all rows are read in one call. The active rows occupy the first
    slots, so their keys are read without a copy.

    Before each forward, call `begin` (the forward computes prompts of new rows) or `extend` (one token of every row).

    Args:
        room: maximum number of tokens of a row after its prompt.
        device: device of the indices.
    """

    def __init__(self, room: int, device: torch.device) -> None:
        super().__init__(layers=[])
        self.room, self.device = room, device
        self.lengths = torch.zeros(0, dtype=torch.long)  # (R,) tokens of each row, on the host
        self.size = 0  # tokens of a slot
        self.mask: Tensor | None = None  # (R, L) of the first L tokens of the slots; None in a forward of prompts
        self.keys: dict[int, Tensor] = {}  # by layer: (slots, K, size, Dh)
        self.values: dict[int, Tensor] = {}

    def begin(self, prompts: Tensor) -> None:
        """Prepare for a forward of new rows with prompts of these lengths (S,), on the host."""
        first = len(self.lengths)
        self.lengths = torch.cat([self.lengths, prompts])
        self.size, self.mask = max(self.size, int(prompts.max()) + self.room), None
        slot = torch.repeat_interleave(torch.arange(first, len(self.lengths)), prompts)
        self._at = slot.to(self.device), attention.ranges(torch.zeros_like(prompts), prompts).to(self.device)

    def extend(self) -> None:
        """Prepare for a forward of one token of each row."""
        self._at = torch.arange(len(self.lengths), device=self.device), self.lengths.to(self.device)
        self.lengths = self.lengths + 1
        free = torch.arange(int(self.lengths.max())) >= self.lengths[:, None]
        self.mask = (
            torch.zeros(free.shape).masked_fill(free, -torch.inf).to(self.device)
        )  # added to the scores, as SDPA does

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Keep these rows, given by their slots, and drop the others. The last rows move into slots that become free.

        Returns:
            For each slot, the former slot of its row.
        """
        kept, n = set(rows), len(rows)
        if n == len(self.lengths):
            return list(rows)
        moving = torch.tensor([slot for slot in rows if slot >= n], dtype=torch.long)
        free = torch.tensor([slot for slot in range(n) if slot not in kept], dtype=torch.long)
        here, there = moving.to(self.device), free.to(self.device)
        for store in (self.keys, self.values):
            for values in store.values():
                values[there] = values[here]
        order = torch.arange(n).index_copy(0, free, moving)
        self.lengths = self.lengths[order]
        return order.tolist()

    def update(self, key: Tensor, value: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values (1, K, T, Dh).

        Returns:
            The keys and values to attend to: for prompts the new ones, otherwise the slots up to the longest row
            (R, K, L, Dh).
        """
        return self._update(self.keys, key, layer), self._update(self.values, value, layer)

    def _update(self, store: dict[int, Tensor], new: Tensor, layer: int) -> Tensor:
        n = len(self.lengths)
        old = store.get(layer)
        if old is None or old.shape[0] < n or old.shape[2] < self.size:
            # Zeros, because unused entries are multiplied by attention weights of zero and must not be NaN.
            slots = n if old is None else max(n, old.shape[0])
            store[layer] = new.new_zeros(slots, new.shape[1], self.size, new.shape[3])
            if old is not None:
                store[layer][: old.shape[0], :, : old.shape[2]] = old
        slot, token = self._at
        store[layer][slot, :, token] = rearrange(new, "1 k t d -> t k d")
        return new if self.mask is None else store[layer][:n, :, : self.mask.shape[1]]
