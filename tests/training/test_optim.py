"""Learning rates by hand, what is frozen, and the schedule's numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from auris.training.optim import adamw, cosine, freeze, parameter_groups


class Encoder(nn.Module):
    """Three blocks with a stem before them and a norm behind, named as ours."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(2, 4, 3)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.norm = nn.LayerNorm(4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.pooling, self.projector = Encoder(), nn.Identity(), nn.Linear(4, 6)
        self.llm = nn.ModuleDict({"embed": nn.Embedding(5, 6), "norm": nn.LayerNorm(6)})


@pytest.fixture
def net() -> Net:
    return Net()


def settings(net: Net, objective: nn.Module | None = None, **changed: float) -> dict[str, tuple[float, float]]:
    """(learning rate, weight decay) of every trained parameter by name."""
    objective = objective or nn.Identity()
    numbers = {"lr": 1.0, "weight_decay": 0.05, "layer_decay": 0.5} | changed
    groups = parameter_groups(net, objective, **numbers)
    by_tensor = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(by_tensor) == sum(len(group["params"]) for group in groups)  # each in one group
    named = [*net.named_parameters(), *objective.named_parameters(prefix="objective")]
    return {name: by_tensor[id(p)] for name, p in named if id(p) in by_tensor}


def test_the_learning_rate_halves_with_each_block_below_the_encoders_output(net):
    rates = {name: lr for name, (lr, _) in settings(net).items()}
    assert rates == {
        "encoder.conv1.weight": 0.125,
        "encoder.conv1.bias": 0.125,
        "encoder.blocks.0.weight": 0.25,
        "encoder.blocks.0.bias": 0.25,
        "encoder.blocks.1.weight": 0.5,
        "encoder.blocks.1.bias": 0.5,
        "encoder.blocks.2.weight": 1.0,
        "encoder.blocks.2.bias": 1.0,
        "encoder.norm.weight": 1.0,
        "encoder.norm.bias": 1.0,
        "projector.weight": 1.0,
        "projector.bias": 1.0,
        "llm.embed.weight": 1.0,
        "llm.norm.weight": 1.0,
        "llm.norm.bias": 1.0,
    }


def test_the_published_decay_of_32_blocks():
    net = Net()
    net.encoder.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(32))
    rates = settings(net, lr=5e-5, layer_decay=0.95)
    assert rates["encoder.conv1.weight"][0] == pytest.approx(5e-5 * 0.95**32)
    assert rates["encoder.blocks.0.weight"][0] == pytest.approx(5e-5 * 0.95**31)
    assert rates["encoder.blocks.31.weight"][0] == 5e-5


def test_matrices_decay_and_vectors_do_not(net):
    decays = {name for name, (_, decay) in settings(net).items() if decay}
    assert decays == {name for name, p in net.named_parameters() if p.ndim >= 2}
    assert {decay for _, decay in settings(net).values()} == {0.05, 0.0}


def test_the_objectives_parameters_learn_at_the_full_rate(net):
    objective = nn.ModuleDict({"head": nn.Linear(4, 3)})
    found = settings(net, objective)
    assert found["objective.head.weight"] == (1.0, 0.05)
    assert found["objective.head.bias"] == (1.0, 0.0)


def test_frozen_parameters_are_in_no_group(net):
    freeze(net, ["projector"])
    assert set(settings(net)) == {"projector.weight", "projector.bias"}


def test_nothing_to_train_is_an_error(net):
    freeze(net, [])
    with pytest.raises(ValueError, match=r"no parameter is trainable: set trainable=\[encoder,pooling,projector\]"):
        settings(net)


def trained(net: nn.Module) -> set[str]:
    return {name for name, p in net.named_parameters() if p.requires_grad}


def test_only_the_named_parts_learn_and_the_others_are_in_eval_mode(net):
    freeze(net, ["encoder", "pooling", "projector"])
    assert trained(net) == {name for name, _ in net.named_parameters() if not name.startswith("llm")}
    assert net.encoder.training and net.encoder.blocks[1].training and net.pooling.training
    assert not net.llm.training and not net.llm["norm"].training


def test_a_part_may_be_deep_inside_or_one_parameter(net):
    freeze(net, ["encoder.blocks.1", "llm.embed.weight"])
    assert trained(net) == {"encoder.blocks.1.weight", "encoder.blocks.1.bias", "llm.embed.weight"}


def test_lora_names_only_matrices_inside_a_part(net):
    layer = nn.ModuleDict({"base_layer": nn.Linear(4, 4), "lora_A": nn.ModuleDict({"default": nn.Linear(4, 2)})})
    net.llm["q_proj"], net.encoder.blocks[0] = layer, nn.ModuleDict({"lora_A": nn.Linear(4, 2)})
    freeze(net, ["llm.lora"])
    assert trained(net) == {"llm.q_proj.lora_A.default.weight", "llm.q_proj.lora_A.default.bias"}


