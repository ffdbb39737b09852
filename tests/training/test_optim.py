"""The optimizer: learning rates of layers, frozen parts, the schedule, and moments in bfloat16."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from auris.model import adapters
from auris.training.objectives.ctc import CTC
from auris.training.optim import Muon, adamw, cosine_schedule, freeze, orthogonalise, parameter_groups
from support import nets


class Encoder(nn.Module):
    """Three blocks with a stem before and a norm after them. Names are those of the real encoder."""

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


def settings(net: Net, objective: nn.Module | None = None, **overrides: float) -> dict[str, tuple[float, float]]:
    """Return the (learning rate, weight decay) of every trained parameter by name."""
    objective = objective or nn.Identity()
    numbers = {"lr": 1.0, "weight_decay": 0.05, "layer_decay": 0.5} | overrides
    groups = parameter_groups(net, objective, **numbers)
    by_tensor = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(by_tensor) == sum(len(group["params"]) for group in groups)  # each parameter is in one group
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


def test_the_published_layer_decay_applies_to_each_of_32_blocks():
    net = Net()
    net.encoder.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(32))
    rates = settings(net, lr=5e-5, layer_decay=0.95)
    assert rates["encoder.conv1.weight"][0] == pytest.approx(5e-5 * 0.95**32)
    assert rates["encoder.blocks.0.weight"][0] == pytest.approx(5e-5 * 0.95**31)
    assert rates["encoder.blocks.31.weight"][0] == 5e-5


def test_weight_decay_applies_to_matrices_but_not_to_vectors(net):
    decays = {name for name, (_, decay) in settings(net).items() if decay}
    assert decays == {name for name, p in net.named_parameters() if p.ndim >= 2}
    assert {decay for _, decay in settings(net).values()} == {0.05, 0.0}


def test_parameters_of_the_objective_have_the_full_learning_rate(net):
    objective = nn.ModuleDict({"head": nn.Linear(4, 3)})
    parameter_settings = settings(net, objective)
    assert parameter_settings["objective.head.weight"] == (1.0, 0.05)
    assert parameter_settings["objective.head.bias"] == (1.0, 0.0)


def test_frozen_parameters_are_in_no_group(net):
    freeze(net, ["projector"])
    assert set(settings(net)) == {"projector.weight", "projector.bias"}


def test_a_model_without_trainable_parameters_is_an_error(net):
    freeze(net, [])
    with pytest.raises(
        ValueError, match=r"no parameter is trainable: set for example trainable=\[encoder,pooling,projector\]"
    ):
        settings(net)


def trainable_names(net: nn.Module) -> set[str]:
    return {name for name, p in net.named_parameters() if p.requires_grad}


def test_only_named_parts_are_trainable_and_the_others_are_in_eval_mode(net):
    freeze(net, ["encoder", "pooling", "projector"])
    assert trainable_names(net) == {name for name, _ in net.named_parameters() if not name.startswith("llm")}
    assert net.encoder.training and net.encoder.blocks[1].training and net.pooling.training
    assert not net.llm.training and not net.llm["norm"].training


def test_a_trainable_name_may_be_a_submodule_or_a_parameter(net):
    freeze(net, ["encoder.blocks.1", "llm.embed.weight"])
    assert trainable_names(net) == {"encoder.blocks.1.weight", "encoder.blocks.1.bias", "llm.embed.weight"}


def test_the_name_of_a_parts_adapters_selects_no_adapters_of_another_part(net):
    layer = nn.ModuleDict({"base_layer": nn.Linear(4, 4), "lora_A": nn.ModuleDict({"default": nn.Linear(4, 2)})})
    net.llm["q_proj"], net.encoder.blocks[0] = layer, nn.ModuleDict({"lora_A": nn.Linear(4, 2)})
    freeze(net, ["llm.lora"])
    assert trainable_names(net) == {"llm.q_proj.lora_A.default.weight", "llm.q_proj.lora_A.default.bias"}


def test_freezing_again_replaces_the_earlier_selection(net):
    freeze(net, ["llm"])
    freeze(net, ["encoder.norm"])
    assert trainable_names(net) == {"encoder.norm.weight", "encoder.norm.bias"}
    assert not net.llm.training


@pytest.mark.parametrize("name", ["lm", "encoder.block", "", "net.encoder", "llm.embed.bias", "llm.lora"])
def test_a_name_that_matches_nothing_is_an_error_that_lists_the_parts(net, name):
    with pytest.raises(ValueError, match=f"trainable='{name}' .* expected encoder, pooling, projector, llm,"):
        freeze(net, ["encoder", name])


def scheduled_rates(steps: int, **schedule: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = cosine_schedule(optimizer, **schedule)
    learning_rates = []
    for _ in range(steps):
        learning_rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return learning_rates


def test_the_schedule_warms_up_linearly_and_falls_by_a_cosine_to_its_floor():
    learning_rates = scheduled_rates(13, warmup_steps=4, max_steps=12, floor=0.2)
    warm_up = [0.5, 1.0, 1.5, 2.0]
    cosine_decay = [2 * (0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * k / 8))) for k in range(9)]
    assert learning_rates == pytest.approx(warm_up + cosine_decay)
    assert (
        learning_rates[4] == pytest.approx(2.0)
        and learning_rates[8] == pytest.approx(1.2)
        and learning_rates[12] == pytest.approx(0.4)
    )


def test_the_schedule_stays_on_its_floor_and_needs_no_warm_up():
    assert scheduled_rates(8, warmup_steps=0, max_steps=2, floor=0.1) == pytest.approx([2.0, 1.1] + 6 * [0.2])


def test_the_schedule_keeps_the_ratio_of_learning_rates_between_groups(net):
    optimizer = torch.optim.AdamW(parameter_groups(net, nn.Identity(), lr=1.0, weight_decay=0.0, layer_decay=0.5))
    before = [group["lr"] for group in optimizer.param_groups]
    cosine_schedule(optimizer, warmup_steps=10, max_steps=20, floor=0.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([lr / 10 for lr in before])


def test_lr_factors_scale_a_part_and_must_name_a_part(net: Net):
    freeze(net, ["encoder", "projector"])
    numbers = {"lr": 1.0, "weight_decay": 0.0, "layer_decay": 1.0}
    groups = parameter_groups(net, nn.Identity(), **numbers, lr_factors={"encoder": 0.25})
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert {rates[id(p)] for p in net.encoder.parameters()} == {0.25}
    assert {rates[id(p)] for p in net.projector.parameters()} == {1.0}
    with pytest.raises(ValueError, match=r"lr_factors contains encodr: expected encoder"):
        parameter_groups(net, nn.Identity(), **numbers, lr_factors={"encodr": 0.1})


def test_the_factor_of_a_part_applies_to_its_lora_matrices(net: Net):
    layer = nn.ModuleDict({"base_layer": nn.Linear(4, 4), "lora_A": nn.ModuleDict({"default": nn.Linear(4, 2)})})
    net.llm["q_proj"] = layer
    freeze(net, ["projector", "llm.lora"])
    numbers = {"lr": 1.0, "weight_decay": 0.0, "layer_decay": 1.0}
    groups = parameter_groups(net, nn.Identity(), **numbers, lr_factors={"llm": 0.1})
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert {rates[id(p)] for p in layer["lora_A"].parameters()} == {0.1}
    assert {rates[id(p)] for p in net.projector.parameters()} == {1.0} and len(rates) == 4


# --- moments in bfloat16 ---


def learn(moment_dtype: str, steps: int = 60) -> tuple[list[float], torch.optim.Optimizer]:
    """Train a small net. Return its losses and the optimizer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.rand(64, 6)
    y = x.square().sum(1, keepdim=True)
    groups = [{"params": list(net.parameters()), "lr": 0.02, "weight_decay": 0.05}]
    optimizer = adamw(groups, betas=(0.9, 0.98), eps=1e-6, states=moment_dtype)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, optimizer


