"""DPO losses: hand-computed cases, the prompt tree against two sequences, and cached and live references.

A prompt tree contains a prompt once, followed by both answers.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auris.audio import Geometry
from auris.data.collate import collate
from auris.model.audio_lm import AudioLM
from auris.model.generation import GenerationSettings
from auris.model.llm import LongRotary
from auris.model.pack import IGNORE
from auris.text.tasks import LOSS_CURVES
from auris.training.objectives import logps as logps_module
from auris.training.objectives.dpo import DPO, answer_logps
from support import nets
from support.packs import Clip, row_ids, text
from support.preferences import Pair, sequence, sequences, tree

pytestmark = pytest.mark.usefixtures("float64")

VOCAB = 96


def build(system: str, seed: int = 0, **config: object) -> AudioLM:
    """Return a net with weights so small that the softmax does not saturate."""
    torch.manual_seed(seed)
    net = nets.build(system, vocab=VOCAB, **{"num_key_value_heads": 2, **config})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.3)
    return net


@pytest.fixture(params=["qwen2_audio", "qwen_audio"])
def net(request: pytest.FixtureRequest) -> AudioLM:
    return build(request.param)


def clip(frames: int) -> Clip:
    return Clip(frames, nets.N_MELS)


def build_pairs() -> list[Pair]:
    """Return pairs with one clip, no clip and several clips.

    Some answers share a prefix, one answer has a single token, and one prompt has a single token.
    """
    return [
        Pair([text(3), clip(37), text(4)], [7, 8, 9, 10], [7, 8, 30]),
        Pair([text(9)], [40], [41, 42, 43, 44, 45]),
        Pair([text(2), clip(60), text(2), clip(8), text(5)], text(6, 1), text(6, 2)),
        Pair([[50]], [51, 52], [53]),
    ]


# Log-probabilities of these pairs under a hypothetical reference model: (chosen, rejected).
REFERENCES = [(-9.0, -8.0), (-5.0, -19.0), (-31.0, -28.0), (-7.0, -4.0)]


def run(objective: DPO, net: nn.Module, pack: dict) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
    """Return loss, sums, and gradients of all parameters."""
    net.zero_grad()
    loss, sums = objective(net, pack)
    loss.backward()
    gradients = [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in net.parameters()]
    return loss.detach(), sums, gradients


def assert_gradients_close(left: list[Tensor], right: list[Tensor], tolerance: float = 1e-5) -> None:
    """Compare gradients relative to the largest one, because the smallest are differences of large numbers."""
    scale = max(float(gradient.abs().max()) for gradient in right)
    assert scale > 0
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance * scale, rtol=0)


# --- hand-computed cases ---

# Three pairs. With beta = 1/2, beta * (log-ratio of chosen - log-ratio of rejected) is log 3, 0 and -log 3.
LOGPS = [[-1.0, -2.0 - 2 * math.log(3)], [-3.0, -4.0], [-2.0 - 2 * math.log(3), -1.0]]
REFERENCE_LOGPS = [[-2.0, -3.0], [-5.0, -6.0], [-3.0, -2.0]]
LENGTHS = [[1.0, 2.0], [2.0, 2.0], [4.0, 1.0]]
LOG3 = math.log(3)

CASES = {
    "sigmoid": ({}, [math.log(4 / 3), math.log(2), math.log(4)]),
    "label smoothing": (
        {"label_smoothing": 0.25},
        [
            0.75 * math.log(4 / 3) + 0.25 * math.log(4),
            math.log(2),
            0.75 * math.log(4) + 0.25 * math.log(4 / 3),
        ],
    ),
    "ipo": ({"loss": "ipo"}, [(2 * LOG3 - 1) ** 2, 1.0, (-2 * LOG3 - 1) ** 2]),
    "hinge": ({"loss": "hinge"}, [0.0, 1.0, 1 + LOG3]),
    "nll": ({"nll_weight": 2.0}, [math.log(4 / 3) + 2, math.log(2) + 3, math.log(4) + 1 + LOG3]),
    "average": (
        {"average": True, "loss": "ipo"},
        [((1 - (1 - 2 * LOG3) / 2) - 1) ** 2, 1.0, ((1 - 2 * LOG3) / 4 - 1 - 1) ** 2],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_losses_of_three_pairs_equal_the_hand_computed_ones(case: str) -> None:
    arguments, expected = CASES[case]
    objective = DPO(beta=0.5, **arguments)
    logps, reference, lengths = (torch.tensor(numbers) for numbers in (LOGPS, REFERENCE_LOGPS, LENGTHS))
    losses = objective.losses(objective.rewards(logps, reference, lengths), logps, lengths)
    torch.testing.assert_close(losses, torch.tensor(expected))


def test_the_gradient_equals_equation_7_of_the_dpo_paper() -> None:
    """With the reward margin x, it is -beta * sigmoid(-x) for a chosen and beta * sigmoid(-x) for a rejected answer."""
    logps = torch.tensor(LOGPS, requires_grad=True)
    objective, ones = DPO(beta=0.5), torch.ones(3, 2)
    objective.losses(objective.rewards(logps, torch.tensor(REFERENCE_LOGPS), ones), logps, ones).sum().backward()
    weight = 0.5 * torch.tensor([1 / 4, 1 / 2, 3 / 4])
    torch.testing.assert_close(logps.grad, torch.stack([-weight, weight], dim=1))


class FixedLogits(nn.Module):
    """A net with fixed logits."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def hidden_states(self, pack: dict, where: Tensor) -> Tensor:
        return self.logits[where]

    def head(self, hidden: Tensor) -> Tensor:
        return hidden


