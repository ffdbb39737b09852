"""RMSNorm and gated MLP of a language model, which keep fewer tensors for the backward than those of transformers.

They have the same parameters and compute the same function. transformers writes both as single operations, each of
which keeps its inputs. A compiler decides itself what to keep, so a compiled block consists of single operations here
too. (With aot_eager of torch 2.11 the gradients of a compiled `autograd.Function` were zero.)
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

# Families of transformers whose norms and MLPs compute the functions below. (Gemma's norms add one to their weights.)
_FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")


def replace_layers(llm: PreTrainedModel) -> None:
    """Replace the RMSNorms and the MLPs of an LLM by those of this module; leave LLMs of other families as they are."""
    has_silu = getattr(llm.config, "hidden_act", None) == "silu"
    for parent in list(llm.modules()):
        for name, module in list(parent.named_children()):
            kind = type(module).__name__
            if kind in [f"{family}RMSNorm" for family in _FAMILIES]:
                setattr(parent, name, RMSNorm(module))
            elif has_silu and kind in [f"{family}MLP" for family in _FAMILIES]:
                setattr(parent, name, GatedMLP(module))


class RMSNorm(nn.Module):
    """RMSNorm (Zhang and Sennrich 2019), computed in float32.

    Args:
        norm: The module of transformers whose weight and epsilon it takes.
    """

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.weight = cast("nn.Parameter", norm.weight)
        self.variance_epsilon = cast("float", norm.variance_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (..., H) for the input (..., H)."""
        if torch.compiler.is_compiling():
            return _normalise(x, self.variance_epsilon)[0] * self.weight
        return _Normalised.apply(x, self.variance_epsilon) * self.weight


def _normalise(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return x / rms(x) and 1 / rms(x), computed in float32."""
    inverse_rms = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + epsilon)
    return (x * inverse_rms).to(x.dtype), inverse_rms


class _Normalised(torch.autograd.Function):
    """x / rms(x), which keeps its output and 1 / rms(x). The multiplication by the weight keeps the output as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> Tensor:
        normalised, inverse_rms = _normalise(x, epsilon)
        ctx.save_for_backward(normalised, inverse_rms)
        return normalised

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), (normalised, inverse_rms) = gradients, ctx.saved_tensors
        projection = (gradient.float() * normalised).mean(-1, keepdim=True)
        return ((gradient - normalised * projection) * inverse_rms).to(gradient.dtype), None


class GatedMLP(nn.Module):
    """MLP of a decoder layer: down(silu(gate(x)) * up(x)).

    Args:
        mlp: The module of transformers whose linear layers it takes.
    """

    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.gate_proj = cast("nn.Module", mlp.gate_proj)
        self.up_proj = cast("nn.Module", mlp.up_proj)
        self.down_proj = cast("nn.Module", mlp.down_proj)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (..., H) for the input (..., H)."""
        multiply = _gated_product if torch.compiler.is_compiling() else _GatedProduct.apply
        return self.down_proj(multiply(self.gate_proj(x), self.up_proj(x)))


def _gated_product(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


class _GatedProduct(torch.autograd.Function):
    """silu(gate) * up, which keeps its two inputs and computes silu(gate) again in the backward."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _gated_product(gate, up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,), (gate, up) = gradients, ctx.saved_tensors
        sigmoid = gate.sigmoid()
        silu = gate * sigmoid
        return gradient * up * (sigmoid + silu * (1 - sigmoid)), gradient * silu
