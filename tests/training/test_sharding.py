"""Materialising and initialising a net that was built on the meta device, on one process or sharded.

Sharded nets are tested without communication: one process pretends to be any rank. test_loading covers weights from
files, and test_strategy covers complete runs.
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


def build_meta(pool: str = "mean", **options: bool) -> AudioLM:
    with torch.device("meta"):
        return build(pool, **options)


def tensors(net: nn.Module) -> dict[str, torch.Tensor]:
    return dict([*net.named_parameters(), *net.named_buffers()])


@pytest.fixture
def garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill new memory with values that cannot be mistaken for weights."""
    empty = nn.Module.to_empty

    def fill(module: nn.Module, **options: object) -> nn.Module:
        empty(module, **options)
        with torch.no_grad():
            for tensor in tensors(module).values():
                tensor.fill_(float("nan") if tensor.is_floating_point() else 77)
        return module

    monkeypatch.setattr(nn.Module, "to_empty", fill)


@pytest.mark.parametrize("pool", POOLINGS)
def test_a_materialised_net_has_the_buffers_and_weight_distributions_of_one_built_in_memory(garbage, pool):
    torch.manual_seed(0)
    eager = build(pool)
    net = build_meta(pool)
    materialise(net, "cpu")
    actual, expected = tensors(net), tensors(eager)
    assert list(actual) == list(expected)
    for name, _ in eager.named_buffers():
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=0, msg=name)
    for name, weights in eager.named_parameters():
        parameter = actual[name]
        assert (
            parameter.shape == weights.shape and parameter.dtype == weights.dtype and torch.isfinite(parameter).all()
        ), name
        if weights.numel() == 1 or weights.std() == 0:  # norms, zero biases, zero queries
            torch.testing.assert_close(parameter, weights, rtol=0, atol=0, msg=name)
        else:
            assert parameter.std().item() == pytest.approx(weights.std().item(), rel=8 / weights.numel() ** 0.5), name


def test_a_materialised_net_equals_one_built_in_memory():
    torch.manual_seed(0)
    net = build_meta()
    materialise(net, "cpu")
    in_memory = build()
    in_memory.load_state_dict(net.state_dict())  # all but non-persistent buffers, which the logits compare
    batch = pack([[text(3), Clip(37), text(4)], [text(9)]], net.geometry)
    with torch.no_grad():
        torch.testing.assert_close(net.logits(batch), in_memory.logits(batch), rtol=0, atol=0)


def test_initial_weights_depend_on_the_seed():
    nets = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        nets.append(build_meta("conv"))
        materialise(nets[-1], "cpu")
    first, repeated, other = map(tensors, nets)
    assert all(torch.equal(first[name], repeated[name]) for name in first)
    varied_names = [name for name, tensor in first.items() if tensor.numel() > 1 and tensor.std() > 0]
    changed = {name for name in varied_names if not torch.equal(first[name], other[name])}
    # All of them are drawn at random, except the tables of positions and of rotary frequencies.
    assert set(varied_names) - changed == {"encoder.positions", *(n for n in varied_names if n.endswith("inv_freq"))}


def test_tied_weights_stay_one_tensor(garbage):
    net = build_meta(tied=True)
    materialise(net, "cpu")
    assert net.llm.get_output_embeddings().weight is net.llm.get_input_embeddings().weight


def test_an_objective_is_materialised(garbage):
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
        # Buffers, norms and the biases of the LLM are deterministic.
        is_deterministic = name in dict(eager.named_buffers()) or tensors(eager)[name].std() == 0
        assert torch.equal(tensor, tensors(eager)[name]) if is_deterministic else torch.isnan(tensor).all(), name


# --- sharded ---