def test_logged_values_of_a_pack_equal_the_hand_computed_ones() -> None:
    """One pair, with a vocabulary of two tokens: the prompt is token 0, chosen is 0 1, rejected is 1."""
    geometry = Geometry(n_mels=2, pool=2)
    pack = tree([Pair([[0]], [0, 1], [1])], geometry, reference_logps=[(-3.0, -0.5)])
    assert pack["ids"].tolist() == [0, 0, 1, 0, 1] and pack["labels"].tolist() == [0, 1, IGNORE, 1, IGNORE]
    net = FixedLogits(torch.tensor([[3.0, 1.0], [1.0, 1.0], [9.0, 9.0], [1.0, 3.0], [9.0, 9.0]]).log())
    loss, sums = DPO(beta=2.0)(net, pack)
    chosen, rejected = math.log(3 / 4) + math.log(1 / 2), math.log(3 / 4)
    margin = 2 * ((chosen + 3) - (rejected + 0.5))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-margin)))
    task_sums = dict(zip(LOSS_CURVES, sums.pop("curve_sums").T.tolist(), strict=True))
    assert task_sums.pop("preference voice_chat") == [pytest.approx(loss.item()), 1]
    assert not any(map(any, task_sums.values()))
    assert {name: value.item() for name, value in sums.items()} == pytest.approx(
        {
            "reward_margin": margin,
            "accuracy": 1,
            "kl": ((-3 - chosen) + (-0.5 - rejected)) / 2,
            "logps_chosen": chosen,
            "logps_rejected": rejected,
            "length_chosen": 2,
            "length_rejected": 1,
        }
    )


# --- the prompt tree ---


@pytest.mark.parametrize("arguments", [{}, {"average": True, "nll_weight": 0.3}], ids=["sum", "average"])
def test_loss_and_gradients_of_a_prompt_tree_equal_those_of_two_separate_sequences(
    net: AudioLM, arguments: dict
) -> None:
    objective = DPO(beta=0.3, **arguments)
    tree_result = run(objective, net, tree(build_pairs(), net.geometry, REFERENCES))
    sequences_result = run(
        objective, net, sequences(build_pairs(), net.geometry) | {"reference": torch.tensor(REFERENCES)}
    )
    torch.testing.assert_close(tree_result[0], sequences_result[0], atol=1e-5, rtol=0, check_dtype=False)
    assert_gradients_close(tree_result[2], sequences_result[2])
    for name in sequences_result[1]:
        torch.testing.assert_close(
            tree_result[1][name], sequences_result[1][name], atol=1e-4, rtol=1e-5, check_dtype=False
        )


