"""Every pooling: its windows, its number of tokens, and no effect of one clip on another."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from auris.audio import Geometry
from auris.model import pooling

pytestmark = pytest.mark.usefixtures("float64")

WIDTH = 12
POOLINGS = {
    "mean": partial(pooling.Mean, k=2),
    "mean3": partial(pooling.Mean, k=3),
    "conv": partial(pooling.Conv, k=2),
    "conv4": partial(pooling.Conv, k=4, kernel=7),
    "attention": partial(pooling.Attention, k=2, n_heads=3),
    "stack": partial(pooling.Stack, k=2),
    "stack5": partial(pooling.Stack, k=5),
    "none": partial(pooling.Stack, k=1),
}
MEL_FRAMES = [9, 1, 22, 23, 4, 37]  # odd and even lengths, and one clip too short for a token


@pytest.fixture(params=POOLINGS)
def pool(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    part = POOLINGS[request.param](width=WIDTH)
    for parameter in part.parameters():  # with the initial zero query, attention ignores its keys
        torch.nn.init.normal_(parameter)
    return part


@pytest.fixture
def clips() -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([(n - 1) // 2 + 1 for n in MEL_FRAMES])
    return torch.randn(int(lengths.sum()), WIDTH, generator=torch.Generator().manual_seed(1)), lengths


def test_the_number_of_tokens_equals_that_of_geometry_n_tokens(pool: torch.nn.Module, clips: tuple) -> None:
    out, n_tokens = pool(*clips)
    geometry = Geometry(n_mels=80, pool=pool.k)
    assert n_tokens.tolist() == [geometry.n_tokens(n) for n in MEL_FRAMES]
    assert out.shape == (sum(n_tokens), pool.vectors_per_token, WIDTH)


def test_pooling_a_clip_does_not_depend_on_other_clips(pool: torch.nn.Module, clips: tuple) -> None:
    x, lengths = clips
    out, n_tokens = pool(x, lengths)
    for clip, expected in zip(x.split(lengths.tolist()), out.split(n_tokens.tolist()), strict=True):
        torch.testing.assert_close(pool(clip, torch.tensor([len(clip)]))[0], expected, atol=1e-6, rtol=1e-5)


def test_gradients_of_a_token_reach_only_its_own_clip(pool: torch.nn.Module, clips: tuple) -> None:
    x, lengths = clips
    x = x.clone().requires_grad_()
    out, n_tokens = pool(x, lengths)
    pooled_clip = out.split(n_tokens.tolist())[3]
    (grad,) = torch.autograd.grad(pooled_clip.square().sum(), x)
    has_gradient = [bool(part.any()) for part in grad.split(lengths.tolist())]
    assert has_gradient == [False, False, False, True, False, False]


def test_gradients_reach_every_parameter_and_every_frame_of_a_window(pool: torch.nn.Module, clips: tuple) -> None:
    x, lengths = clips[0].clone().requires_grad_(), clips[1]
    pool(x, lengths)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in pool.parameters())
    for frames in x.grad.split(lengths.tolist()):
        assert frames[: len(frames) // pool.k * pool.k].any(dim=1).all()


def test_mean_pooling_equals_average_pooling_of_each_clip(clips: tuple) -> None:
    out, _tokens = pooling.Mean(k=2, width=WIDTH)(*clips)
    long_clips = [clip for clip in clips[0].split(clips[1].tolist()) if len(clip) > 1]
    expected = torch.cat([F.avg_pool1d(clip.T[None], 2, stride=2)[0].T for clip in long_clips])
    torch.testing.assert_close(out[:, 0], expected)


@pytest.mark.parametrize(("k", "kernel"), [(2, 3), (4, 5), (3, 1)])
def test_conv_pooling_equals_a_strided_convolution_of_each_clip(k: int, kernel: int, clips: tuple) -> None:
    part = pooling.Conv(k=k, width=WIDTH, kernel=kernel)
    out, _tokens = part(*clips)
    expected = [
        F.conv1d(clip.T[None], part.conv.weight, part.conv.bias, stride=k, padding=kernel // 2)[0].T[: len(clip) // k]
        for clip in clips[0].split(clips[1].tolist())
    ]
    torch.testing.assert_close(out[:, 0], torch.cat(expected), atol=1e-6, rtol=1e-5)


def test_stack_pooling_keeps_every_frame_of_a_window(clips: tuple) -> None:
    x, lengths = clips
    out, _ = pooling.Stack(k=2, width=WIDTH)(x, lengths)
    expected = [clip[: len(clip) // 2 * 2] for clip in x.split(lengths.tolist())]
    torch.testing.assert_close(out.reshape(-1, WIDTH), torch.cat(expected))


def test_attention_pooling_is_initialised_to_the_mean(clips: tuple) -> None:
    attention, mean = pooling.Attention(k=2, width=WIDTH, n_heads=3), pooling.Mean(k=2, width=WIDTH)
    torch.testing.assert_close(attention(*clips)[0], mean(*clips)[0])


def test_attention_pooling_selects_the_frame_that_matches_the_query(clips: tuple) -> None:
    part = pooling.Attention(k=2, width=4, n_heads=1)
    with torch.no_grad():
        part.key.weight.copy_(torch.eye(4))
        part.query.copy_(torch.tensor([[200.0, 0, 0, 0]]))
    frames = torch.tensor([[1.0, 2, 3, 4], [0, 5, 6, 7]])
    torch.testing.assert_close(part(frames, torch.tensor([2]))[0][0], frames[:1])


def test_the_number_of_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="n_heads"):
        pooling.Attention(k=2, width=10, n_heads=3)
