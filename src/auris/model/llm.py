"""The language model: any causal LM of transformers, built from its config and run on packed rows.

Shapes: T tokens of all rows, S rows, R active rows or selected tokens, H hidden width, V rows of the embedding and of
the head, K key-value heads, Dh channels of a head.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
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
from auris.errors import UserError
from auris.model import attention
from auris.model.decoder_layers import replace_layers
from auris.model.vocabulary import input_table

# Config entries that scale or cap logits after the output matrix. `AudioLM.head` would silently skip them.
_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
# Config entries that do not change what a model with given weights computes at inference. `layer_types` follows from
# `max_window_layers` and is compared instead.
_NO_FUNCTION = re.compile(
    r"vocab_size|max_position_embeddings|initializer_range|use_cache|pretraining_tp|is_decoder|\w+_token_id|"
    r"\w*(dropout|pdrop)|router_aux_loss_coef|output_router_logits|max_window_layers"
)
# Parts of a decoder layer whose output at a token affects only the hidden state of this token. The projections of keys
# and values are not among them, because later tokens attend to keys and values.
_TOKENWISE = ("self_attn.q_proj", "self_attn.o_proj", "mlp")


def build_llm(config: Mapping[str, Any], vocab_size: int, train_length: int | None = None) -> PreTrainedModel:
    """Build a causal LM with newly initialised weights, or without values if torch's default device is meta.

    Args:
        config: a transformers config as a dict with its `model_type`.
        vocab_size: number of rows of the embedding and of the head (V); replaces the value in the config.
        train_length: maximum number of tokens of a row in training. At inference, rotary angles and queries of longer
            rows are rescaled as in Qwen-7B (`LongRotary`); None: rows of any length are computed as in training.

    Raises:
        UserError: the model cannot run on packed rows.
    """
    # The tokenizer and `generate` handle special tokens. torch does not train the embedding of a pad id, so the pad id
    # of another vocabulary would freeze the embedding of an ordinary token.
    hf_config = read_config(config, vocab_size=vocab_size, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    _require_packable(hf_config)
    # The config's dtype is ignored: training strategies and `inference.load` choose the precision.
    llm = AutoModelForCausalLM.from_config(hf_config, attn_implementation="packed", dtype=torch.get_default_dtype())
    decoder_layers(llm)  # refuses an encoder such as BERT, which transformers can build as a causal LM
    replace_layers(llm)
    if train_length is not None:
        decoder = llm.get_decoder()
        if hf_config.model_type != "qwen2":
            raise UserError(
                f"model.llm.train_length={train_length}: expected null, because {hf_config.model_type} is not qwen2"
            )
        decoder.rotary_emb = LongRotary(cast("nn.Module", decoder.rotary_emb), train_length)
    return llm


def read_config(config: Mapping[str, Any], **fields: Any) -> PreTrainedConfig:
    """Return the transformers config that `config`, an argument of `build_llm`, describes.

    Args:
        config: see `build_llm`.
        fields: replace fields of the config.

    Raises:
        UserError: `config` has no `model_type`.
    """
    if "model_type" not in config:
        raise UserError(
            f"model.llm.config has only {sorted(config)}: expected model_type (for example "
            "model.llm.config.model_type=qwen2), or weights.llm=DIR, from which the config follows"
        )
    return AutoConfig.for_model(**{**config, **fields})


def function_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the fields of a config that determine the function of a model with given weights.

    The base of the rotary embedding has its own entry, `rope_theta`, as in the configs of auris.
    """
    own_fields = type(config)().to_dict().keys() - PreTrainedConfig().to_dict().keys()
    values = {name: value for name, value in config.to_dict().items() if name in own_fields}
    rope = dict(values.get("rope_parameters") or {})
    if "rope_theta" in rope:
        values |= {"rope_theta": rope.pop("rope_theta"), "rope_parameters": rope}
    fields = {name: value for name, value in values.items() if not _NO_FUNCTION.fullmatch(name)}
    return {"model_type": config.model_type, **fields}


