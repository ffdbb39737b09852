"""In bf16-mixed, losses, gradients and responses differ from those in float32 only by rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from auris.model.audio_lm import AudioLM
from auris.model.generation import GenerationSettings
from auris.training.objectives.ctc import CTC
from auris.training.objectives.dpo import DPO, answer_logps
from auris.training.objectives.next_token import NextToken
from auris.training.objectives.objective import Objective
from support import nets
from support.packs import VOCAB, Clip, Row, pack, text
from support.preferences import Pair, tree

LOSS_ERROR = 1e-2  # relative


def bf16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.fixture(params=["qwen2_audio", "qwen_audio"])
def net(request: pytest.FixtureRequest) -> AudioLM:
    """Return a net with small weights, as a trained net has them: errors do not grow from layer to layer."""
    torch.manual_seed(0)
    net = nets.build(request.param, vocab=VOCAB)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.15)
    return net


def rows() -> list[Row]:
    return [[text(3), clip(37), text(14)], [text(9)], [text(2), clip(60), text(2), clip(8), text(25)]]


def clip(frames: int) -> Clip:
    return Clip(frames, nets.N_MELS)


def next_token(net: AudioLM) -> tuple[Objective, dict]:
    return NextToken(), pack(rows(), net.geometry)


def ctc(net: AudioLM) -> tuple[Objective, dict]:
    batch = pack([[clip(120), text(6)], [clip(80), text(3)]], net.geometry)
    batch["ids"] = torch.tensor([*text(6), *text(3)])
    batch["cu_seqlens"] = torch.tensor([0, 6, 9], dtype=torch.int32)
    return CTC(width=nets.WIDTH, n_text=VOCAB), batch


def dpo(net: AudioLM) -> tuple[Objective, dict]:
    pairs = [
        Pair([text(3), clip(37), text(4)], [7, 8, 9, 10], [7, 8, 30]),
        Pair([text(9)], [40], [41, 42, 43, 44, 45]),
    ]
    batch = tree(pairs, net.geometry)
    with torch.no_grad():
        batch["reference"] = answer_logps(net, batch)[0] + torch.tensor([[1.0, -2.0], [-3.0, 1.0]])
    return DPO(), batch


def losses_and_gradients(objective: Objective, net: nn.Module, batch: dict) -> list[tuple[Tensor, Tensor]]:
    """Return the loss and the gradient of all weights, in float32 and in bf16."""
    results = []
    for precision in (torch.autocast("cpu", enabled=False), bf16()):
        net.zero_grad()
        with precision:
            loss, _ = objective(net, batch)
        assert loss.dtype == torch.float32
        loss.backward()
        gradients = [p.grad.flatten() for p in net.parameters() if p.grad is not None]
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        results.append((loss.detach(), torch.cat(gradients)))
    return results


@pytest.mark.parametrize("case", [next_token, ctc, dpo])
def test_losses_and_gradients_are_close_to_those_in_float32(net, case: Callable[[AudioLM], tuple[Objective, dict]]):
    objective, batch = case(net)
    (expected, gradient), (loss, bf16_gradient) = losses_and_gradients(objective, net, batch)
    assert loss != expected
    assert loss.item() == pytest.approx(expected.item(), rel=LOSS_ERROR)
    assert torch.cosine_similarity(gradient, bf16_gradient, dim=0) > 0.999


def test_rows_of_a_pack_do_not_interact(net):
    def loss(batch: list[Row]) -> float:
        with torch.no_grad(), bf16():
            return NextToken()(net, pack(batch, net.geometry))[0].item()

    assert loss(rows()) == pytest.approx(sum(loss([row]) for row in rows()), rel=LOSS_ERROR)


def test_greedy_tokens_are_nearly_the_most_likely_tokens_in_float32(net):
    prompts = [[text(3), clip(37), text(4)], [text(9)]]
    with bf16():
        responses = net.generate(pack(prompts, net.geometry), GenerationSettings(max_new_tokens=8))
    assert [len(response) for response in responses] == [8, 8]
    for prompt, response in zip(prompts, responses, strict=True):
        with torch.no_grad():
            logits = net.logits(pack([[*prompt, response]], net.geometry))[-9:-1]
        chosen = logits.gather(1, torch.tensor(response)[:, None])[:, 0]
        assert (logits.amax(1) - chosen).max() < 0.05 * logits.std()
