"""AudioLM: audio embeddings among text embeddings, independent rows, generation, and the meta device."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from auris.model import boundary, llm, pooling, projector
from auris.model.audio_lm import AudioLM
from auris.model.encoder import Encoder
from auris.model.generation import GenerationSettings
from support.packs import VOCAB, Clip, Row, pack, text

pytestmark = pytest.mark.usefixtures("float64")

POOLINGS = {
    "mean": partial(pooling.Mean, k=2),
    "conv": partial(pooling.Conv, k=2),
    "attention": partial(pooling.Attention, k=4, n_heads=2),
    "stack": partial(pooling.Stack, k=2),
    "none": partial(pooling.Stack, k=1),
}
QWEN2 = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,  # wide enough that greedy answers differ from row to row
}


def build(pool: str = "mean", project: type[nn.Module] = projector.Linear, *, qwen_audio: bool = False) -> AudioLM:
    """Return a tiny net. `qwen_audio`: with the padding after clips and the learned boundary vectors of Qwen-Audio."""
    return AudioLM(
        encoder=Encoder(
            n_mels=16, width=24, n_layers=2, n_heads=2, ffn=40, clip_end="zero" if qwen_audio else "silence"
        ),
        pooling=POOLINGS[pool],
        projector=project,
        boundary=boundary.Learned if qwen_audio else boundary.Tokens,
        llm=partial(llm.build_llm, QWEN2),
        vocab_size=VOCAB,
    )


@pytest.fixture(scope="module", params=[*POOLINGS, "qwen_audio"])
def net(request: pytest.FixtureRequest) -> AudioLM:
    torch.manual_seed(0)
    if request.param == "qwen_audio":
        return build(qwen_audio=True)
    return build(request.param, projector.MLP if request.param == "stack" else projector.Linear)


@pytest.fixture(scope="module")
def mean_net() -> AudioLM:
    torch.manual_seed(0)
    return build()


def rows() -> list[Row]:
    return [
        [text(3), Clip(37), text(4)],
        [text(9)],
        [Clip(100), text(2), Clip(3), text(1), Clip(58), text(5)],
        [text(1), Clip(201), text(2)],
    ]


def by_row(packed: torch.Tensor, batch: dict) -> list[torch.Tensor]:
    return list(packed.split(batch["cu_seqlens"].diff().tolist()))


@torch.no_grad()
def test_audio_embeddings_replace_only_the_placeholders(net: AudioLM) -> None:
    batch = pack(rows(), net.geometry)
    x, text_embeddings = net.embed(batch), net.llm.get_input_embeddings()(batch["ids"])
    index = batch["audio_index"]
    assert torch.equal(x[index], net.encode(batch))
    is_text = torch.ones(len(x), dtype=torch.bool).index_fill(0, index, False)
    assert (
        torch.equal(x[is_text], text_embeddings[is_text])
        and not torch.isclose(x[index], text_embeddings[index]).all(1).any()
    )


@torch.no_grad()
def test_the_logits_of_a_row_do_not_depend_on_other_rows(net: AudioLM) -> None:
    batch = pack(rows(), net.geometry)
    batched = by_row(net.logits(batch), batch)
    order = [2, 0, 3, 1]
    batch = pack([rows()[i] for i in order], net.geometry)
    permuted = by_row(net.logits(batch), batch)
    for position, i in enumerate(order):
        torch.testing.assert_close(permuted[position], batched[i], atol=1e-5, rtol=0)
        single = net.logits(pack([rows()[i]], net.geometry))
        torch.testing.assert_close(batched[i], single, atol=1e-5, rtol=0)


def test_the_gradient_of_a_row_reaches_only_its_own_clips(mean_net: AudioLM) -> None:
    batch = pack(rows(), mean_net.geometry)
    batch["mel"].requires_grad_()
    h = by_row(mean_net(batch), batch)
    (grad,) = torch.autograd.grad(h[2].square().sum(), batch["mel"])
    frames_with_padding = [39, 102, 5, 60, 203]  # two frames of silence follow each clip
    assert [bool(part.any()) for part in grad.split(frames_with_padding, dim=1)] == [False, True, True, True, False]


def test_the_dummy_clip_gives_the_encoder_zero_gradients(mean_net: AudioLM) -> None:
    """A pack without audio contains a dummy clip, so that every rank runs the encoder."""
    mean_net.zero_grad()
    batch = pack([[text(9)], [text(5)]], mean_net.geometry)
    assert batch["mel"].shape[1] > 0 and len(batch["audio_index"]) == 0
    h = mean_net(batch)
    h.square().sum().backward()
    audio_parameters = [p for part in (mean_net.encoder, mean_net.projector) for p in part.parameters()]
    assert all(p.grad is not None and not p.grad.any() for p in audio_parameters)
    batch_without_audio = {key: value for key, value in batch.items() if key not in ("mel", "frames")}
    assert torch.equal(mean_net(batch_without_audio), h)


def test_gradients_reach_every_parameter(net: AudioLM) -> None:
    net.zero_grad()
    net.logits(pack(rows(), net.geometry)).square().sum().backward()
    no_gradient = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    # Attention pooling starts with a zero query, which gives no gradient to its keys.
    assert no_gradient == (["pooling.key.weight"] if isinstance(net.pooling, pooling.Attention) else [])


def greedy(net: AudioLM, row: Row, n: int) -> list[int]:
    """Decode one row greedily without a cache."""
    tokens: list[int] = []
    for _ in range(n):
        tokens.append(int(net.logits(pack([[*row, tokens]] if tokens else [row], net.geometry))[-1].argmax()))
    return tokens


@torch.no_grad()
def test_batched_generation_equals_greedy_decoding_of_each_row(net: AudioLM) -> None:
    expected = [greedy(net, row, 8) for row in rows()]
    assert net.generate(pack(rows(), net.geometry), GenerationSettings(max_new_tokens=8)) == expected


def test_a_row_stops_at_its_own_stop_token(mean_net: AudioLM) -> None:
    batch = pack(rows(), mean_net.geometry)
    unstopped = mean_net.generate(batch, GenerationSettings(max_new_tokens=20))
    assert [len(answer) for answer in unstopped] == [20] * 4
    stop = {unstopped[0][3], unstopped[2][6]}
    expected = [answer[: next((i for i, t in enumerate(answer) if t in stop), None)] for answer in unstopped]
    assert len({len(answer) for answer in expected}) > 1
    assert mean_net.generate(batch, GenerationSettings(max_new_tokens=20, stop=frozenset(stop))) == expected


def test_min_new_tokens_forbids_an_early_stop(mean_net: AudioLM) -> None:
    batch = pack(rows(), mean_net.geometry)
    first = {answer[0] for answer in mean_net.generate(batch, GenerationSettings(max_new_tokens=1))}
    assert mean_net.generate(batch, GenerationSettings(max_new_tokens=4, stop=frozenset(first))) == [[], [], [], []]
    answers = mean_net.generate(batch, GenerationSettings(max_new_tokens=4, stop=frozenset(first), min_new_tokens=2))
    assert all(len(answer) >= 2 and not first & set(answer) for answer in answers)


@pytest.mark.parametrize("pool", POOLINGS)
def test_a_model_built_on_the_meta_device_equals_one_built_in_memory(pool: str) -> None:
    eager = build(pool)
    with torch.device("meta"):
        net = build(pool)
    assert net.geometry == eager.geometry
    net.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*net.parameters(), *net.buffers()]:
            tensor.fill_(torch.nan)
    for part in (net.encoder, net.pooling, net.projector):
        for module in part.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    llm.reset_parameters(net.llm)
    assert all(p.isfinite().all() for p in net.parameters())
    buffers = dict(eager.named_buffers())
    assert [name for name, _ in net.named_buffers()] == list(buffers)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in net.named_buffers())
    assert net.state_dict().keys() == eager.state_dict().keys()


@torch.no_grad()
def test_learned_boundary_vectors_enclose_each_clip() -> None:
    torch.manual_seed(0)
    net = build(qwen_audio=True)
    batch = pack(rows(), net.geometry)
    x = net.embed(batch)[batch["audio_index"]]
    spans = [net.geometry.n_tokens(n) + 2 for n in batch["frames"].tolist()]
    for clip in x.split(spans):
        assert torch.equal(clip[[0, -1]], net.boundary.weight)


def test_rotary_angles_are_rescaled_only_for_rows_beyond_the_training_length_and_only_at_inference() -> None:
    torch.manual_seed(0)
    rescaling = AudioLM(
        encoder=Encoder(n_mels=16, width=24, n_layers=2, n_heads=2, ffn=40),
        pooling=POOLINGS["mean"],
        projector=projector.Linear,
        llm=partial(llm.build_llm, QWEN2, train_length=16),
        vocab_size=VOCAB,
    )
    plain = build()
    plain.load_state_dict(rescaling.state_dict())
    batch = pack([[text(40)], [text(12)]], rescaling.geometry)
    tolerance = {"rtol": 1.3e-6, "atol": 1e-5}  # float32 tolerance: the rotary cosines and sines are float32
    torch.testing.assert_close(rescaling.logits(batch), plain.logits(batch), **tolerance)
    with torch.no_grad():
        rescaled, unscaled = (by_row(net.logits(batch), batch) for net in (rescaling, plain))
        assert (rescaled[0] - unscaled[0]).abs().max() > 1e-3
        torch.testing.assert_close(rescaled[1], unscaled[1], **tolerance)


def test_train_length_is_refused_for_an_llm_that_is_not_qwen2() -> None:
    config = {**QWEN2, "model_type": "llama"}
    with pytest.raises(ValueError, match="model.llm.train_length=2048: expected null, because llama"):
        llm.build_llm(config, VOCAB, train_length=2048)
