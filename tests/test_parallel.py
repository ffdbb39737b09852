"""Memory and initial weights for a net that was built without (weights from files: test_weights)."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from auris.model import llm, pooling, projector
from auris.model.audio_lm import AudioLM
from auris.model.encoder import Encoder
from auris.objectives.ctc import CTC
from auris.parallel import materialise
from packs import VOCAB, Clip, pack, text

QWEN2 = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
POOLINGS = {
    "mean": partial(pooling.Mean, k=2),
    "conv": partial(pooling.Conv, k=2),
    "attention": partial(pooling.Attention, k=2, n_heads=2),
    "stack": partial(pooling.Stack, k=2),
}


def build(pool: str = "mean", *, tied: bool = False, layers: int = 2) -> AudioLM:
    return AudioLM(
        encoder=Encoder(n_mels=16, width=24, n_layers=layers, n_heads=2, ffn=40),
        pooling=POOLINGS[pool],
        projector=projector.MLP,
        llm=partial(llm.build_llm, {**QWEN2, "tie_word_embeddings": tied}),
        vocab_size=VOCAB,
    )


def build_meta(pool: str = "mean", **changed: bool) -> AudioLM:
    with torch.device("meta"):
        return build(pool, **changed)


def tensors(net: nn.Module) -> dict[str, torch.Tensor]:
    return dict([*net.named_parameters(), *net.named_buffers()])


@pytest.fixture
def garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory holds what no one can overlook."""
    empty = nn.Module.to_empty

    def fill(module: nn.Module, **where: object) -> nn.Module:
        empty(module, **where)
        with torch.no_grad():
            for tensor in tensors(module).values():
                tensor.fill_(float("nan") if tensor.is_floating_point() else 77)
        return module

    monkeypatch.setattr(nn.Module, "to_empty", fill)


@pytest.mark.parametrize("pool", POOLINGS)
def test_a_materialised_net_has_the_buffers_and_the_kind_of_weights_of_one_built_in_memory(garbage, pool):
    torch.manual_seed(0)
    eager = build(pool)
    net = build_meta(pool)
    materialise(net, "cpu")
    found, expected = tensors(net), tensors(eager)
    assert list(found) == list(expected)
    for name, _ in eager.named_buffers():
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0, msg=name)
    for name, weights in eager.named_parameters():
        ours = found[name]
        assert ours.shape == weights.shape and ours.dtype == weights.dtype and torch.isfinite(ours).all(), name
        if weights.numel() == 1 or weights.std() == 0:  # norms, zero biases, zero queries
            torch.testing.assert_close(ours, weights, rtol=0, atol=0, msg=name)
        else:
            assert ours.std().item() == pytest.approx(weights.std().item(), rel=8 / weights.numel() ** 0.5), name


def test_a_materialised_net_computes_what_its_eager_twin_does():
    torch.manual_seed(0)
    net = build_meta()
    materialise(net, "cpu")
    twin = build()
    twin.load_state_dict(net.state_dict())  # parameters and the buffers that are saved
    batch = pack([[text(3), Clip(37), text(4)], [text(9)]], net.geometry)
    with torch.no_grad():
        torch.testing.assert_close(net.logits(batch), twin.logits(batch), rtol=0, atol=0)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    nets = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        nets.append(build_meta("conv"))
        materialise(nets[-1], "cpu")
    first, again, other = map(tensors, nets)
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name, tensor in first.items() if tensor.numel() > 1 and tensor.std() > 0]
    changed = {name for name in drawn if not torch.equal(first[name], other[name])}
    assert set(drawn) - changed == {"encoder.positions", *(n for n in drawn if n.endswith("inv_freq"))}


def test_tied_weights_stay_one_tensor(garbage):
    net = build_meta(tied=True)
    materialise(net, "cpu")
    assert net.llm.get_output_embeddings().weight is net.llm.get_input_embeddings().weight


def test_an_objective_is_materialised_too(garbage):
    with torch.device("meta"):
        objective = CTC(width=8, n_text=5)
    materialise(objective, "cpu")
    assert all(torch.isfinite(p).all() and p.std() > 0 for p in objective.parameters())


def test_without_draws_only_what_is_not_random_is_filled(garbage):
    net = build_meta("conv")
    state = torch.get_rng_state()
    materialise(net, "cpu", draw=False)
    assert torch.equal(torch.get_rng_state(), state)
    eager = build("conv")
    for name, tensor in tensors(net).items():
        fixed = name in dict(eager.named_buffers()) or tensors(eager)[name].std() == 0  # norms, the LLM's biases
        assert torch.equal(tensor, tensors(eager)[name]) if fixed else torch.isnan(tensor).all(), name
