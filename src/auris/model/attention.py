"""Attention over packed sequences: many sequences of different lengths side by side, no padding, no dense mask.

The one attention call of the project. The encoder calls it directly; transformers' LLMs reach it under the name
"packed", for training, prefill and cached decoding alike.

Shapes: T tokens of all sequences together (Tq queries, Tk keys), S sequences, H heads, Dh channels of a head.
`cu` (S + 1,) int32 are cumulative lengths: sequence s occupies cu[s]:cu[s + 1].
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

# Lengths as python integers, by identity of the tensor of cumulative lengths: all layers of a forward get the same
# tensor, so a device synchronises once per forward and not once per layer.
_LENGTHS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def lengths(cu: Tensor) -> list[int]:
    """The lengths of the sequences that `cu` separates. `cu` must not be changed in place afterwards."""
    if cu not in _LENGTHS:
        _LENGTHS[cu] = cu.diff().tolist()
    return _LENGTHS[cu]


def cumulate(lengths: Tensor) -> Tensor:
    """Lengths (S,) to cumulative lengths (S + 1,) int32."""
    return F.pad(lengths.cumsum(0), (1, 0)).int()


def ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """The integers start, ..., start + length - 1 of every sequence, side by side: (sum of lengths,) int64."""
    shift = starts - (lengths.cumsum(0) - lengths)
    total = int(lengths.sum())
    return torch.repeat_interleave(shift, lengths, output_size=total) + torch.arange(total, device=lengths.device)


def packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    *,
    causal: bool,
    scale: float | None = None,
    longest: tuple[int, int] | None = None,
) -> Tensor:
    """Attend within each sequence: q (Tq, Hq, Dh), k and v (Tk, Hk, Dh) -> (Tq, Hq, Dh).

    With `causal`, a sequence's last query sees its last key (aligned bottom right), which is what answers to a shared
    prompt need. Hq may be a multiple of Hk (grouped queries). `scale` defaults to Dh ** -0.5. `longest`: queries and
    keys of the longest sequences, from who knows them: a block that is compiled cannot look into `cu`.
    """
    assert q.ndim == k.ndim == v.ndim == 3 and q.shape[1] % k.shape[1] == 0, (q.shape, k.shape, v.shape)
    if torch.is_autocast_enabled(q.device.type):  # what it does for torch's own attention, and not for the flash kernel
        q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
    if has_kernel(q):
        window = (-1, 0) if causal else (-1, -1)
        n_q, n_k = longest or (max(lengths(cu_q)), max(lengths(cu_k)))
        return varlen_attn(q, k, v, cu_q, cu_k, n_q, n_k, scale=scale, window_size=window)
    return _one_by_one(q, k, v, cu_q, cu_k, causal, scale)


def single_query(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
    """Attend from the newest token of each of R rows to what its slot holds, all rows in one call.

    q (R, Hq, Dh), k and v (R, Hk, L, Dh), mask (R, L): 0 where a slot holds a token, else -inf -> (R, Hq, Dh).
    """
    if torch.is_autocast_enabled(q.device.type):
        q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
    q = rearrange(q, "r (k g) d -> r k g d", k=k.shape[1])  # queries of a group stand like tokens: they share keys
    out = F.scaled_dot_product_attention(q, k, v, mask[:, None, None].to(q.dtype), scale=scale)
    return rearrange(out, "r k g d -> r (k g) d")


def has_kernel(q: Tensor) -> bool:
    """Whether the flash kernel, all sequences in one call, computes on this device in this precision."""
    return q.is_cuda and q.dtype in (torch.bfloat16, torch.float16)


@torch.compiler.disable  # where a compiled block is cut in two: it calls as many kernels as there are sequences
def _one_by_one(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, causal: bool, scale: float | None
) -> Tensor:
    """`packed`, one call of torch's attention for each sequence.

    A plain loop: on a CPU core, padding sequences of similar length into common calls measured 1.3 times slower (the
    copies in and out cost more than the calls that they save).
    """
    n_q, n_k = lengths(cu_q), lengths(cu_k)
    assert len(n_q) == len(n_k) and sum(n_q) == len(q) and sum(n_k) == len(k) == len(v), (n_q, n_k, q.shape, k.shape)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) if x.shape[1] < q.shape[1] else x for x in (k, v))
    # split, because its backward is one concatenation where that of slices would be one pack-sized tensor per sequence
    parts = zip(q.split(n_q), k.split(n_k), v.split(n_k), strict=True)
    return torch.cat([_attend(*part, causal=causal, scale=scale) for part in parts])


def _attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float | None) -> Tensor:
    """One sequence: q (Tq, H, Dh), k and v (Tk, H, Dh) -> (Tq, H, Dh)."""
    n_q, n_k = len(q), len(k)
    # torch's is_causal aligns top left, so it serves the square case only; a single query, the last one, sees all keys.
    bias = causal_lower_right(n_q, n_k) if causal and 1 < n_q != n_k else None
    square = causal and n_q == n_k
    # The leading batch axis is what lets the CPU choose its flash kernel.
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, bias, is_causal=square, scale=scale)
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
    **others: object,
) -> tuple[Tensor, None]:
    """Attend as transformers' attention interface asks: (1, H, T, Dh) -> (1, T, H, Dh)."""
    assert attention_mask is None and query.shape[0] == 1, (attention_mask, query.shape)
    if dropout:
        raise UserError(f"the LLM's attention_dropout is {dropout}: packed attention has none. Set attention_dropout=0")
    if sliding_window is not None and sliding_window < max_length_k:
        raise UserError(
            f"the LLM's sliding_window is {sliding_window}, a row has {max_length_k} tokens: packed "
            "attention has no window. Shorten the rows, or choose an LLM with full attention"
        )
    for name in ("softcap", "s_aux", "position_bias"):
        if others.get(name) is not None:
            raise UserError(
                f"the LLM {type(module).__name__} attends with {name}, which packed attention does not have"
            )
    q = rearrange(query, "1 h t d -> t h d")
    if query_scale is not None:  # (T,): log-n, see llm.LongRotary
        q = q * query_scale[:, None, None].to(q.dtype)
    if slot_mask is not None:  # keys come from the slots of a cache
        return single_query(q, key, value, slot_mask, scale=scaling)[None], None
    k, v = (rearrange(x, "1 h t d -> t h d") for x in (key, value))
    if key_index is not None:  # (Tk,): where the keys stand; those of a prompt serve all answers to it
        # a table's lookup: its gradient adds whole rows up, where that of index_select goes by single numbers
        k, v = (F.embedding(key_index, x.flatten(1)).unflatten(1, x.shape[1:]) for x in (k, v))
    causal = getattr(module, "is_causal", True)
    longest = (max_length_q, max_length_k)
    return packed(q, k, v, cu_seq_lens_q, cu_seq_lens_k, causal=causal, scale=scaling, longest=longest)[None], None


# No entry in AttentionMaskInterface: for such a name transformers builds no mask at all (it would otherwise compare
# position ids to find out whether the row is packed) and asks the cache for no sizes.
AttentionInterface.register("packed", _transformers_attention)
