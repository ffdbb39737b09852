"""`python -m benchmarks.scaling experiment=qwen2_audio_sft scale=full`: estimates a run on 8 to 512 GPUs.

The memory of a GPU and the arithmetic of a step come from the cost model (`auris.training.cost`), and communication
from the bytes sent. The speeds of the hardware are assumptions: they are fields of `Machine`, are printed under the
table and can be set (`+machine.between=25e9`). No data, weights or GPU are needed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from auris import config as configs
from auris.audio import ENCODER_RATE
from auris.model import adapters
from auris.training import cost, optim
from auris.training.cost import GIB, Stage, Workload
from auris.training.strategy import Processes

GPUS = (8, 16, 32, 64, 128, 256, 512)
BF16, FP32 = 2, 4  # bytes per number: gathered weights and activations in bf16, gradients in fp32


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Assumptions: H100s at 40 % of their peak, 8 on NVLink in a node, 400 Gb/s per GPU between nodes.

    Attributes:
        gpus: GPUs per node.
        flops: FLOP/s of a GPU in training.
        within: Bytes per second that a GPU sends to another GPU of its node while it receives the same amount.
        between: Bytes per second that a GPU sends to a GPU of another node while it receives the same amount.
    """

    gpus: int = 8
    flops: float = cost.H100_TRAINING_FLOPS
    within: float = 350e9
    between: float = 50e9


