"""Next-token cross-entropy: a hand-computed case, chunks, and sums that do not depend on packing."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from auris.audio import Geometry
from auris.data.collate import collate
from auris.model import llm, pooling, projector
from auris.model.audio_lm import AudioLM
from auris.model.encoder import Encoder
from auris.model.generation import GenerationSettings
from auris.model.pack import IGNORE
from auris.text.tasks import LOSS_CURVES
from auris.training.objectives import logps
from auris.training.objectives.next_token import NextToken
from support.packs import VOCAB, Clip, Row, pack, text

pytestmark = pytest.mark.usefixtures("float64")

QWEN2 = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}


class FixedLogits(nn.Module):
    """A net with fixed hidden states, which also serve as logits."""

    def __init__(self, logits: list[list[float]]):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.n_computed: list[int] = []

    def hidden_states(self, pack: dict, where: Tensor) -> Tensor:
        return self.logits[where]

    def head(self, hidden: Tensor) -> Tensor:
        self.n_computed.append(len(hidden))
        return hidden


@pytest.fixture(scope="module")
def net() -> AudioLM:
    torch.manual_seed(0)
    return AudioLM(
        encoder=Encoder(n_mels=16, width=16, n_layers=1, n_heads=2, ffn=24),
        pooling=partial(pooling.Mean, k=2),
        projector=projector.Linear,
        llm=partial(llm.build_llm, QWEN2),
        vocab_size=VOCAB,
    )


def rows() -> list[Row]:
    return [[text(2), Clip(37), text(4)], [text(9)], [Clip(60), text(2), Clip(8), text(5)]]


def run(net: nn.Module, batch: dict) -> tuple[Tensor, int, int, list[Tensor]]:
    """Return the loss of a pack, its number of correct and of supervised tokens, and the gradients."""
    objective = NextToken()
    net.zero_grad()
    loss, sums = objective(net, batch)
    loss.backward()
    gradients = [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in net.parameters()]
    return loss.detach(), int(sums["accuracy"]), int(objective.count(batch)), gradients


def test_loss_and_gradient_equal_the_hand_computed_ones():
    net = FixedLogits([[0.0, 0.0, math.log(2.0)], [9.0, 9.0, 9.0], [math.log(6.0), math.log(3.0), 0.0]])
    batch = {"labels": torch.tensor([2, IGNORE, 1])}
    loss, correct, count, (gradient,) = run(net, batch)
    # softmax: (1/4, 1/4, 1/2) and (6/10, 3/10, 1/10)
    assert loss.item() == pytest.approx(-math.log(1 / 2) - math.log(3 / 10))
    assert (correct, count) == (1, 2)
    expected = torch.tensor([[0.25, 0.25, -0.5], [0, 0, 0], [0.6, -0.7, 0.1]])
    torch.testing.assert_close(gradient, expected)


def test_the_loss_of_a_task_sums_over_its_rows():
    """The rows have one, two and one supervised tokens. The first and the last row have the same task."""
    asr, aac = (LOSS_CURVES.index(code) for code in ("asr", "aac"))
    probabilities = [1 / 2, 1 / 4, 1 / 8, 1 / 16]
    net = FixedLogits(
        [[math.log(p), math.log(1 - p)] for p in (probabilities[0], 0.5, *probabilities[1:3], 0.5, probabilities[3])]
    )
    batch = {
        "labels": torch.tensor([0, IGNORE, 0, 0, IGNORE, 0]),
        "cu_seqlens": torch.tensor([0, 2, 5, 6], dtype=torch.int32),
        "loss_curves": torch.tensor([asr, aac, asr]),
    }
    loss, sums = NextToken()(net, batch)
    losses, tokens = sums["curve_sums"]
    assert not sums["curve_sums"].requires_grad
    expected = torch.tensor([1.0 + 4.0, 2.0 + 3.0])
    torch.testing.assert_close(losses[[asr, aac]] / math.log(2), expected, check_dtype=False)
    assert tokens[[asr, aac]].tolist() == [2, 2] and tokens.sum() == 4
    torch.testing.assert_close(losses.sum(), loss.detach())


def test_logits_are_computed_only_at_positions_with_a_label():
    net = FixedLogits([[0.0, 1.0]] * 7)
    NextToken()(net, {"labels": torch.tensor([IGNORE, 1, IGNORE, 0, IGNORE, IGNORE, 1])})
    assert net.n_computed == [3]


def test_chunks_change_neither_the_loss_nor_the_gradients(net, monkeypatch):
    batch = pack(rows(), net.geometry)
    unchunked = run(net, batch)
    monkeypatch.setattr(logps, "POSITIONS_PER_CHUNK", 4)
    chunked = run(net, batch)
    assert unchunked[2] > 3 * 4  # several chunks
    assert unchunked[2] % 4  # the last chunk is shorter
    torch.testing.assert_close(chunked[0], unchunked[0])
    assert chunked[1:3] == unchunked[1:3]
    torch.testing.assert_close(chunked[3], unchunked[3])


def test_logits_are_computed_one_chunk_at_a_time(monkeypatch):
    monkeypatch.setattr(logps, "POSITIONS_PER_CHUNK", 3)
    net = FixedLogits([[0.0, 1.0]] * 8)
    NextToken()(net, {"labels": torch.ones(8, dtype=torch.long)})
    assert net.n_computed == [3, 3, 2]


def test_the_sums_of_a_pack_are_the_sums_over_its_rows(net):
    packed = run(net, pack(rows(), net.geometry))
    single_results = [run(net, pack([row], net.geometry)) for row in rows()]
    torch.testing.assert_close(packed[0], sum(result[0] for result in single_results))
    assert packed[1] == sum(result[1] for result in single_results)
    assert packed[2] == sum(result[2] for result in single_results)
    expected = [sum(parts) for parts in zip(*(result[3] for result in single_results), strict=True)]
    torch.testing.assert_close(packed[3], expected)


def test_an_empty_pack_gives_every_part_a_gradient_of_zero(net):
    """All ranks of a sharded model must run the same backward pass."""
    empty = collate([], geometry=Geometry(n_mels=16, pool=2))
    loss, correct, count, gradients = run(net, empty)
    assert (loss.item(), correct, count) == (0.0, 0, 0)
    # Sums must have the same shape on all ranks.
    assert NextToken()(net, empty)[1]["curve_sums"].tolist() == [[0] * len(LOSS_CURVES)] * 2
    assert all(not gradient.any() for gradient in gradients)
    assert net.projector.weight.grad is not None and net.encoder.conv1.weight.grad is not None


def test_the_dummy_clip_of_a_text_pack_does_not_change_the_loss(net):
    batch = pack([[text(9)]], net.geometry)
    with_dummy_clip = NextToken()(net, batch)[0]
    without_clip = NextToken()(net, {key: value for key, value in batch.items() if key not in ("mel", "frames")})[0]
    torch.testing.assert_close(with_dummy_clip, without_clip)


def test_the_objective_generates_the_answers_of_the_net(net):
    batch = pack([[Clip(37), text(4)]], net.geometry)
    answers = NextToken().answer(net, batch, GenerationSettings(max_new_tokens=5, stop=frozenset({0})))
    assert answers == net.generate(batch, GenerationSettings(max_new_tokens=5, stop=frozenset({0})))
