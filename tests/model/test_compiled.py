"""Compiled blocks: the same numbers, few graphs, and none for a length that was not met before."""

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
def fresh() -> Iterator[None]:
    """Graphs and settings of the process are as they were."""
    sizes = torch.fx.experimental._config
    with torch._dynamo.config.patch(nested_graph_breaks=False), sizes.patch(use_duck_shape=True):
        torch.compiler.reset()
        yield
    torch.compiler.reset()


class Counter:
    """A backend that computes by another one, which may ask for the same graph once more."""

    def __init__(self, backend: Callable | None = None):
        self.compiled: set[object] = set()
        self.backend = backend

    @property
    def graphs(self) -> int:
        return len(self.compiled)

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        self.compiled.add(torch._guards.CompileContext.current_compile_id())
        return self.backend(graph, inputs) if self.backend else graph.forward


def steps(net: AudioLM) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Losses and gradients over packs of different lengths and numbers of rows, the first one of a single row."""
    found, objective = [], NextToken()
    for clips in ([9], [30, 77], [5, 12, 64]):
        rows = [[Clip(n, n_mels=nets.N_MELS), text(11)] for n in clips]
        net.zero_grad()
        loss, _ = objective(net, pack(rows, net.geometry))
        loss.backward()
        found.append((loss.detach(), {name: p.grad for name, p in net.named_parameters() if p.grad is not None}))
    return found


def build() -> AudioLM:
    net = nets.build(vocab=96)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.3)  # of less: where a softmax is all but hard, gradients are differences of rounding
    return net


def kinds(net: AudioLM) -> list[nn.ModuleList]:
    return [net.encoder.blocks, llm.layers(net.llm)]


@pytest.mark.parametrize(
    ("backend", "tolerance"),
    [pytest.param(None, 0.0, id="as it is"), pytest.param(aot_eager, 1e-4, id="aot_eager", marks=pytest.mark.slow)],
)
def test_a_compiled_step_is_an_eager_step_in_two_graphs_for_each_kind_of_block(
    backend: Callable | None, tolerance: float, monkeypatch: pytest.MonkeyPatch
):
    net = build()
    monkeypatch.setattr(llm, "last_tokenwise", lambda _: [])  # the last layer, where it is compiled, leaves nothing out
    eager = steps(net)
    names, counters = list(net.state_dict()), [Counter(backend), Counter(backend)]
    for blocks, counter in zip(kinds(net), counters, strict=True):
        compile_blocks(blocks, counter)
    compiled = steps(net)
    for (loss, gradients), (expected, theirs) in zip(compiled, eager, strict=True):
        torch.testing.assert_close(loss, expected, rtol=tolerance / 100, atol=0.0)
        assert gradients.keys() == theirs.keys()
        for name, gradient in gradients.items():
            assert (gradient - theirs[name]).norm() <= tolerance * theirs[name].norm(), name
    assert [counter.graphs for counter in counters] == [2, 2] and list(net.state_dict()) == names
    batch = pack([[Clip(9, n_mels=nets.N_MELS), text(6)]], net.geometry)
    net.generate(batch, GenerationSettings(max_new_tokens=3))
    assert [counter.graphs for counter in counters] == [2, 2]  # a cache grows: generation is not compiled


@pytest.mark.slow
def test_where_the_kernel_takes_all_sequences_at_once_a_block_is_one_graph(monkeypatch: pytest.MonkeyPatch):
    """The kernel of a GPU cannot be called here; in its place stands a product of the same shape."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, n_q: int, n_k: int, **_: object) -> Tensor:
        return q * k.mean() + v * (n_q / n_k)

    monkeypatch.setattr(attention, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "has_kernel", lambda q: True)
    net = build()
    eager, counters = steps(net), [Counter(), Counter()]
    for blocks, counter in zip(kinds(net), counters, strict=True):
        compile_blocks(blocks, counter)
    compiled = steps(net)
    assert [counter.graphs for counter in counters] == [1, 1]
    torch.testing.assert_close([loss for loss, _ in compiled], [loss for loss, _ in eager])


def test_a_backend_that_torch_does_not_have_is_refused():
    with pytest.raises(ValueError, match="compile=fast: expected null or one of .*inductor"):
        compile_blocks([], "fast")