def test_freezing_again_replaces_the_earlier_selection(net):
    freeze(net, ["llm"])
    freeze(net, ["encoder.norm"])
    assert trained(net) == {"encoder.norm.weight", "encoder.norm.bias"}
    assert not net.llm.training


@pytest.mark.parametrize("name", ["lm", "encoder.block", "", "net.encoder", "llm.embed.bias", "llm.lora"])
def test_a_name_that_matches_nothing_is_an_error_that_lists_the_parts(net, name):
    with pytest.raises(ValueError, match=f"trainable='{name}' .* expected encoder, pooling, projector, llm,"):
        freeze(net, ["encoder", name])


def rates(steps: int, **schedule: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = cosine(optimizer, **schedule)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_the_schedule_warms_up_linearly_and_falls_by_a_cosine_to_its_floor():
    found = rates(13, warmup_steps=4, max_steps=12, floor=0.2)
    warm = [0.5, 1.0, 1.5, 2.0]
    half = [2 * (0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * k / 8))) for k in range(9)]
    assert found == pytest.approx(warm + half)
    assert found[4] == pytest.approx(2.0) and found[8] == pytest.approx(1.2) and found[12] == pytest.approx(0.4)


def test_the_schedule_stays_on_its_floor_and_needs_no_warm_up():
    assert rates(8, warmup_steps=0, max_steps=2, floor=0.1) == pytest.approx([2.0, 1.1] + 6 * [0.2])


def test_each_group_keeps_its_share_of_the_rate(net):
    optimizer = torch.optim.AdamW(parameter_groups(net, nn.Identity(), lr=1.0, weight_decay=0.0, layer_decay=0.5))
    before = [group["lr"] for group in optimizer.param_groups]
    cosine(optimizer, warmup_steps=10, max_steps=20, floor=0.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([lr / 10 for lr in before])


def test_a_warm_up_as_long_as_the_run_is_an_error_that_names_settings_that_exist():
    from auris import config

    with pytest.raises(ValueError, match="=") as error:
        rates(1, warmup_steps=10, max_steps=10, floor=0.1)
    named = [word for word in str(error.value).split() if "=" in word]
    assert len(named) == 2
    run_config = config.compose(named)
    assert (run_config.optim.warmup_steps, run_config.max_steps) == (10, 10)


def test_a_factor_scales_a_part_and_must_name_one(net: Net):
    freeze(net, ["encoder", "projector"])
    numbers = {"lr": 1.0, "weight_decay": 0.0, "layer_decay": 1.0}
    groups = parameter_groups(net, nn.Identity(), **numbers, lr_factors={"encoder": 0.25})
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert {rates[id(p)] for p in net.encoder.parameters()} == {0.25}
    assert {rates[id(p)] for p in net.projector.parameters()} == {1.0}
    with pytest.raises(ValueError, match=r"lr_factors contains encodr: expected encoder"):
        parameter_groups(net, nn.Identity(), **numbers, lr_factors={"encodr": 0.1})


# --- moments in few bytes ---


def learn(states: str, steps: int = 60) -> tuple[list[float], torch.optim.Optimizer]:
    """Losses of a small net, and the optimizer that it learned with."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.rand(64, 6)
    y = x.square().sum(1, keepdim=True)
    groups = [{"params": list(net.parameters()), "lr": 0.02, "weight_decay": 0.05}]
    optimizer = adamw(groups, betas=(0.9, 0.98), eps=1e-6, states=states)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, optimizer


def test_moments_of_half_the_bytes_learn_as_whole_ones_do():
    (whole, _), (half, optimizer) = learn("fp32"), learn("bf16")
    assert whole[-1] < 0.1 * whole[0]
    assert half[0] == whole[0] and half != whole
    assert max(abs(one - two) for one, two in zip(whole, half, strict=True)) < 0.02 * whole[0]
    kept = [state for states in optimizer.state.values() for name, state in states.items() if name != "step"]
    assert {one.dtype for one in kept} == {torch.bfloat16} and len(kept) == 8


def test_one_step_is_adamws_with_its_moments_rounded():
    (_, whole), (_, half) = learn("fp32", steps=1), learn("bf16", steps=1)
    for one, two in zip(whole.state.values(), half.state.values(), strict=True):
        assert all(torch.equal(one[name].bfloat16(), two[name]) for name in ("exp_avg", "exp_avg_sq"))
    ours, theirs = (
        [parameter for group in each.param_groups for parameter in group["params"]] for each in (half, whole)
    )
    assert all(torch.equal(one, two) for one, two in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("states", "betas", "message"),
    [("int8", (0.9, 0.98), "optim.states=int8: expected fp32 or bf16"), ("bf16", (0.9, 0.999), "optim.betas=.*0.99")],
)
def test_moments_that_cannot_be_kept_are_refused(states, betas, message):
    with pytest.raises(ValueError, match=message):
        adamw([{"params": [nn.Parameter(torch.ones(2))]}], betas=betas, eps=1e-6, states=states)