def test_loss_and_gradients_equal_those_of_a_plain_implementation(net: AudioLM) -> None:
    """Compute each sequence separately: a log-softmax over all logits, then equation 2 of the Qwen2-Audio paper."""
    net.zero_grad()
    loss = torch.zeros(())
    for pair, (chosen_reference, rejected_reference) in zip(build_pairs(), REFERENCES, strict=True):
        logps = []
        for answer in (pair.chosen, pair.rejected):
            scores = F.log_softmax(net.logits(sequence(pair, answer, net.geometry)), dim=-1)
            positions = range(len(scores) - len(answer) - 1, len(scores) - 1)
            logps.append(sum(scores[position, token] for position, token in zip(positions, answer, strict=True)))
        x = 0.3 * (logps[0] - chosen_reference) - 0.3 * (logps[1] - rejected_reference)
        loss = loss - torch.log(torch.sigmoid(x))
    loss.backward()
    gradients = [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in net.parameters()]
    result = run(DPO(beta=0.3), net, tree(build_pairs(), net.geometry, REFERENCES))
    torch.testing.assert_close(result[0], loss.detach(), atol=1e-5, rtol=1e-6, check_dtype=False)
    assert_gradients_close(result[2], gradients)


def test_each_clip_and_each_prompt_is_computed_once(net: AudioLM) -> None:
    frames: list[list[int]] = []
    tokens: list[int] = []
    net.encoder.register_forward_hook(lambda module, args, out: frames.append(args[1].tolist()))
    net.llm.get_decoder().layers[0].register_forward_hook(lambda module, args, out: tokens.append(args[0].shape[1]))
    DPO()(net, tree(build_pairs(), net.geometry, REFERENCES))
    assert frames == [[37, 60, 8]]
    prompts = [len(row_ids(pair.prompt, net.geometry)) for pair in build_pairs()]
    answers = [len(pair.chosen) + len(pair.rejected) for pair in build_pairs()]
    # The last token of each prompt is repeated before the rejected answer.
    assert tokens == [sum(prompts) + sum(answers) + len(build_pairs())]


@torch.no_grad()
def test_the_score_of_an_answer_does_not_depend_on_the_other_answer(net: AudioLM) -> None:
    before, _ = answer_logps(net, tree(build_pairs(), net.geometry))
    changed = [replace(pair, chosen=[60, 61, *pair.chosen]) for pair in build_pairs()]
    after, lengths = answer_logps(net, tree(changed, net.geometry))
    torch.testing.assert_close(after[:, 1], before[:, 1], atol=1e-5, rtol=1e-5)
    assert not torch.isclose(after[:, 0], before[:, 0], atol=1e-2).any()
    changed = [replace(pair, rejected=[60, 61, *pair.rejected]) for pair in build_pairs()]
    after, lengths = answer_logps(net, tree(changed, net.geometry))
    torch.testing.assert_close(after[:, 0], before[:, 0], atol=1e-5, rtol=1e-5)
    assert lengths.tolist() == [[len(pair.chosen), len(pair.rejected)] for pair in changed]


@torch.no_grad()
def test_log_probabilities_of_long_prompts_use_the_rotary_angles_of_training() -> None:
    """Qwen-7B rescales rotary angles beyond its training length for generation, but not for log-probabilities."""
    net = build("qwen_audio")
    decoder = net.llm.get_decoder()
    decoder.rotary_emb = LongRotary(decoder.rotary_emb, 16)
    pack = tree([Pair([text(30)], [7, 8], [9])], net.geometry)
    without_gradient = answer_logps(net, pack)[0]
    with torch.enable_grad():
        torch.testing.assert_close(answer_logps(net, pack)[0].detach(), without_gradient, rtol=0, atol=0)
    logits = net.logits({key: value for key, value in pack.items() if key not in ("key_index", "cu_keys")})
    assert not torch.allclose(net.logits(pack), logits, atol=1e-3)  # rescaling would change the logits


