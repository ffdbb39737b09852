"""Attention over packed sequences of different lengths, which are concatenated: no padding and no dense mask.

The encoder and the LLM compute their attention here. The encoder calls `attend_packed` directly. An LLM of transformers
calls `_transformers_attention`, which is registered under the name "packed", in training, prefill and cached decoding.

Shapes: T tokens of all sequences (Tq queries, Tk keys), S sequences, H heads (Hq of the queries, Hk of the keys),
Dh channels of a head.
`cu` (S + 1,) int32 contains cumulative lengths: sequence s occupies cu[s]:cu[s + 1].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.varlen import varlen_attn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface

from auris.errors import UserError

# The lengths of sequences as Python integers, keyed by the identity of the tensor of cumulative lengths. All layers
# receive the same tensor in a forward, so the device synchronises once per forward instead of once per layer.
_LENGTHS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def sequence_lengths(cu: Tensor) -> list[int]:
    """Return the lengths of the sequences that `cu` delimits. `cu` must not be changed in place afterwards."""
    if cu not in _LENGTHS:
        _LENGTHS[cu] = cu.diff().tolist()
    return _LENGTHS[cu]


def cumulative_lengths(lengths: Tensor) -> Tensor:
    """Return the cumulative lengths (S + 1,) int32 of sequences with `lengths` (S,)."""
    return F.pad(lengths.cumsum(0), (1, 0)).int()


def concatenate_ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """Return the numbers start, ..., start + length - 1 of every sequence, concatenated: (sum of lengths,) int64."""
    shift = starts - (lengths.cumsum(0) - lengths)
    total = int(lengths.sum())
    return torch.repeat_interleave(shift, lengths, output_size=total) + torch.arange(total, device=lengths.device)


def attend_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    *,
    causal: bool,
    scale: float | None = None,
    max_lengths: tuple[int, int] | None = None,
) -> Tensor:
    """Attend within each sequence: q (Tq, Hq, Dh), k and v (Tk, Hk, Dh) -> (Tq, Hq, Dh).

    Args:
        q: queries. Hq may be a multiple of Hk (grouped queries).
        k: keys.
        v: values.
        cu_q: cumulative numbers of queries.
        cu_k: cumulative numbers of keys.
        causal: mask later keys. The last query of a sequence is aligned with its last key (bottom right), as responses
            to a shared prompt require.
        scale: factor on the scores; None: Dh ** -0.5.
        max_lengths: maximum numbers of queries and of keys per sequence. A compiled block must pass them, because it
            cannot read `cu_q` and `cu_k`.
    """
    assert q.ndim == k.ndim == v.ndim == 3 and q.shape[1] % k.shape[1] == 0, (q.shape, k.shape, v.shape)
    if torch.is_autocast_enabled(q.device.type):  # autocast casts for torch's own attention, but not for this kernel
        q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
    if has_flash_kernel(q):
        window = (-1, 0) if causal else (-1, -1)
        max_q, max_k = max_lengths or (max(sequence_lengths(cu_q)), max(sequence_lengths(cu_k)))
        out = varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, scale=scale, window_size=window)
        assert isinstance(out, Tensor)  # it is a tuple only if more outputs are requested
        return out
    return _attend_one_by_one(q, k, v, cu_q, cu_k, causal, scale)


def attend_single_query(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
    """Attend from the newest token of each of R rows to this row's cache slot, in one call for all rows.

    q (R, Hq, Dh), k and v (R, Hk, L, Dh) with L entries per slot, mask (R, L) -> (R, Hq, Dh). The mask is 0 where a
    slot contains a token, otherwise -inf.
    """
    if torch.is_autocast_enabled(q.device.type):
        q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
    q = rearrange(q, "r (k g) d -> r k g d", k=k.shape[1])  # g query heads share a key head, as if they were g tokens
    out = F.scaled_dot_product_attention(q, k, v, mask[:, None, None].to(q.dtype), scale=scale)
    return rearrange(out, "r k g d -> r (k g) d")


def has_flash_kernel(q: Tensor) -> bool:
    """Return whether the flash kernel (one call for all sequences) supports this device and precision."""
    return q.is_cuda and q.dtype in (torch.bfloat16, torch.float16)


@torch.compiler.disable  # a compiled block is split in two here, because the number of calls depends on the data
def _attend_one_by_one(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, causal: bool, scale: float | None
) -> Tensor:
    """Compute `attend_packed` with one call of torch's attention per sequence.

    On a CPU core, padding sequences of similar length into common calls was 1.3 times slower than this loop: the copies
    cost more than the calls that they save.
    """
    n_q, n_k = sequence_lengths(cu_q), sequence_lengths(cu_k)
    assert len(n_q) == len(n_k) and sum(n_q) == len(q) and sum(n_k) == len(k) == len(v), (n_q, n_k, q.shape, k.shape)
    # The backward of `split` is one concatenation. The backward of slices would be one pack-sized tensor per sequence.
    parts = zip(q.split(n_q), k.split(n_k), v.split(n_k), strict=True)
    return torch.cat([_attend(*part, causal=causal, scale=scale) for part in parts])


def _attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float | None) -> Tensor:
    """Attend within one sequence: q (Tq, Hq, Dh), k and v (Tk, Hk, Dh) -> (Tq, Hq, Dh)."""
    n_q, n_k = len(q), len(k)
    # torch's is_causal aligns queries and keys at the top left, which is correct only if their numbers are equal. A
    # single query is the last one and attends to all keys, so it needs no mask.
    bias = causal_lower_right(n_q, n_k) if causal and 1 < n_q != n_k else None
    is_causal = causal and n_q == n_k
    # Without a leading batch axis, the CPU would not choose its flash kernel.
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, bias, is_causal=is_causal, scale=scale, enable_gqa=grouped)
    return out[0].transpose(0, 1)


def _transformers_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    cu_seq_lens_k: Tensor,
    max_length_q: int,
    max_length_k: int,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    query_scale: Tensor | None = None,
    key_index: Tensor | None = None,
    slot_mask: Tensor | None = None,
    **options: object,
) -> tuple[Tensor, None]:
    """Attend as transformers' attention interface asks: (1, H, T, Dh) -> (1, T, H, Dh)."""
    assert attention_mask is None and query.shape[0] == 1, (attention_mask, query.shape)
    if dropout:
        raise UserError(
            f"the LLM has attention_dropout={dropout}, which packed attention does not support: set attention_dropout=0"
        )
    if sliding_window is not None and sliding_window < max_length_k:
        raise UserError(
            f"the LLM's sliding_window is {sliding_window}, but a row has {max_length_k} tokens: packed attention does "
            "not support windows. Shorten the rows, or choose an LLM with full attention"
        )
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise UserError(f"the LLM's {type(module).__name__} uses {name}, which packed attention does not support")
    q = rearrange(query, "1 h t d -> t h d")
    if query_scale is not None:  # (T,): log-n scaling, see llm.LongRotary
        q = q * query_scale[:, None, None].to(q.dtype)
    if slot_mask is not None:  # in cached decoding, the keys are in slots (see llm.SlotCache)
        return attend_single_query(q, key, value, slot_mask, scale=scaling)[None], None
    k, v = (rearrange(x, "1 h t d -> t h d") for x in (key, value))
    if key_index is not None:  # (Tk,): position of each key in the pack; responses to one prompt share its keys
        # An embedding lookup, because its backward adds whole rows. index_select adds numbers one by one.
        k, v = (F.embedding(key_index, x.flatten(1)).unflatten(1, x.shape[1:]) for x in (k, v))
    causal = bool(getattr(module, "is_causal", True))
    max_lengths = (max_length_q, max_length_k)
    out = attend_packed(q, k, v, cu_seq_lens_q, cu_seq_lens_k, causal=causal, scale=scaling, max_lengths=max_lengths)
    return out[None], None


# The name is not registered in AttentionMaskInterface. For such a name, transformers does not build a mask (for which
# it would compare position ids to find out whether the batch is packed) and does not ask the cache for its sizes.
AttentionInterface.register("packed", _transformers_attention)
