"""Weights into a net that was built without memory, and parts out of another run's state."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from packs import VOCAB, Clip, pack, text
from torch import nn

from auris.model import llm, pooling, projector
from auris.model.audio_lm import AudioLM
from auris.model.encoder import Encoder
from auris.objectives.ctc import CTC
from auris.parallel import load_part, materialise

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


def state_of(net: nn.Module) -> dict[str, torch.Tensor]:
    """As a checkpoint of a run names them."""
    return {f"net.{name}": tensor for name, tensor in net.state_dict().items()}


def test_a_part_is_loaded_and_the_others_stay():
    torch.manual_seed(0)
    source, target = build(), build()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    load_part(target, "encoder", state_of(source), "runs/a")
    for name, tensor in target.state_dict().items():
        expected = source.state_dict()[name] if name.startswith("encoder.") else before[name]
        assert torch.equal(tensor, expected), name


def test_the_state_may_come_from_a_net_with_other_parts_around_it():
    source, target = build("mean"), build("stack")
    load_part(target, "llm", state_of(source), "runs/a")
    assert torch.equal(target.llm.get_input_embeddings().weight, source.llm.get_input_embeddings().weight)


def test_another_shape_is_named_with_both_and_nothing_is_loaded():
    source = build()
    target = build()
    before = target.encoder.conv1.bias.clone()
    state = state_of(source)
    state["net.encoder.conv1.weight"] = torch.zeros(24, 80, 3)
    with pytest.raises(ValueError) as error:
        load_part(target, "encoder", state, "runs/a")
    said = "weights.encoder=runs/a does not fit the model's encoder: conv1.weight has shape (24, 80, 3), "
    assert str(error.value) == said + "expected (24, 16, 3)"
    assert torch.equal(target.encoder.conv1.bias, before)


def test_missing_and_unexpected_tensors_are_named():
    state = state_of(build())
    del state["net.projector.up.bias"]
    state["net.projector.gate.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"up.bias is missing; gate.weight is unexpected$"):
        load_part(build(), "projector", state, "runs/a")


def test_many_faults_are_counted_and_five_shown():
    with pytest.raises(ValueError, match=r"; and 10 more$") as error:
        load_part(build(), "encoder", state_of(build(layers=1)), "runs/a")
    assert str(error.value).count("is missing") == 5


def test_a_state_without_the_part_is_an_error():
    with pytest.raises(ValueError, match="weights.llm=runs/ctc does not fit the model's llm: .* is missing"):
        load_part(build(), "llm", {"objective.head.weight": torch.zeros(1)}, "runs/ctc")
