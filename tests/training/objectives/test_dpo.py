"""Preference losses: cases by hand, the tree against two sequences, the reference from a table and from a model."""

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
from auris.text.tasks import CURVES
from auris.training.objectives import logps as logps_module
from auris.training.objectives.dpo import DPO, answer_logps
from support import nets
from support.packs import Clip, expand, text
from support.preferences import Pair, sequence, sequences, tree

pytestmark = pytest.mark.usefixtures("float64")

VOCAB = 96


def build(system: str, phase: int = 0, **config: object) -> AudioLM:
    """A net whose weights are small enough for its answers to be compared."""
    torch.manual_seed(phase)
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


def pairs() -> list[Pair]:
    """One clip, none, several; answers that begin alike, one of a single token, a prompt of one."""
    return [
        Pair([text(3), clip(37), text(4)], [7, 8, 9, 10], [7, 8, 30]),
        Pair([text(9)], [40], [41, 42, 43, 44, 45]),
        Pair([text(2), clip(60), text(2), clip(8), text(5)], text(6, 1), text(6, 2)),
        Pair([[50]], [51, 52], [53]),
    ]


# Of these pairs, as some reference model might have them.
REFERENCES = [(-9.0, -8.0), (-5.0, -19.0), (-31.0, -28.0), (-7.0, -4.0)]


def run(objective: DPO, net: nn.Module, pack: dict) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
    """Loss, sums, and gradients of all parameters."""
    net.zero_grad()
    loss, sums = objective(net, pack)
    loss.backward()
    gradients = [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in net.parameters()]
    return loss.detach(), sums, gradients


def assert_close(left: list[Tensor], right: list[Tensor], tolerance: float = 1e-5) -> None:
    """Relative to the largest gradient: the smallest ones are differences of large numbers."""
    scale = max(float(gradient.abs().max()) for gradient in right)
    assert scale > 0
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance * scale, rtol=0)


# --- by hand ---

# Of three pairs: beta * (log-ratio of the chosen - log-ratio of the rejected) = log 3, 0, -log 3 with beta = 1/2.
LOGPS = [[-1.0, -2.0 - 2 * math.log(3)], [-3.0, -4.0], [-2.0 - 2 * math.log(3), -1.0]]
REFERENCE = [[-2.0, -3.0], [-5.0, -6.0], [-3.0, -2.0]]
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
def test_the_losses_of_three_pairs_equal_hand_computed_ones(case: str) -> None:
    arguments, expected = CASES[case]
    objective = DPO(beta=0.5, **arguments)
    logps, reference, lengths = (torch.tensor(numbers) for numbers in (LOGPS, REFERENCE, LENGTHS))
    losses = objective.losses(objective.rewards(logps, reference, lengths), logps, lengths)
    torch.testing.assert_close(losses, torch.tensor(expected))


def test_the_gradient_is_that_of_equation_7_of_the_dpo_paper() -> None:
    """beta * sigmoid(-x), down for the chosen answer's log-probability and up for the rejected one's."""
    logps = torch.tensor(LOGPS, requires_grad=True)
    objective, ones = DPO(beta=0.5), torch.ones(3, 2)
    objective.losses(objective.rewards(logps, torch.tensor(REFERENCE), ones), logps, ones).sum().backward()
    weight = 0.5 * torch.tensor([1 / 4, 1 / 2, 3 / 4])
    torch.testing.assert_close(logps.grad, torch.stack([-weight, weight], dim=1))


