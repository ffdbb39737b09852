"""The cost model of a training run: the figures of the performance notes, and the effect of more GPUs.

The performance notes are a document that is not part of the repository.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from auris import config
from auris.training.cost import GIB, STAGES, Workload
from auris.training.strategy import Processes
from benchmarks import scaling
from benchmarks.scaling import Machine, plan

FINE_TUNING = STAGES[1]
MACHINE = Machine()


@pytest.fixture(scope="module")
def released_net() -> nn.Module:
    model = config.resolve(config.compose(["experiment=qwen2_audio_sft", "scale=full"]))["model"]
    rows = model.pop("vocab_rows")
    with torch.device("meta"):
        return config.build(model)(vocab_size=rows)


@pytest.fixture(scope="module")
def workload(released_net: nn.Module) -> Workload:
    return Workload.of_budget(8192, pool=released_net.geometry.pool)


def test_memory_per_gpu_equals_the_performance_notes(released_net, workload):
    step = plan(released_net, FINE_TUNING, workload, Processes(world=8), MACHINE)
    states = step.weights + step.gradients + step.moments
    assert states / GIB == pytest.approx(14.6, abs=0.1) and step.activations / GIB == pytest.approx(37.5, abs=0.1)
    bfloat16_moments = plan(released_net, FINE_TUNING, workload, Processes(world=8), MACHINE, moment=2)
    assert bfloat16_moments.moments == step.moments / 2
    assert bfloat16_moments.memory == step.memory - bfloat16_moments.moments
    assert step.seconds == step.compute > step.communication


def test_replicas_reduce_traffic_between_nodes(released_net, workload):
    one_node, eight_nodes, replicas = (
        plan(released_net, FINE_TUNING, workload, processes, MACHINE)
        for processes in (
            Processes(world=8),
            Processes(world=64),
            Processes(world=64, replicas=8),
        )
    )
    # Performance notes: 2 x 16.8 GB gathered and 33.6 GB reduced take 0.19 s within a node and 1.35 s between nodes.
    assert one_node.communication == pytest.approx(0.19, rel=0.2) and eight_nodes.communication == pytest.approx(
        1.35, rel=0.2
    )
    assert one_node.communication < replicas.communication < eight_nodes.communication
    assert replicas.moments == one_node.moments == 8 * eight_nodes.moments
    fast_network = plan(released_net, FINE_TUNING, workload, Processes(world=64), Machine(between=MACHINE.within))
    assert fast_network.communication == pytest.approx(eight_nodes.communication * MACHINE.between / MACHINE.within)


def test_tensor_parallelism_over_two_gpus_halves_the_arithmetic_of_the_llm(released_net, workload):
    data_parallel, tensor_parallel = (
        plan(released_net, FINE_TUNING, workload, Processes(world=8, tensor_parallel=n), MACHINE) for n in (1, 2)
    )
    assert (
        0.5 < tensor_parallel.compute / data_parallel.compute < 0.6
        and tensor_parallel.activations < data_parallel.activations
    )
    assert tensor_parallel.weights == data_parallel.weights and Processes(world=8, tensor_parallel=2).ranks == 4


def test_the_command_prints_every_number_of_gpus_and_its_assumptions(capsys):
    arguments = ["experiment=qwen2_audio_dpo", "scale=full", "optim.states=bf16", "+machine.between=25e9"]
    scaling.main(arguments)
    output = capsys.readouterr().out
    assert all(f"│ {gpus} " in output for gpus in scaling.GPUS) and output.count("hsdp") == 6
    assert "400 TFLOP/s" in output and "25 between nodes" in output


def test_unknown_machine_settings_and_models_of_unknown_size_are_refused():
    for arguments, message in ((["+machine.gpu=4"], "gpu"), (["scale=tiny"], "vocab_rows=null")):
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            scaling.main(["experiment=qwen2_audio_sft", "scale=full", *arguments])
