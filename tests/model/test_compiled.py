"""Compiled blocks: same numbers as eager, few graphs, and no new graph for a new length."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager

from auris.model import attention, llm
from auris.model.audio_lm import AudioLM
from auris.model.compiled import compile_blocks
from auris.model.generation import GenerationSettings
from auris.training.objectives.next_token import NextToken
from support import nets
from support.packs import Clip, pack, text


@pytest.fixture(autouse=True)
def reset_compiler() -> Iterator[None]:
    """Reset compiled graphs and restore the global compile settings."""
    fx_config = torch.fx.experimental._config
    with torch._dynamo.config.patch(nested_graph_breaks=False), fx_config.patch(use_duck_shape=True):
        torch.compiler.reset()
        yield
    torch.compiler.reset()


class GraphCounter:
    """A compile backend that counts graphs and computes them with another backend.

    If the compiler calls the backend twice within one compilation, the graph counts once.
    """

    def __init__(self, backend: Callable | None = None):
        self.compile_ids: set[object] = set()
        self.backend = backend

    @property
    def n_graphs(self) -> int:
        return len(self.compile_ids)

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        self.compile_ids.add(torch._guards.CompileContext.current_compile_id())
        return self.backend(graph, inputs) if self.backend else graph.forward


def run_steps(net: AudioLM) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Return losses and gradients of packs with different lengths. The first pack has a single row."""
    results, objective = [], NextToken()
    for clips in ([9], [30, 77], [5, 12, 64]):
        rows = [[Clip(n, n_mels=nets.N_MELS), text(11)] for n in clips]
        net.zero_grad()
        loss, _ = objective(net, pack(rows, net.geometry))
        loss.backward()
        results.append((loss.detach(), {name: p.grad for name, p in net.named_parameters() if p.grad is not None}))
    return results


def build() -> AudioLM:
    net = nets.build(vocab=96)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.3)  # with larger weights the softmax saturates, and gradients consist of rounding errors
    return net


def block_lists(net: AudioLM) -> list[nn.ModuleList]:
    return [net.encoder.blocks, llm.decoder_layers(net.llm)]


@pytest.mark.parametrize(
    ("backend", "tolerance"),
    # Without a backend, only the gradients of norms and MLPs are rounded differently (`model.decoder_layers`).
    [pytest.param(None, 1e-5, id="no backend"), pytest.param(aot_eager, 1e-4, id="aot_eager", marks=pytest.mark.slow)],
)
def test_a_compiled_step_equals_an_eager_step_and_needs_two_graphs_per_kind_of_block(
    backend: Callable | None, tolerance: float, monkeypatch: pytest.MonkeyPatch
):
    net = build()
    # A compiled last layer computes all tokens. This makes the eager one do the same.
    monkeypatch.setattr(llm, "tokenwise_parts_of_last_layer", lambda _: [])
    eager = run_steps(net)
    names, counters = list(net.state_dict()), [GraphCounter(backend), GraphCounter(backend)]
    for blocks, counter in zip(block_lists(net), counters, strict=True):
        compile_blocks(blocks, counter)
    compiled = run_steps(net)
    for (loss, gradients), (expected, expected_gradients) in zip(compiled, eager, strict=True):
        torch.testing.assert_close(loss, expected, rtol=tolerance / 100, atol=0.0)
        assert gradients.keys() == expected_gradients.keys()
        for name, gradient in gradients.items():
            assert (gradient - expected_gradients[name]).norm() <= tolerance * expected_gradients[name].norm(), name
    assert [counter.n_graphs for counter in counters] == [2, 2] and list(net.state_dict()) == names
    batch = pack([[Clip(9, n_mels=nets.N_MELS), text(6)]], net.geometry)
    net.generate(batch, GenerationSettings(max_new_tokens=3))
    assert [counter.n_graphs for counter in counters] == [2, 2]  # generation is not compiled because its cache grows


@pytest.mark.slow
def test_a_block_is_one_graph_if_a_kernel_attends_to_all_sequences_at_once(monkeypatch: pytest.MonkeyPatch):
    """Replace the GPU kernel, which is not available here, with a product of the same shape."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, n_q: int, n_k: int, **_: object) -> Tensor:
        return q * k.mean() + v * (n_q / n_k)

    monkeypatch.setattr(attention, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "has_flash_kernel", lambda q: True)
    net = build()
    eager, counters = run_steps(net), [GraphCounter(), GraphCounter()]
    for blocks, counter in zip(block_lists(net), counters, strict=True):
        compile_blocks(blocks, counter)
    compiled = run_steps(net)
    assert [counter.n_graphs for counter in counters] == [1, 1]
    torch.testing.assert_close([loss for loss, _ in compiled], [loss for loss, _ in eager])


def test_an_unknown_compile_backend_is_refused():
    with pytest.raises(ValueError, match="compile=fast: expected null or one of .*inductor"):
        compile_blocks([], "fast")