class Given(nn.Module):
    """A net whose logits are given."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def hidden_states(self, pack: dict, where: Tensor) -> Tensor:
        return self.logits[where]

    def head(self, hidden: Tensor) -> Tensor:
        return hidden


def test_a_pack_is_logged_as_it_is_by_hand() -> None:
    """One pair over two tokens: the prompt is token 0; chosen is 0 1, rejected is 1."""
    geometry = Geometry(n_mels=2, pool=2)
    pack = tree([Pair([[0]], [0, 1], [1])], geometry, references=[(-3.0, -0.5)])
    assert pack["ids"].tolist() == [0, 0, 1, 0, 1] and pack["labels"].tolist() == [0, 1, IGNORE, 1, IGNORE]
    net = Given(torch.tensor([[3.0, 1.0], [1.0, 1.0], [9.0, 9.0], [1.0, 3.0], [9.0, 9.0]]).log())
    loss, sums = DPO(beta=2.0)(net, pack)
    chosen, rejected = math.log(3 / 4) + math.log(1 / 2), math.log(3 / 4)
    margin = 2 * ((chosen + 3) - (rejected + 0.5))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-margin)))
    counted = dict(zip(CURVES, sums.pop("tasks").T.tolist(), strict=True))
    assert counted.pop("preference voice_chat") == [pytest.approx(loss.item()), 1]
    assert not any(map(any, counted.values()))
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


# --- the tree ---


@pytest.mark.parametrize("arguments", [{}, {"average": True, "nll_weight": 0.3}], ids=["sum", "average"])
def test_the_tree_is_the_two_sequences(net: AudioLM, arguments: dict) -> None:
    objective = DPO(beta=0.3, **arguments)
    one = run(objective, net, tree(pairs(), net.geometry, REFERENCES))
    two = run(objective, net, sequences(pairs(), net.geometry) | {"reference": torch.tensor(REFERENCES)})
    torch.testing.assert_close(one[0], two[0], atol=1e-5, rtol=0, check_dtype=False)
    assert_close(one[2], two[2])
    for name in two[1]:
        torch.testing.assert_close(one[1][name], two[1][name], atol=1e-4, rtol=1e-5, check_dtype=False)


def test_the_loss_and_gradients_are_those_of_a_plain_implementation(net: AudioLM) -> None:
    """Each sequence alone, all its logits, a log-softmax over them, and equation 2 of the Qwen2-Audio paper."""
    net.zero_grad()
    loss = torch.zeros(())
    for pair, (of_chosen, of_rejected) in zip(pairs(), REFERENCES, strict=True):
        likelihoods = []
        for answer in (pair.chosen, pair.rejected):
            scores = F.log_softmax(net.logits(sequence(pair, answer, net.geometry)), dim=-1)
            predicting = range(len(scores) - len(answer) - 1, len(scores) - 1)
            likelihoods.append(sum(scores[place, token] for place, token in zip(predicting, answer, strict=True)))
        x = 0.3 * (likelihoods[0] - of_chosen) - 0.3 * (likelihoods[1] - of_rejected)
        loss = loss - torch.log(torch.sigmoid(x))
    loss.backward()
    gradients = [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in net.parameters()]
    ours = run(DPO(beta=0.3), net, tree(pairs(), net.geometry, REFERENCES))
    torch.testing.assert_close(ours[0], loss.detach(), atol=1e-5, rtol=1e-6, check_dtype=False)
    assert_close(ours[2], gradients)


def test_each_clip_goes_through_the_encoder_once_and_each_prompt_through_the_llm(net: AudioLM) -> None:
    frames: list[list[int]] = []
    tokens: list[int] = []
    net.encoder.register_forward_hook(lambda module, args, out: frames.append(args[1].tolist()))
    net.llm.get_decoder().layers[0].register_forward_hook(lambda module, args, out: tokens.append(args[0].shape[1]))
    DPO()(net, tree(pairs(), net.geometry, REFERENCES))
    assert frames == [[37, 60, 8]]
    prompts = [len(expand(pair.prompt, net.geometry)) for pair in pairs()]
    answers = [len(pair.chosen) + len(pair.rejected) for pair in pairs()]
    assert tokens == [sum(prompts) + sum(answers) + len(pairs())]  # a prompt's last token begins both answers


@torch.no_grad()
def test_neither_answer_sees_the_other(net: AudioLM) -> None:
    before, _ = answer_logps(net, tree(pairs(), net.geometry))
    other = [replace(pair, chosen=[60, 61, *pair.chosen]) for pair in pairs()]
    after, lengths = answer_logps(net, tree(other, net.geometry))
    torch.testing.assert_close(after[:, 1], before[:, 1], atol=1e-5, rtol=1e-5)
    assert not torch.isclose(after[:, 0], before[:, 0], atol=1e-2).any()
    other = [replace(pair, rejected=[60, 61, *pair.rejected]) for pair in pairs()]
    after, lengths = answer_logps(net, tree(other, net.geometry))
    torch.testing.assert_close(after[:, 0], before[:, 0], atol=1e-5, rtol=1e-5)
    assert lengths.tolist() == [[len(pair.chosen), len(pair.rejected)] for pair in other]


@torch.no_grad()
def test_a_long_prompt_is_scored_as_in_training_by_policy_and_reference() -> None:
    """Qwen-7B's angles beyond its training length are for answers, not for log-probabilities that are compared."""
    net = build("qwen_audio")
    decoder = net.llm.get_decoder()
    decoder.rotary_emb = LongRotary(decoder.rotary_emb, 16)
    pack = tree([Pair([text(30)], [7, 8], [9])], net.geometry)
    without_gradient = answer_logps(net, pack)[0]
    with torch.enable_grad():
        torch.testing.assert_close(answer_logps(net, pack)[0].detach(), without_gradient, rtol=0, atol=0)
    logits = net.logits({key: value for key, value in pack.items() if key not in ("key_index", "cu_keys")})
    assert not torch.allclose(net.logits(pack), logits, atol=1e-3)  # there is something to be wrong about


