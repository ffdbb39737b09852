"""Memory and initial weights for a net that was built without (weights from files: test_weights), whole or sharded.

Sharded ones without communication: one process pretends to be any of a group. Whole runs are in test_strategies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from auris import config
from auris.model import dtensor, llm, pooling, projector
from auris.model.audio_lm import AudioLM
from auris.model.encoder import Encoder
from auris.training import optim, sharding
from auris.training.objectives.ctc import CTC
from auris.training.sharding import Meshes, materialise
from support.packs import VOCAB, Clip, pack, text

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


def test_a_materialised_net_equals_one_built_in_memory():
    torch.manual_seed(0)
    net = build_meta()
    materialise(net, "cpu")
    twin = build()
    twin.load_state_dict(net.state_dict())  # parameters and the buffers that are saved
    batch = pack([[text(3), Clip(37), text(4)], [text(9)]], net.geometry)
    with torch.no_grad():
        torch.testing.assert_close(net.logits(batch), twin.logits(batch), rtol=0, atol=0)


def test_weights_depend_on_the_seed():
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


def test_without_random_draws_only_deterministic_weights_are_filled(garbage):
    net = build_meta("conv")
    state = torch.get_rng_state()
    materialise(net, "cpu", draw=False)
    assert torch.equal(torch.get_rng_state(), state)
    eager = build("conv")
    for name, tensor in tensors(net).items():
        fixed = name in dict(eager.named_buffers()) or tensors(eager)[name].std() == 0  # norms, the LLM's biases
        assert torch.equal(tensor, tensors(eager)[name]) if fixed else torch.isnan(tensor).all(), name


# --- sharded ---


@pytest.fixture
def process() -> Iterator[Callable[..., Meshes]]:
    """Be one of a number of processes: `process(rank, of=4, tensor=2)` gives the meshes that it sees."""

    def be(rank: int, *, of: int, tensor: int = 1, replicas: int = 1, dtype: torch.dtype = torch.float32) -> Meshes:
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=of)
        # Named by the process, as torch takes equal meshes for one, with the place that it saw first.
        names = [f"{axis} of {rank}" for axis in ("processes", "replicas", "shards", "data", "tensor")]
        whole = init_device_mesh("cpu", (of,), mesh_dim_names=(names[0],))
        if replicas > 1:
            whole = init_device_mesh("cpu", (replicas, of // replicas), mesh_dim_names=tuple(names[1:3]))
        if tensor == 1:
            return Meshes(whole=whole, layers=whole, dtype=dtype)
        both = init_device_mesh("cpu", (of // tensor, tensor), mesh_dim_names=tuple(names[3:]))
        return Meshes(whole=whole, layers=both[names[3]], tensor=both[names[4]], dtype=dtype)

    yield be
    if dist.is_initialized():
        dist.destroy_process_group()


DIVISIONS = [{"of": 3}, {"of": 4, "replicas": 2}, {"of": 2, "tensor": 2}, {"of": 4, "tensor": 2}]


@pytest.mark.parametrize("division", DIVISIONS, ids=str)
def test_the_parts_of_all_processes_are_the_net_of_one(garbage, process, division):
    torch.manual_seed(5)
    whole = build_meta("conv")
    materialise(whole, "cpu")
    after = torch.rand(1)
    covered = {name: torch.zeros_like(tensor) for name, tensor in whole.state_dict().items()}
    for rank in range(division["of"]):
        meshes = process(rank, **division)
        torch.manual_seed(5)
        net = build_meta("conv")
        sharding.shard(net, meshes)
        materialise(net, "cpu")
        assert torch.equal(torch.rand(1), after)  # what is drawn next is the same too
        for name, tensor in net.state_dict().items():
            part, index = dtensor.local_part(tensor)
            assert torch.equal(part, whole.state_dict()[name][index]), (rank, name)
            covered[name][index] += 1
    assert all(times.unique().numel() == 1 for times in covered.values())  # every number as often as any other


def test_a_part_is_smaller_the_more_processes_there_are(process):
    tokenizer = SimpleNamespace(size=5_000)
    net = config.build_net(config.resolve(config.compose(["experiment=qwen2_audio_pretrain", "scale=full"])), tokenizer)
    total = sum(parameter.numel() for parameter in net.parameters())
    sharding.shard(net, process(0, of=512))
    part = sum(dtensor.local_part(parameter)[0].numel() for parameter in net.parameters())
    assert total / 512 <= part < 1.05 * total / 512  # rank 0 has the larger parts


def test_trainable_weights_are_float32_and_frozen_ones_have_the_computing_precision(process):
    net = build_meta()
    optim.freeze(net, ["encoder", "projector"])
    sharding.shard(net, process(0, of=2, dtype=torch.bfloat16))
    kinds = {(parameter.dtype, parameter.requires_grad) for parameter in net.parameters()}
    assert kinds == {(torch.float32, True), (torch.bfloat16, False)}


def test_adapters_are_not_divided_by_tensor_parallelism():
    with pytest.raises(ValueError, match=r"tensor_parallel=2 cannot divide adapters.*expected strategy=fsdp, or "):
        sharding.check_tensor_parallel(build_meta(), 2, has_adapters=True)


def test_an_llm_that_cannot_be_split_by_tensor_parallelism_is_named():
    with pytest.raises(ValueError, match="tensor_parallel=3: expected a divisor of the LLM's num_attention_heads=4"):
        sharding.check_tensor_parallel(build_meta(), 3, has_adapters=False)
    net = build_meta()
    net.llm.config.base_model_tp_plan = {"layers.*.mlp.experts": "grouped_gemm"}
    with pytest.raises(ValueError, match="no plan of colwise and rowwise layers for the LLM qwen2.*strategy=fsdp"):
        sharding.check_tensor_parallel(net, 2, has_adapters=False)


@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_clipping_is_torchs_after_scaling(max_norm):
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(build())
        for number, parameter in enumerate(nets[-1].parameters()):
            if number:  # one that no gradient has reached
                parameter.grad = torch.randn_like(parameter)
    ours, torchs = nets
    norm = sharding.clip_gradients(ours.parameters(), max_norm, scale=torch.tensor(0.25))
    for parameter in list(torchs.parameters())[1:]:
        parameter.grad.mul_(0.25)
    expected = nn.utils.clip_grad_norm_(torchs.parameters(), max_norm)
    torch.testing.assert_close(norm, expected)
    for left, right in zip(list(ours.parameters())[1:], list(torchs.parameters())[1:], strict=True):
        torch.testing.assert_close(left.grad, right.grad)