def layouts(gpus: int, machine: Machine) -> Iterator[tuple[str, Processes]]:
    """Yield the names and layouts of the sharded strategies, with one process per GPU and one replica per node."""
    yield "fsdp", Processes(world=gpus)
    if gpus > machine.gpus:
        yield "hsdp", Processes(world=gpus, replicas=gpus // machine.gpus)
    yield "fsdp_tp", Processes(world=gpus, tensor_parallel=2)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Bytes on each GPU, and seconds of compute and communication, in a step with one full pack per rank."""

    weights: float
    gradients: float
    moments: float
    activations: float
    head: float
    gathered: float
    compute: float
    communication: float

    @property
    def memory(self) -> float:
        """Bytes on each GPU in all."""
        return sum(getattr(self, field.name) for field in fields(self)[:6])

    @property
    def seconds(self) -> float:
        """Seconds of a step. Communication overlaps with compute, because FSDP2 prefetches weights."""
        return max(self.compute, self.communication)


def plan(
    net: nn.Module, stage: Stage, workload: Workload, layout: Processes, machine: Machine, *, moment: int = FP32
) -> Step:
    """Estimate a step of a stage.

    With tensor parallelism, several GPUs share each layer of the LLM. Each of them holds all inputs of the layers,
    which are about half of the LLM's activations, and a part of the rest. Each of them computes the whole encoder.
    """
    memory = cost.estimate_memory(net, stage, workload, moment_bytes=moment)
    shards, tp = layout.world // layout.replicas, layout.tensor_parallel
    frames = Workload(frames=workload.frames)
    encoder_flops, flops = (
        cost.count_training_flops(net, stage, frames),
        cost.count_training_flops(net, stage, workload),
    )
    encoder_activations = cost.estimate_memory(net, stage, frames).activations
    llm_activations = memory.activations - encoder_activations
    return Step(
        weights=memory.weights / shards,
        gradients=memory.gradients / shards,
        moments=memory.moments / shards,
        activations=encoder_activations + llm_activations * (1 + 1 / tp) / 2,
        head=memory.logits,
        gathered=memory.gathered,
        compute=(encoder_flops + (flops - encoder_flops) / tp) / machine.flops,
        communication=_communication(net, stage, workload, layout, machine),
    )


def _communication(net: nn.Module, stage: Stage, workload: Workload, layout: Processes, machine: Machine) -> float:
    """Estimate the seconds of the collectives of a step, which run one after the other.

    Each FSDP unit is gathered for forward and again for backward (a frozen encoder only for forward). Gradients are
    reduced to shards, and the shards are summed over replicas. With tensor parallelism, activations are summed over
    the GPUs that share a layer.
    """
    config = net.llm.config.get_text_config()
    trained, tp = cost.count_trained_parameters(net, stage), layout.tensor_parallel
    encoder = cost.count_parameters(net.encoder)
    gathers = encoder * (1 + stage.trains("encoder")) + 2 * (cost.count_parameters(net) - encoder) / tp
    shards = layout.world // layout.replicas
    is_within_node = shards <= machine.gpus
    ranks = shards // tp
    sent = (BF16 * gathers + FP32 * trained / tp) * (ranks - 1) / ranks
    seconds = sent / (machine.within if is_within_node else machine.between)
    if layout.replicas > 1:  # a ring all-reduce: reduce-scatter, then all-gather
        reduced = 2 * FP32 * trained / shards * (layout.replicas - 1) / layout.replicas
        seconds += reduced / machine.between
    if tp > 1:  # two sums of the hidden states in each layer, in forward and again in backward
        sums = 4 * config.num_hidden_layers * BF16 * workload.tokens * config.hidden_size
        seconds += sums * 2 * (tp - 1) / tp / machine.within
    return seconds


def table(net: nn.Module, stage: Stage, workload: Workload, *, machine: Machine, moment: int = FP32) -> Table:
    """Return the table of memory and time for each layout on 8 to 512 GPUs."""
    title = (
        f"{stage.name}: one pack per rank and step, with {workload.tokens:,} tokens and"
        f" {workload.frames / ENCODER_RATE:,.0f} s of audio"
    )
    caption = (
        f"GiB per GPU and seconds per step, assuming {machine.flops / 1e12:.0f} TFLOP/s per GPU, {machine.gpus}"
        f" GPUs per node, {machine.within / 1e9:.0f} GB/s within and {machine.between / 1e9:.0f} between nodes."
        " The allocator, the kernels and NCCL need another 3 to 8 GiB"
    )
    sizes = ["weights", "gradients", "moments", "activations", "head", "gathered", "all"]
    names = ["GPUs", "strategy", *sizes, "compute", "comm.", "step", "comm./step"]
    result = Table(*names, title=title, caption=caption, title_justify="left")
    for column in result.columns[2:]:
        column.justify = "right"
    for name, layout in (entry for gpus in GPUS for entry in layouts(gpus, machine)):
        step = plan(net, stage, workload, layout, machine, moment=moment)
        sizes = [getattr(step, field.name) for field in fields(step)[:6]] + [step.memory]
        times = (step.compute, step.communication, step.seconds)
        share = f"{100 * step.communication / step.seconds:.0f} %"
        cells = [*(f"{size / GIB:.1f}" for size in sizes), *(f"{seconds:.2f}" for seconds in times), share]
        result.add_row(str(layout.world), name, *cells)
    return result


def stage_of(config: configs.Config) -> Stage:
    """Return the stage that a config trains."""
    is_dpo = config["stage"] == "dpo"
    has_live_reference = is_dpo and config["objective"].get("reference") == "live"
    runs_llm = config["data"]["view"] != "transcript"
    trainable = tuple(config["trainable"])
    return Stage(name=config["arm"], trainable=trainable, has_reference=has_live_reference, runs_llm=runs_llm)


def main(overrides: Sequence[str]) -> None:
    """Print the tables of a training config, given by its overrides."""
    try:
        config = configs.resolve(configs.compose(overrides))
        machine = Machine(**{name: float(value) for name, value in config.get("machine", {}).items()})
        rows = config["model"].get("vocab_rows")
        if rows is None:
            raise ValueError("model.vocab_rows=null: expected the number of rows of the embedding, as in scale=full")
        model = {key: node for key, node in config["model"].items() if key != "vocab_rows"}
        with torch.device("meta"):
            net = configs.build(model)(vocab_size=rows)
        adapters.attach(net, config["trainable"], token_ids=[], lora=config["lora"])
        workload = Workload.of_budget(config["data"]["token_budget"], pool=net.geometry.pool)
        moment = optim.moment_bytes(config["optim"])
        Console(width=160).print(table(net, stage_of(config), workload, machine=machine, moment=moment))
    except (ValueError, TypeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
