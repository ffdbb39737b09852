"""Alignment against torch's CTC on explicit logits, clip by clip; which parameters learn; classes and their tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from auris.audio import n_frames_with_padding
from auris.data.collate import Sample, collate
from auris.model.audio_lm import AudioLM
from auris.model.generation import GenerationSettings
from auris.training import optim
from auris.training.objectives.align import Align
from support import nets

pytestmark = pytest.mark.usefixtures("float64")

N_TEXT, PAD = 30, 33
TOKENS = (2, 3, 5, 7, 11, 29)
FRAMES = (40, 23, 61)
TARGETS = ([3, 3, 7], [2], [29, 11, 5, 5, 2])


@pytest.fixture
def net() -> AudioLM:
    torch.manual_seed(0)
    net = nets.build()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.3)
    return net


@pytest.fixture
def objective() -> Align:
    objective = Align(n_text=N_TEXT, pad=PAD, pull=0.3)
    objective.set_tokens(TOKENS)
    with torch.no_grad():
        objective.log_sharpness.fill_(0.7)
        objective.blank_bias.fill_(-0.4)
    return objective


def pack(frames=FRAMES, targets=TARGETS) -> dict:
    samples = []
    for number, (n_frames, target) in enumerate(zip(frames, targets, strict=True)):
        ids = np.array(target, dtype=np.int64)
        generator = torch.Generator().manual_seed(n_frames)
        samples.append(
            Sample(
                row=number,
                ids=ids,
                supervise=np.zeros(len(ids), dtype=bool),
                audio_mask=np.zeros(len(ids), dtype=bool),
                mels=(torch.randn(nets.N_MELS, n_frames_with_padding(n_frames), generator=generator),),
                frames=(n_frames,),
                audio_seconds=0.0,
                loss_curve="asr",
            )
        )
    return collate(samples, geometry=nets.build_meta().geometry)


def reference(net: AudioLM, objective: Align, n_frames: int, target: list[int]) -> Tensor:
    """Return the loss of one clip, from squared distances to each embedding and torch's CTC loss."""
    batch = pack([n_frames], [target])
    audio_tokens = net.encode(batch)  # this net's boundary inserts no vectors
    table = net.llm.get_input_embeddings().weight.detach()
    embeddings = torch.stack([table[token] for token in (*TOKENS, PAD)])
    spread = torch.stack([(row - embeddings.mean(0)).square().sum() for row in embeddings]).mean()
    distances = (audio_tokens[:, None] - embeddings).square().sum(-1) / spread
    logits = -objective.log_sharpness.exp() * distances
    logits = logits + objective.blank_bias * F.one_hot(torch.tensor(len(TOKENS)), len(TOKENS) + 1)
    classes = torch.tensor([[TOKENS.index(token) for token in target]])
    lengths = torch.tensor([len(audio_tokens)]), torch.tensor([len(target)])
    scores = logits.log_softmax(-1)
    ctc = F.ctc_loss(scores[:, None], classes, *lengths, blank=len(TOKENS), reduction="sum")
    return ctc + objective.pull * distances.gather(1, logits.argmax(-1, keepdim=True)).sum()


def test_the_loss_and_its_gradient_are_those_of_explicit_distances_clip_by_clip(net, objective):
    parameters = [*net.projector.parameters(), *objective.parameters()]
    loss, sums = objective(net, pack())
    expected = sum(reference(net, objective, *clip) for clip in zip(FRAMES, TARGETS, strict=True))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0, check_dtype=False)  # scores are float32
    assert int(sums["rows_too_short_for_ctc"]) == 0
    found, wanted = (torch.autograd.grad(value, parameters) for value in (loss, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_a_clip_has_the_same_scores_and_reading_in_every_pack(net, objective):
    scores, lengths = objective.scores(net, pack())
    answers = objective.answer(net, pack(), GenerationSettings(max_new_tokens=99))
    assert any(answers) and {token for answer in answers for token in answer} <= set(TOKENS)
    for clip, part in enumerate(scores.split(lengths.tolist())):
        single = pack(FRAMES[clip : clip + 1], TARGETS[clip : clip + 1])
        torch.testing.assert_close(objective.scores(net, single)[0], part, rtol=0, atol=1e-5)
        assert objective.answer(net, single, GenerationSettings(max_new_tokens=99)) == [answers[clip]]


def test_only_pooling_projector_and_the_objective_learn(net, objective):
    optim.freeze(net, ["pooling", "projector"])
    loss, _ = objective(net, pack())
    loss.backward()
    learning = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert learning == {"projector.weight", "projector.bias"}
    assert all(parameter.grad.abs().sum() > 0 for parameter in objective.parameters())


def test_an_empty_pack_has_no_loss_and_no_gradient(net, objective):
    empty = collate([], geometry=net.geometry)
    loss, _ = objective(net, empty)
    assert loss.item() == 0 and int(objective.count(empty)) == 0
    gradients = torch.autograd.grad(loss, [*net.projector.parameters(), *objective.parameters()])
    assert not any(gradient.any() for gradient in gradients)
    assert objective.answer(net, empty, GenerationSettings(max_new_tokens=1)) == []


def test_the_embedding_of_a_token_is_read_as_this_token(net, objective, monkeypatch):
    """An inner product would not do this: it prefers embeddings of large norm."""
    with torch.no_grad():
        objective.blank_bias.zero_()
    ids = objective.token_ids
    embeddings = net.llm.get_input_embeddings().weight[ids].detach()
    output = (embeddings, torch.tensor([len(ids)]), embeddings)
    monkeypatch.setattr(net, "encode_with_embeddings", lambda batch, token_ids: output)
    scores, _ = objective.scores(net, pack(FRAMES[:1], TARGETS[:1]))
    assert objective.tokens(scores.argmax(-1)) == [*TOKENS, PAD]


def test_a_token_without_a_class_is_an_error(objective):
    assert objective.classes(torch.tensor([29, 2, 11])).tolist() == [5, 0, 4]
    with pytest.raises(ValueError, match=r"no class for the tokens \[4, 30\]"):
        objective.classes(torch.tensor([2, 4, 30]))


def test_classes_are_part_of_the_state(objective):
    other = Align(n_text=N_TEXT, pad=PAD)
    other.load_state_dict(objective.state_dict())
    assert other.token_ids.tolist() == [*TOKENS, PAD] and other.blank == len(TOKENS)


def test_the_projector_learns_to_read_three_clips_from_frames_of_a_frozen_encoder(net, objective):
    optim.freeze(net, ["pooling", "projector"])
    batch = pack()
    with torch.no_grad():
        frames, _ = net.encoder_output(batch)
    del batch["mel"]
    batch["encoder_frames"] = frames
    trained = [p for module in (net, objective) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.02)
    losses = []
    for _ in range(250):
        loss, _ = objective(net, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert objective.answer(net, batch, GenerationSettings(max_new_tokens=99)) == [*map(list, TARGETS)]
    assert losses[-1] < 0.1 * losses[0]
