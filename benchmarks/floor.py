"""The floor of a training step: the time of its matrix products alone, which no implementation can beat.

The products are recorded while auris takes a step: those of linear layers, convolutions and attention, and of their
gradients. They are then computed by `torch.matmul` on tensors of the same shapes, without any code of auris. Everything
else in a step (activations, norms, softmax, losses, copies) is above the floor.

Shapes: B independent products of (M, K) and (K, N).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from auris.model import attention
from auris.model.audio_lm import AudioLM


@dataclass(frozen=True)
class Product:
    """B products of matrices (M, K) and (K, N)."""

    b: int
    m: int
    k: int
    n: int


def measure(net: AudioLM, compute_loss: Callable[[], Tensor], dtype: torch.dtype) -> Callable[[], None]:
    """Return a function that computes all products of a training step once.

    Args:
        net: The model, with its frozen parts.
        compute_loss: Forward of the step.
        dtype: Type in which the products are computed.
    """
    counts = record_products(net, compute_loss)
    operands = {
        product: (
            torch.randn(product.b, product.m, product.k).to(dtype),
            torch.randn(product.b, product.k, product.n).to(dtype),
        )
        for product in counts
    }

    def run() -> None:
        for product, number in counts.items():
            for _ in range(number):
                torch.matmul(*operands[product])

    return run


def record_products(net: AudioLM, compute_loss: Callable[[], Tensor]) -> Counter[Product]:
    """Return the products of a training step, and how often each is computed."""
    counts: Counter[Product] = Counter()
    layers = [layer for layer in net.modules() if isinstance(layer, (nn.Linear, nn.Conv1d))]
    handles = [layer.register_forward_hook(partial(_record_layer, counts)) for layer in layers]
    attend = attention._attend

    def record_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float | None) -> Tensor:
        (n_q, heads, width), n_k = q.shape, len(k)
        # A causal kernel computes about half of the products of as many queries as keys.
        n_keys = n_k - (n_q - 1) // 2 if causal else n_k
        number = 6 if q.requires_grad or k.requires_grad else 2  # forward: QK^T, PV; backward: dV, dP, dQ, dK
        counts[Product(heads, n_q, width, n_keys)] += number // 2
        counts[Product(heads, n_q, n_keys, width)] += number // 2
        return attend(q, k, v, causal=causal, scale=scale)

    attention._attend = record_attention
    try:
        compute_loss()
    finally:
        attention._attend = attend
        for handle in handles:
            handle.remove()
    return counts


def _record_layer(
    counts: Counter[Product], layer: nn.Linear | nn.Conv1d, arguments: tuple[Tensor, ...], output: Tensor
) -> None:
    """Add the products of a layer: forward, gradient of the input, gradient of the weight."""
    n_outputs, n_inputs = layer.weight.flatten(1).shape  # the inputs of a convolution are those of its whole kernel
    rows = output.numel() // n_outputs
    counts[Product(1, rows, n_inputs, n_outputs)] += 1
    if output.requires_grad and arguments[0].requires_grad:
        counts[Product(1, rows, n_outputs, n_inputs)] += 1
    if output.requires_grad and layer.weight.requires_grad:
        counts[Product(1, n_outputs, rows, n_inputs)] += 1