def _require_packable(config: PreTrainedConfig) -> None:
    """Raise UserError for models in which packed rows would interact, or whose logits are not just a matrix product.

    The number of key-value heads is checked too, which transformers would only notice in the first forward.
    """
    name = config.model_type
    n_heads = getattr(config, "num_attention_heads", 1)
    n_key_value_heads = getattr(config, "num_key_value_heads", None) or n_heads
    if n_heads % n_key_value_heads:
        raise UserError(
            f"model.llm.config.num_key_value_heads={n_key_value_heads}: expected a divisor of "
            f"model.llm.config.num_attention_heads={n_heads}"
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"{name} is not a causal language model of transformers: choose one with model.llm=...")
    model_class = cast("type[PreTrainedModel]", MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])  # never a tuple of classes
    if not model_class.is_backend_compatible():
        raise UserError(
            f"{name} does not use transformers' attention interface: choose an LLM that does (model.llm=...)"
        )
    unsupported_types = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if unsupported_types:
        raise UserError(
            f"{name} has layers of type {sorted(unsupported_types)}, which mix packed rows: choose an LLM that has "
            "only attention layers (model.llm=...)"
        )
    for key in _LOGIT_TRANSFORMS:
        if getattr(config, key, None) not in (None, 1.0):
            raise UserError(
                f"{name} changes its logits by {key}={getattr(config, key)}, which auris does not support: choose an "
                "LLM that does not (model.llm=...)"
            )


@torch.no_grad()
def reset_parameters(llm: PreTrainedModel) -> None:
    """Initialise all weights and buffers after `to_empty`, including buffers that no checkpoint contains.

    `to_empty` separates tied weights unless they are sharded, so they are tied again first. transformers marks modules
    that it has initialised and skips them later, so the marks are removed. A tied weight is drawn once for each of its
    modules and keeps the last values, whether it is sharded or not. All values are drawn from torch's global generator.
    """
    llm.tie_weights(recompute_mapping=False)
    compat.forget_initialisation(llm)
    llm.init_weights()


class LongRotary(nn.Module):
    """Qwen-7B's rotary embedding for rows longer than in training: dynamic NTK and log-n scaling, at inference only.

    As in the released code (QwenLM/Qwen-Audio modeling_qwen.py), the rotary base of a row grows in steps with the
    length of its prompt, and does not change while the response is decoded. The query at position p is scaled by
    log(p + 1) / log(train_length) if this factor is above 1.

    Args:
        rotary: the rotary embedding of the model.
        train_length: maximum number of tokens of a row in training (Qwen-Audio: 2048).
    """

    def __init__(self, rotary: nn.Module, train_length: int) -> None:
        super().__init__()
        self.rotary, self.train_length = rotary, train_length
        self._alpha: Tensor | None = None

    def set_angles(self, positions: Tensor, prompt_lengths: Tensor, row_lengths: Tensor) -> Tensor | None:
        """Set the angles of the next forward.

        Args:
            positions: (T,) position of each token in its row.
            prompt_lengths: (S,) number of tokens of each row's prompt.
            row_lengths: (S,) number of tokens of each row in the next forward.

        Returns:
            A factor for the query of each token (T,), or None if no row is longer than `train_length`.
        """
        self._alpha = None
        max_length = max(int(prompt_lengths.max()), int(positions.max()) + 1)
        if max_length <= self.train_length:
            return None
        steps = torch.ceil(torch.log2(prompt_lengths.double() / self.train_length) + 1)
        alpha = (2**steps - 1).clamp(min=1).float()
        self._alpha = torch.repeat_interleave(alpha, row_lengths).to(positions.device)
        return (torch.log(positions + 1) / math.log(self.train_length)).clamp(min=1)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines (1, T, Dh) of the angles that `set_angles` has set, or else of the usual angles."""
        if self._alpha is None:
            return self.rotary(x, position_ids)
        alpha, self._alpha = self._alpha, None
        # The rates are base ** (-2 i / d); the factor below turns base into base * alpha ** (d / (d - 2)).
        rates = cast("Tensor", self.rotary.inv_freq).float()
        exponents = torch.arange(len(rates), device=x.device) / (len(rates) - 1)
        angles = position_ids[0, :, None].float() * rates * alpha[:, None] ** -exponents
        angles = torch.cat([angles, angles], dim=-1)[None]
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def decoder_layers(llm: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder layers, first to last.

    Raises:
        UserError: the model has no such list, because it is an encoder such as BERT.
    """
    layers = next((child for child in llm.get_decoder().children() if isinstance(child, nn.ModuleList)), None)
    if layers is None:
        raise UserError(
            f"{llm.config.model_type} has no decoder layers: choose a causal language model (weights.llm=DIR)"
        )
    return layers