def test_a_packs_sums_are_those_of_its_pairs_alone(net: AudioLM) -> None:
    objective = DPO()
    together = run(objective, net, tree(pairs(), net.geometry, REFERENCES))
    alone = [run(objective, net, tree([p], net.geometry, [r])) for p, r in zip(pairs(), REFERENCES, strict=True)]
    torch.testing.assert_close(together[0], sum(one[0] for one in alone), atol=1e-5, rtol=1e-5)
    for name in together[1]:
        added = sum(one[1][name] for one in alone)
        torch.testing.assert_close(together[1][name].float(), added.float(), atol=1e-4, rtol=1e-5)
    assert_close(together[2], [sum(parts) for parts in zip(*(one[2] for one in alone), strict=True)])
    assert objective.count(tree(pairs(), net.geometry)) == 4


def test_chunks_change_nothing(net: AudioLM, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = tree(pairs(), net.geometry, REFERENCES)
    whole = run(DPO(), net, pack)
    monkeypatch.setattr(logps_module, "CHUNK", 4)
    chunked = run(DPO(), net, pack)
    torch.testing.assert_close(chunked[0], whole[0])
    assert_close(chunked[2], whole[2])


def test_an_empty_pack_contributes_nothing_but_reaches_every_part(net: AudioLM) -> None:
    """Ranks of a sharded model must all run the same backward, and log the same names."""
    empty = collate([], geometry=net.geometry)
    loss, sums, _ = run(DPO(), net, empty)
    full = DPO()(net, tree(pairs(), net.geometry, REFERENCES))[1]
    assert loss.item() == 0 and DPO().count(empty) == 0
    assert list(sums) == list(full) and not any(bool(value.any()) for value in sums.values())
    assert net.projector.weight.grad is not None and not net.projector.weight.grad.any()


# --- the reference ---


def test_a_frozen_copy_and_its_numbers_are_the_same_reference(net: AudioLM) -> None:
    live = DPO(reference="live")
    live.freeze(deepcopy(net))
    with torch.no_grad():
        reference = answer_logps(net, tree(pairs(), net.geometry))[0]
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    one = run(live, net, tree(pairs(), net.geometry))
    two = run(DPO(), net, tree(pairs(), net.geometry, [tuple(pair) for pair in reference.tolist()]))
    torch.testing.assert_close(one[0], two[0], atol=1e-6, rtol=0)
    assert_close(one[2], two[2], 1e-6)
    assert float(one[1]["reward_margin"].abs()) > 1e-3


def test_the_policy_starts_at_its_reference(net: AudioLM) -> None:
    live = DPO(reference="live")
    live.freeze(deepcopy(net))
    loss, sums, _ = run(live, net, tree(pairs(), net.geometry))
    assert loss.item() == pytest.approx(4 * math.log(2))
    assert (sums["reward_margin"].item(), sums["accuracy"].item(), sums["kl"].item()) == (0, 0, 0)


def test_a_frozen_copy_is_neither_saved_nor_trained(net: AudioLM) -> None:
    live = DPO(reference="live")
    live.freeze(deepcopy(net))
    assert live.state_dict() == {} and list(live.parameters()) == []
    run(live, net, tree(pairs(), net.geometry))
    assert all(parameter.grad is None for parameter in live._frozen[0].parameters())


def test_pairs_without_a_reference_are_refused(net: AudioLM) -> None:
    with pytest.raises(ValueError, match="no reference log-probabilities"):
        DPO()(net, tree(pairs(), net.geometry))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 0.0}, "objective.beta=0.0: expected a number above 0"),
        ({"beta": -0.1}, "objective.beta=-0.1"),
        ({"beta": math.nan}, "objective.beta=nan"),
        ({"beta": "high"}, "objective.beta='high': expected a number"),
        ({"nll_weight": None}, "objective.nll_weight=None: expected a number"),
        ({"loss": "logistic"}, "objective.loss=logistic: expected sigmoid or ipo or hinge"),
        ({"label_smoothing": 0.5}, "objective.label_smoothing=0.5"),
        ({"label_smoothing": 0.1, "loss": "ipo"}, "label_smoothing=0.1 has no effect on the ipo loss"),
        ({"nll_weight": -1.0}, "objective.nll_weight=-1.0"),
        ({"reference": "none"}, "objective.reference=none: expected cached or live"),
    ],
)
def test_a_wrong_setting_is_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DPO(**arguments)


def test_answers_are_those_of_the_net(net: AudioLM) -> None:
    batch = sequences(pairs()[:1], net.geometry)
    settings = GenerationSettings(max_new_tokens=5, stop=frozenset({0}))
    assert DPO().answer(net, batch, settings) == net.generate(batch, settings)