def test_bfloat16_moments_train_like_float32_moments():
    (float32_losses, _), (bfloat16_losses, optimizer) = learn("fp32"), learn("bf16")
    assert float32_losses[-1] < 0.1 * float32_losses[0]
    assert bfloat16_losses[0] == float32_losses[0] and bfloat16_losses != float32_losses
    assert max(abs(a - b) for a, b in zip(float32_losses, bfloat16_losses, strict=True)) < 0.02 * float32_losses[0]
    moments = [state for states in optimizer.state.values() for name, state in states.items() if name != "step"]
    assert {moment.dtype for moment in moments} == {torch.bfloat16} and len(moments) == 8


def test_one_step_with_bfloat16_moments_equals_adamw_with_rounded_moments():
    (_, float32_optimizer), (_, bfloat16_optimizer) = learn("fp32", steps=1), learn("bf16", steps=1)
    for float32_state, bfloat16_state in zip(
        float32_optimizer.state.values(), bfloat16_optimizer.state.values(), strict=True
    ):
        assert all(
            torch.equal(float32_state[name].bfloat16(), bfloat16_state[name]) for name in ("exp_avg", "exp_avg_sq")
        )
    bfloat16_parameters, float32_parameters = (
        [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for optimizer in (bfloat16_optimizer, float32_optimizer)
    )
    assert all(torch.equal(a, b) for a, b in zip(bfloat16_parameters, float32_parameters, strict=True))


def test_the_update_of_a_matrix_is_nearly_orthogonal():
    torch.manual_seed(0)
    for shape in ((8, 8), (4, 20), (20, 4)):
        matrix = torch.randn(shape, dtype=torch.float64)
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        singular = torch.linalg.svdvals(orthogonalise(matrix))
        assert singular.min() > 0.6 and singular.max() < 1.3
        overlap = (left.T @ orthogonalise(matrix) @ right.T).abs()  # diagonal: the same singular vectors
        torch.testing.assert_close(overlap, overlap.diagonal().diag())


def grow(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int = 6) -> None:
    """Take steps on gradients that do not depend on the parameters."""
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        optimizer.step()


def test_matrices_are_updated_as_by_torchs_muon():
    ours, theirs = ([nn.Parameter(torch.eye(6, 9)), nn.Parameter(torch.eye(12, 5))] for _ in range(2))
    grow(Muon([{"params": ours, "lr": 0.1, "weight_decay": 0.3}], betas=(0.9, 0.98)), ours)
    grow(torch.optim.Muon(theirs, lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw"), theirs)
    for matrix, expected in zip(ours, theirs, strict=True):
        # torch iterates in bfloat16, with a relative precision of 2^-8, and takes 6 steps.
        torch.testing.assert_close(matrix, expected, atol=6 * 0.1 * 2**-5, rtol=0)


def test_vectors_and_tables_of_tokens_are_updated_as_by_adamw():
    """The table has the sides of a matrix."""

    def make() -> Net:
        net = Net()
        net.llm = nn.ModuleDict(
            {"embed_tokens": nn.Embedding(5, 6), "lm_head": nn.Linear(6, 5), "norm": nn.LayerNorm(6)}
        )
        freeze(net, ["llm"])
        with torch.no_grad():
            for parameter in net.llm.parameters():
                parameter.fill_(1.0)
        return net

    ours, theirs = make(), make()
    numbers = {"lr": 0.1, "weight_decay": 0.3, "layer_decay": 1.0}
    for net, build in ((ours, Muon), (theirs, adamw)):
        optimizer = build(parameter_groups(net, nn.Identity(), **numbers), betas=(0.9, 0.98), eps=1e-6)
        grow(optimizer, [*net.llm.parameters()])
    assert all(map(torch.equal, ours.llm.parameters(), theirs.llm.parameters()))


def test_what_muon_updates_depends_on_the_part_of_the_model_but_not_on_its_sides():
    net, objective = nets.build("qwen_audio", vocab=20), CTC(width=20, n_text=19)
    adapters.attach(net, ["llm.new_tokens"], token_ids=range(12))
    adapters.attach(net, ["llm.lora"], lora={"rank": 10, "alpha": 1, "targets": ["q_proj"]})
    net.requires_grad_(True)  # the adapters have frozen the language model
    groups = parameter_groups(net, objective, lr=1.0, weight_decay=0.0, layer_decay=1.0)
    matrices = [
        id(x) for group in Muon(groups, betas=(0.9, 0.98)).param_groups if group["momentum"] for x in group["params"]
    ]
    left_out = {name for name, x in net.named_parameters() if x.ndim > 1 and id(x) not in matrices}
    assert {name for name in left_out if ".lora_" not in name} == {
        *("llm.model.embed_tokens.weight", "llm.lm_head.weight", "boundary.weight"),
        *("llm.new_tokens.embedding", "llm.new_tokens.head"),
    }
    assert sum(".lora_A." in name for name in left_out) == sum(".lora_B." in name for name in left_out) == 2
    assert id(objective.head.weight) not in matrices


def test_a_convolution_is_a_matrix_with_a_row_for_each_output_channel():
    convolution, matrix = nn.Parameter(torch.ones(4, 2, 3)), nn.Parameter(torch.ones(4, 6))
    for parameter in (convolution, matrix):
        grow(Muon([{"params": [parameter], "lr": 0.1, "weight_decay": 0.0}], betas=(0.9, 0.98)), [parameter])
    torch.testing.assert_close(convolution.flatten(1), matrix)


@pytest.mark.parametrize(
    ("states", "betas", "message"),
    [
        ("int8", (0.9, 0.98), "optim.states=int8: expected fp32 or bf16"),
        ("bf16", (0.9, 0.999), "optim.betas=.*0.99"),
        ("fp32", (0.9,), r"optim.betas=\[0.9\]: expected two numbers"),
    ],
)
def test_invalid_moment_dtypes_and_betas_are_refused(states, betas, message):
    groups = [{"params": [nn.Parameter(torch.ones(2))]}]
    with pytest.raises(ValueError, match=message):
        adamw(groups, betas=betas, eps=1e-6, states=states)
    if len(betas) != 2:
        with pytest.raises(ValueError, match=message):
            Muon(groups, betas=betas)