def tokenwise_parts_of_last_layer(llm: PreTrainedModel) -> list[nn.Module]:
    """Return the parts of the last layer that may skip tokens whose hidden states are not needed."""
    parts = dict(decoder_layers(llm)[-1].named_modules())
    return [parts[name] for name in _TOKENWISE if name in parts]


@contextmanager
def _restrict_to_tokens(indices: Tensor, n_tokens: int, modules: Sequence[nn.Module]) -> Generator[None]:
    """Let modules compute their outputs (1, T, ...) only for the tokens `indices` (R,). Other tokens get zeros."""

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return args[0].index_select(1, indices), *args[1:]

    def scatter(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out.new_zeros(1, n_tokens, out.shape[-1]).index_copy(1, indices, out)

    # The selection runs before other hooks, so hooks that shard a module only see the selected tokens.
    handles = [module.register_forward_pre_hook(select, prepend=True) for module in modules]
    handles += [module.register_forward_hook(scatter) for module in modules]
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
        embeds: (T, H) token embeddings of all rows. With a cache, these are the tokens of the prompts after
            `begin_prompts`, or one token of each row after `extend`.
        positions: (T,) position of each token in its row.
        cu_seqlens: (S + 1,) cumulative lengths of the rows.
        cache: keys and values of earlier tokens.
        cu_k: (S + 1,) cumulative numbers of keys of the rows; given together with `key_index`.
        prompt_lengths: (S,) number of tokens of each row's prompt, on the host; None in training. An LLM with a
            `train_length` needs them at inference.
        key_index: (Tk,) positions in `embeds` of each row's keys, so that rows can share a prompt. It cannot be
            combined with a cache.
        indices: (R,) positions of the tokens whose hidden states are needed, without duplicates. The last layer skips
            work that only other tokens need.
    """
    assert cache is None or key_index is None, "a cache stores separate keys for each row"
    extra: dict[str, Tensor] = {} if key_index is None else {"key_index": key_index}
    rotary = getattr(llm.get_decoder(), "rotary_emb", None)
    if isinstance(rotary, LongRotary) and prompt_lengths is not None:
        row_lengths = torch.tensor(attention.sequence_lengths(cu_seqlens))
        scale = rotary.set_angles(positions, prompt_lengths, row_lengths)
        if scale is not None:
            extra["query_scale"] = scale
    cu_k = cu_seqlens if cu_k is None else cu_k
    max_length_k = max(attention.sequence_lengths(cu_k))
    if cache is not None and cache.mask is not None:
        extra["slot_mask"], max_length_k = cache.mask, cache.mask.shape[1]
    # A compiled last layer computes all tokens. It shares its compilation with the other layers, and would need another
    # one to skip tokens.
    is_partial = indices is not None and not compat.is_compiled(decoder_layers(llm)[-1])
    with _restrict_to_tokens(indices, len(embeds), tokenwise_parts_of_last_layer(llm)) if is_partial else nullcontext():
        out = llm.get_decoder()(
            inputs_embeds=torch.stack([embeds]),  # not a view, for which the first layer would be compiled separately
            position_ids=positions[None],
            past_key_values=cache,
            use_cache=cache is not None,
            cu_seq_lens_q=cu_seqlens,
            cu_seq_lens_k=cu_k,
            max_length_q=max(attention.sequence_lengths(cu_seqlens)),
            max_length_k=max_length_k,
            **extra,
        )
    return out.last_hidden_state[0] if indices is None else out.last_hidden_state[0, indices]


class SlotCache(Cache):
    """Key-value cache for rows of different lengths, with one slot per row.

    All slots have the same length, so the keys of all rows are read in one call. The active rows occupy the first
    slots, so their keys are read without a copy.

    Before each forward, call `begin_prompts` (for the prompts of new rows) or `extend` (for one token of every row).

    Args:
        max_new_tokens: maximum number of tokens of a row after its prompt.
        device: device of the keys and values.
    """

    def __init__(self, max_new_tokens: int, device: torch.device) -> None:
        super().__init__(layers=[])
        self.max_new_tokens, self.device = max_new_tokens, device
        self.lengths = torch.zeros(0, dtype=torch.long)  # (R,) number of tokens of each row, on the host
        self.slot_length = 0  # maximum number of tokens in a slot
        # (R, L): 0 where one of the first L places of a slot is used, otherwise -inf; None in a forward of prompts.
        self.mask: Tensor | None = None
        self.keys: dict[int, Tensor] = {}  # by layer: (number of slots, K, slot_length, Dh)
        self.values: dict[int, Tensor] = {}

    def begin_prompts(self, prompt_lengths: Tensor) -> None:
        """Prepare for a forward of new rows whose prompts have these lengths (S,), on the host."""
        first_slot = len(self.lengths)
        self.lengths = torch.cat([self.lengths, prompt_lengths])
        self.slot_length, self.mask = max(self.slot_length, int(prompt_lengths.max()) + self.max_new_tokens), None
        slots = torch.repeat_interleave(torch.arange(first_slot, len(self.lengths)), prompt_lengths)
        places = attention.concatenate_ranges(torch.zeros_like(prompt_lengths), prompt_lengths)
        self._index = slots.to(self.device), places.to(self.device)

    def extend(self) -> None:
        """Prepare for a forward of one token of each row."""
        self._index = torch.arange(len(self.lengths), device=self.device), self.lengths.to(self.device)
        self.lengths = self.lengths + 1
        is_unused = torch.arange(int(self.lengths.max())) >= self.lengths[:, None]
        self.mask = torch.zeros(is_unused.shape).masked_fill(is_unused, -torch.inf).to(self.device)

    def keep(self, slots: Sequence[int]) -> list[int]:
        """Keep the rows in these slots and drop all others. The last rows move to slots that become free.

        Returns:
            For each slot, the former slot of its row.
        """
        kept, n = set(slots), len(slots)
        if n == len(self.lengths):
            return list(slots)
        moved = torch.tensor([slot for slot in slots if slot >= n], dtype=torch.long)
        free = torch.tensor([slot for slot in range(n) if slot not in kept], dtype=torch.long)
        source, target = moved.to(self.device), free.to(self.device)
        for store in (self.keys, self.values):
            for values in store.values():
                values[target] = values[source]
        order = torch.arange(n).index_copy(0, free, moved)
        self.lengths = self.lengths[order]
        return order.tolist()

    def update(self, key: Tensor, value: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values (1, K, T, Dh).

        Returns:
            The keys and values to attend to: in a forward of prompts the new ones, otherwise the first L places of the
            slots (R, K, L, Dh), where L is the length of the longest row.
        """
        return self._update(self.keys, key, layer), self._update(self.values, value, layer)

    def _update(self, store: dict[int, Tensor], new: Tensor, layer: int) -> Tensor:
        n = len(self.lengths)
        old = store.get(layer)
        if old is None or old.shape[0] < n or old.shape[2] < self.slot_length:
            # Zeros, because unused entries are multiplied by attention weights of zero and must not be NaN.
            n_slots = n if old is None else max(n, old.shape[0])
            store[layer] = new.new_zeros(n_slots, new.shape[1], self.slot_length, new.shape[3])
            if old is not None:
                store[layer][: old.shape[0], :, : old.shape[2]] = old
        slots, places = self._index
        store[layer][slots, :, places] = rearrange(new, "1 k t d -> t k d")
        return new if self.mask is None else store[layer][:n, :, : self.mask.shape[1]]
