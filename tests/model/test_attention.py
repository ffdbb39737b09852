"""`attention.attend_packed` against a plain softmax over each sequence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from auris.model import attention

pytestmark = pytest.mark.usefixtures("float64")


def reference(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """Attend within one sequence: q (n, Hq, Dh), k and v (m, Hk, Dh). The last query sees the last key."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    if causal:
        n, m = len(q), len(k)
        visible = torch.arange(m)[None, :] <= torch.arange(n)[:, None] + (m - n)
        scores = scores.masked_fill(~visible, -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


def cu(lengths: list[int], device: str = "cpu") -> Tensor:
    return attention.cumulative_lengths(torch.tensor(lengths)).to(device)


def tensors(n_q: list[int], n_k: list[int], heads: tuple[int, int]) -> list[Tensor]:
    torch.manual_seed(sum(n_q))
    sizes = ((sum(n_q), heads[0]), (sum(n_k), heads[1]), (sum(n_k), heads[1]))
    return [torch.randn(*size, 8, requires_grad=True) for size in sizes]


CASES = {  # the lengths of the sequences: of their queries, and of their keys
    "square": ([5, 1, 9], [5, 1, 9]),
    "decoding": ([1, 1, 1], [7, 1, 4]),
    "chunks": ([3, 2, 1, 2, 4], [8, 5, 6, 2, 5]),
    "one sequence": ([6], [6]),
}


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=str)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("case", CASES)
def test_packed_attention_equals_attention_over_each_sequence(case: str, causal: bool, heads: tuple[int, int]) -> None:
    n_q, n_k = CASES[case]
    q, k, v = tensors(n_q, n_k, heads)
    out = attention.attend_packed(q, k, v, cu(n_q), cu(n_k), causal=causal, scale=0.3)
    parts = zip(q.split(n_q), k.split(n_k), v.split(n_k), strict=True)
    expected = torch.cat([reference(*part, causal, 0.3) for part in parts])
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    weights = torch.randn_like(out)
    grads = torch.autograd.grad((out * weights).sum(), (q, k, v))
    for grad, expected_grad in zip(grads, torch.autograd.grad((expected * weights).sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(grad, expected_grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=str)
def test_single_query_attention_ignores_unused_places_of_a_cache_slot(heads: tuple[int, int]) -> None:
    lengths = [7, 1, 4]
    q, k, v = tensors([1, 1, 1], lengths, heads)
    expected = attention.attend_packed(q, k, v, cu([1, 1, 1]), cu(lengths), causal=True, scale=0.3)
    is_unused = torch.arange(9) >= torch.tensor(lengths)[:, None]
    slots = []
    for cached in (k, v):
        slot = torch.full((3, 9, heads[1], 8), 1e4)  # values in unused places must not matter
        slot[~is_unused] = cached
        slots.append(slot.transpose(1, 2))
    mask = torch.zeros(3, 9).masked_fill(is_unused, -torch.inf)
    torch.testing.assert_close(
        attention.attend_single_query(q, *slots, mask, scale=0.3), expected, atol=1e-6, rtol=1e-5
    )


def test_the_default_scale_is_one_over_the_root_of_the_head_width() -> None:
    q, k, v = tensors([4, 3], [4, 3], (2, 2))
    explicit = attention.attend_packed(q, k, v, cu([4, 3]), cu([4, 3]), causal=True, scale=8**-0.5)
    torch.testing.assert_close(attention.attend_packed(q, k, v, cu([4, 3]), cu([4, 3]), causal=True), explicit)


def test_lengths_that_do_not_cover_the_tokens_are_refused() -> None:
    q, k, v = tensors([4, 3], [4, 3], (2, 2))
    with pytest.raises(AssertionError):
        attention.attend_packed(q, k, v, cu([4, 2]), cu([4, 3]), causal=True)


def test_autocast_sets_the_dtype_of_the_output() -> None:
    q, k, v = tensors([4, 3], [4, 3], (2, 2))
    exact = attention.attend_packed(q, k, v, cu([4, 3]), cu([4, 3]), causal=True)
    with torch.autocast(
        "cpu", dtype=torch.bfloat16
    ):  # only v is bfloat16, as in a net, where rotation makes q and k float32
        half = attention.attend_packed(q, k, v.bfloat16(), cu([4, 3]), cu([4, 3]), causal=True)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.to(exact.dtype), exact, atol=2e-2, rtol=2e-2)


def test_concatenate_ranges_joins_one_range_per_start() -> None:
    ranges = attention.concatenate_ranges(torch.tensor([3, 10, 0, 7]), torch.tensor([2, 0, 3, 1]))
    assert ranges.tolist() == [3, 4, 0, 1, 2, 7]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the flash kernel")
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("case", CASES)
def test_the_flash_kernel_equals_the_loop_over_sequences(case: str, causal: bool) -> None:
    n_q, n_k = CASES[case]
    q, k, v = (x.detach().cuda() for x in tensors(n_q, n_k, (4, 2)))
    loop = attention.attend_packed(q, k, v, cu(n_q, "cuda"), cu(n_k, "cuda"), causal=causal)
    half = [x.bfloat16().requires_grad_() for x in (q, k, v)]
    flash = attention.attend_packed(*half, cu(n_q, "cuda"), cu(n_k, "cuda"), causal=causal)
    torch.testing.assert_close(flash.float(), loop, atol=2e-2, rtol=2e-2)
    flash.sum().backward()
    assert all(x.grad.isfinite().all() for x in half)
