"""Norms and MLPs of decoder layers: they compute what transformers computes, and keep fewer tensors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from auris.model.decoder_layers import GatedMLP, RMSNorm, replace_layers

SIZES = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "head_dim": 6,
}


def build(family: str, **settings: object) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES, **settings))


def loss_and_gradients(model: PreTrainedModel) -> list[Tensor]:
    ids = torch.arange(14).view(2, 7)
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_loss_and_gradients_equal_those_of_transformers(family: str):
    model = build(family, hidden_act="silu")
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter)  # the initial weights are 1 and would hide a missing factor
    replaced = copy.deepcopy(model)
    replace_layers(replaced)
    assert model.state_dict().keys() == replaced.state_dict().keys()
    kinds = {type(module) for module in replaced.modules()}
    assert kinds >= {RMSNorm, GatedMLP} and not any(
        kind.__name__.endswith(("RMSNorm", "MLP")) and kind not in (RMSNorm, GatedMLP) for kind in kinds
    )
    # Sums of 24 to 40 float32 products through two layers.
    for actual, expected in zip(loss_and_gradients(replaced), loss_and_gradients(model), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_norms_of_another_function_and_mlps_with_another_activation_stay():
    gemma = build("gemma")
    replace_layers(gemma)
    assert not any(isinstance(module, RMSNorm | GatedMLP) for module in gemma.modules())
    llama = build("llama", hidden_act="gelu")
    replace_layers(llama)
    assert not any(isinstance(module, GatedMLP) for module in llama.modules())


def count_kept_bytes(model: PreTrainedModel) -> int:
    """Return the number of bytes that a forward keeps for the backward."""
    n_bytes_by_address: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        n_bytes_by_address[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        model(input_ids=torch.arange(40).view(2, 20))
    return sum(n_bytes_by_address.values())


def test_less_is_kept_for_the_backward():
    model = build("llama")
    n_bytes = count_kept_bytes(model)
    replace_layers(model)
    assert count_kept_bytes(model) < 0.85 * n_bytes