@pytest.fixture
def simulate_rank() -> Iterator[Callable[..., Meshes]]:
    """Simulate one rank: `simulate_rank(rank, of=4, tensor=2)` returns the meshes that this rank sees."""

    def simulate(
        rank: int, *, of: int, tensor: int = 1, replicas: int = 1, dtype: torch.dtype = torch.float32
    ) -> Meshes:
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=of)
        # The names contain the rank, because torch caches equal meshes together with the rank that created them first.
        names = [f"{axis} of {rank}" for axis in ("processes", "replicas", "shards", "data", "tensor")]
        mesh = init_device_mesh("cpu", (of,), mesh_dim_names=(names[0],))
        if replicas > 1:
            mesh = init_device_mesh("cpu", (replicas, of // replicas), mesh_dim_names=tuple(names[1:3]))
        if tensor == 1:
            return Meshes(whole=mesh, layers=mesh, dtype=dtype)
        mesh_2d = init_device_mesh("cpu", (of // tensor, tensor), mesh_dim_names=tuple(names[3:]))
        return Meshes(whole=mesh, layers=mesh_2d[names[3]], tensor=mesh_2d[names[4]], dtype=dtype)

    yield simulate
    if dist.is_initialized():
        dist.destroy_process_group()


DIVISIONS = [{"of": 3}, {"of": 4, "replicas": 2}, {"of": 2, "tensor": 2}, {"of": 4, "tensor": 2}]


@pytest.mark.parametrize("division", DIVISIONS, ids=str)
def test_the_shards_of_all_ranks_together_equal_the_net_of_one_process(garbage, simulate_rank, division):
    torch.manual_seed(5)
    full_net = build_meta("conv")
    materialise(full_net, "cpu")
    next_random = torch.rand(1)
    counts = {name: torch.zeros_like(tensor) for name, tensor in full_net.state_dict().items()}
    for rank in range(division["of"]):
        meshes = simulate_rank(rank, **division)
        torch.manual_seed(5)
        net = build_meta("conv")
        sharding.shard(net, meshes)
        materialise(net, "cpu")
        assert torch.equal(torch.rand(1), next_random)  # the random generator ends in the same state
        for name, tensor in net.state_dict().items():
            shard, index = dtensor.local_part(tensor)
            assert torch.equal(shard, full_net.state_dict()[name][index]), (rank, name)
            counts[name][index] += 1
    assert all(count.unique().numel() == 1 for count in counts.values())  # every element is held equally often


def test_each_of_512_ranks_holds_about_a_512th_of_the_parameters(simulate_rank):
    tokenizer = SimpleNamespace(size=5_000)
    net = config.build_net(config.resolve(config.compose(["experiment=qwen2_audio_pretrain", "scale=full"])), tokenizer)
    total = sum(parameter.numel() for parameter in net.parameters())
    sharding.shard(net, simulate_rank(0, of=512))
    n_local = sum(dtensor.local_part(parameter)[0].numel() for parameter in net.parameters())
    assert total / 512 <= n_local < 1.05 * total / 512  # rank 0 has the largest shards


def test_trainable_weights_are_float32_and_frozen_ones_have_the_compute_dtype(simulate_rank):
    net = build_meta()
    optim.freeze(net, ["encoder", "projector"])
    sharding.shard(net, simulate_rank(0, of=2, dtype=torch.bfloat16))
    dtypes = {(parameter.dtype, parameter.requires_grad) for parameter in net.parameters()}
    assert dtypes == {(torch.float32, True), (torch.bfloat16, False)}


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


@pytest.mark.parametrize("max_norm", [0.1, 1e6, 0, None])
def test_clipping_with_a_scale_equals_clipping_by_torch_after_scaling(max_norm):
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(build())
        for number, parameter in enumerate(nets[-1].parameters()):
            if number:  # the first parameter has no gradient
                parameter.grad = torch.randn_like(parameter)
    net, reference = nets
    norm = sharding.clip_gradients(net.parameters(), max_norm, scale=torch.tensor(0.25))
    for parameter in list(reference.parameters())[1:]:
        parameter.grad.mul_(0.25)
    expected = nn.utils.clip_grad_norm_(reference.parameters(), max_norm or torch.inf)  # 0 and None do not clip
    torch.testing.assert_close(norm, expected)
    for left, right in zip(list(net.parameters())[1:], list(reference.parameters())[1:], strict=True):
        torch.testing.assert_close(left.grad, right.grad)
