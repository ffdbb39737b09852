"""A recipe planned on paper: the sizes of the performance notes, and what more GPUs do to them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from auris import config
from auris.training.cost import GIB, STAGES, Load
from auris.training.strategy import Processes
from benchmarks import scaling
from benchmarks.scaling import Machine, plan

TUNED = STAGES[1]
MACHINE = Machine()


@pytest.fixture(scope="module")
def released() -> nn.Module:
    model = config.resolve(config.compose(["experiment=qwen2_audio_sft", "scale=full"]))["model"]
    rows = model.pop("vocab_rows")
    with torch.device("meta"):
        return config.build(model)(vocab_size=rows)


@pytest.fixture(scope="module")
def load(released: nn.Module) -> Load:
    return Load.of_budget(8192, released.geometry.pool)


def test_the_memory_of_a_node_equals_the_performance_notes(released, load):
    step = plan(released, TUNED, load, Processes(world=8), MACHINE)
    states = step.weights + step.gradients + step.moments
    assert states / GIB == pytest.approx(14.6, abs=0.1) and step.activations / GIB == pytest.approx(37.5, abs=0.1)
    half = plan(released, TUNED, load, Processes(world=8), MACHINE, moment=2)
    assert half.moments == step.moments / 2 and half.memory == step.memory - half.moments
    assert step.seconds == step.compute > step.communication


def test_replicas_reduce_traffic_between_nodes(released, load):
    near, far, replicas = (
        plan(released, TUNED, load, layout, MACHINE)
        for layout in (
            Processes(world=8),
            Processes(world=64),
            Processes(world=64, replicas=8),
        )
    )
    # The notes: 2 x 16.8 GB gathered and 33.6 GB reduced, 0.19 s within a node and 1.35 s between nodes.
    assert near.communication == pytest.approx(0.19, rel=0.2) and far.communication == pytest.approx(1.35, rel=0.2)
    assert near.communication < replicas.communication < far.communication
    assert replicas.moments == near.moments == 8 * far.moments
    fast = plan(released, TUNED, load, Processes(world=64), Machine(between=MACHINE.within))
    assert fast.communication == pytest.approx(far.communication * MACHINE.between / MACHINE.within)


def test_two_that_compute_together_have_half_the_arithmetic_of_the_language_model(released, load):
    alone, together = (plan(released, TUNED, load, Processes(world=8, tensor_parallel=n), MACHINE) for n in (1, 2))
    assert 0.5 < together.compute / alone.compute < 0.6 and together.activations < alone.activations
    assert together.weights == alone.weights and Processes(world=8, tensor_parallel=2).ranks == 4


def test_the_command_prints_every_size_and_its_assumptions(capsys):
    arguments = ["experiment=qwen2_audio_dpo", "scale=full", "optim.states=bf16", "+machine.between=25e9"]
    scaling.main(arguments)
    output = capsys.readouterr().out
    assert all(f"│ {gpus} " in output for gpus in scaling.GPUS) and output.count("hsdp") == 6
    assert "400 TFLOP/s" in output and "25 between nodes" in output


def test_a_machine_that_has_no_such_number_and_a_model_of_unknown_size_are_refused():
    for arguments, message in ((["+machine.gpu=4"], "gpu"), (["scale=tiny"], "vocab_rows=null")):
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            scaling.main(["experiment=qwen2_audio_sft", "scale=full", *arguments])