def test_the_sums_of_a_pack_are_the_sums_over_its_pairs(net: AudioLM) -> None:
    objective = DPO()
    packed = run(objective, net, tree(build_pairs(), net.geometry, REFERENCES))
    single_results = [
        run(objective, net, tree([p], net.geometry, [r])) for p, r in zip(build_pairs(), REFERENCES, strict=True)
    ]
    torch.testing.assert_close(packed[0], sum(result[0] for result in single_results), atol=1e-5, rtol=1e-5)
    for name in packed[1]:
        expected = sum(result[1][name] for result in single_results)
        torch.testing.assert_close(packed[1][name].float(), expected.float(), atol=1e-4, rtol=1e-5)
    assert_gradients_close(
        packed[2], [sum(parts) for parts in zip(*(result[2] for result in single_results), strict=True)]
    )
    assert objective.count(tree(build_pairs(), net.geometry)) == 4


def test_the_chunk_size_does_not_change_loss_or_gradients(net: AudioLM, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = tree(build_pairs(), net.geometry, REFERENCES)
    unchunked = run(DPO(), net, pack)
    monkeypatch.setattr(logps_module, "POSITIONS_PER_CHUNK", 4)
    chunked = run(DPO(), net, pack)
    torch.testing.assert_close(chunked[0], unchunked[0])
    assert_gradients_close(chunked[2], unchunked[2])


def test_an_empty_pack_gives_a_loss_and_gradients_of_zero(net: AudioLM) -> None:
    """All ranks of a sharded model must run the same backward pass and log the same names."""
    empty = collate([], geometry=net.geometry)
    loss, sums, _ = run(DPO(), net, empty)
    expected_sums = DPO()(net, tree(build_pairs(), net.geometry, REFERENCES))[1]
    assert loss.item() == 0 and DPO().count(empty) == 0
    assert list(sums) == list(expected_sums) and not any(bool(value.any()) for value in sums.values())
    assert net.projector.weight.grad is not None and not net.projector.weight.grad.any()


# --- the reference ---


def test_a_live_reference_equals_its_cached_log_probabilities(net: AudioLM) -> None:
    live = DPO(reference="live")
    live.set_live_reference(deepcopy(net))
    with torch.no_grad():
        reference = answer_logps(net, tree(build_pairs(), net.geometry))[0]
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    live_result = run(live, net, tree(build_pairs(), net.geometry))
    cached_result = run(DPO(), net, tree(build_pairs(), net.geometry, [tuple(pair) for pair in reference.tolist()]))
    torch.testing.assert_close(live_result[0], cached_result[0], atol=1e-6, rtol=0)
    assert_gradients_close(live_result[2], cached_result[2], 1e-6)
    assert float(live_result[1]["reward_margin"].abs()) > 1e-3


def test_an_untrained_policy_has_zero_margin_and_zero_kl(net: AudioLM) -> None:
    live = DPO(reference="live")
    live.set_live_reference(deepcopy(net))
    loss, sums, _ = run(live, net, tree(build_pairs(), net.geometry))
    assert loss.item() == pytest.approx(4 * math.log(2))
    assert (sums["reward_margin"].item(), sums["accuracy"].item(), sums["kl"].item()) == (0, 0, 0)


def test_the_live_reference_is_neither_saved_nor_trained(net: AudioLM) -> None:
    live = DPO(reference="live")
    live.set_live_reference(deepcopy(net))
    assert live.state_dict() == {} and list(live.parameters()) == []
    run(live, net, tree(build_pairs(), net.geometry))
    assert all(parameter.grad is None for parameter in live._frozen[0].parameters())


def test_pairs_without_cached_references_are_refused(net: AudioLM) -> None:
    with pytest.raises(ValueError, match="no reference log-probabilities"):
        DPO()(net, tree(build_pairs(), net.geometry))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "logistic"}, "objective.loss=logistic: expected sigmoid or ipo or hinge"),
        ({"label_smoothing": 0.1, "loss": "ipo"}, "label_smoothing=0.1 has no effect on the ipo loss"),
        ({"reference": "none"}, "objective.reference=none: expected cached or live"),
    ],
)
def test_an_invalid_setting_is_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DPO(**arguments)


def test_the_objective_generates_the_answers_of_the_net(net: AudioLM) -> None:
    batch = sequences(build_pairs()[:1], net.geometry)
    settings = GenerationSettings(max_new_tokens=5, stop=frozenset({0}))
    assert DPO().answer(net, batch, settings) == net.generate(batch, settings)
