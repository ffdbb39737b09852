"""`python -m benchmarks.scaling experiment=qwen2_audio_sft scale=full`: estimates a run on 8 to 512 GPUs.

Memory of a GPU and arithmetic of a step come from the cost model (`auris.training.cost`), communication from the bytes
sent. What was not measured here is a constant of `Machine`: it is printed under the table and can be set
(`+machine.between=25e9`). No data, weights or GPU are needed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from auris import config as recipe
from auris.audio import ENCODER_RATE
from auris.model import adapters
from auris.training import cost, optim
from auris.training.cost import GIB, Load, Stage
from auris.training.strategy import Processes

GPUS = (8, 16, 32, 64, 128, 256, 512)
BF16, FP32 = 2, 4  # bytes of a number: gathered weights and activations, gradients


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Assumptions: H100s at 40 % of their peak, 8 on NVLink in a node, 400 Gb/s per GPU between nodes.

    Attributes:
        gpus: of a node.
        flops: FLOP/s of a GPU in training.
        within: bytes per second that a GPU sends to another of its node, while it receives the same.
        between: the same between nodes.
    """

    gpus: int = 8
    flops: float = cost.H100_TRAINING
    within: float = 350e9
    between: float = 50e9


def layouts(gpus: int, machine: Machine) -> Iterator[tuple[str, Processes]]:
    """Yield the three published layouts, one process on each GPU; a replica is a node."""
    yield "fsdp", Processes(world=gpus)
    if gpus > machine.gpus:
        yield "hsdp", Processes(world=gpus, replicas=gpus // machine.gpus)
    yield "fsdp_tp", Processes(world=gpus, tensor_parallel=2)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Bytes on each GPU and seconds of a step in which each rank has one full pack."""

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
        return sum(getattr(self, one.name) for one in fields(self)[:6])

    @property
    def seconds(self) -> float:
        """Seconds of a step whose communication overlaps with its arithmetic, as FSDP2 prefetches."""
        return max(self.compute, self.communication)


def plan(net: nn.Module, stage: Stage, load: Load, layout: Processes, machine: Machine, *, moment: int = FP32) -> Step:
    """Estimate a step of a stage.

    GPUs that compute layers together each hold all inputs of the LLM's layers, which are about half of the activations,
    and a part of the rest; each of them computes the whole encoder.
    """
    need = cost.memory(net, stage, load, moment=moment)
    shards, tp = layout.world // layout.replicas, layout.tensor_parallel
    frames = Load(frames=load.frames)
    encoder, whole = cost.training_flops(net, stage, frames), cost.training_flops(net, stage, load)
    in_encoder = cost.memory(net, stage, frames).activations
    in_llm = need.activations - in_encoder
    return Step(
        weights=need.weights / shards,
        gradients=need.gradients / shards,
        moments=need.moments / shards,
        activations=in_encoder + in_llm * (1 + 1 / tp) / 2,
        head=need.logits,
        gathered=need.gathered,
        compute=(encoder + (whole - encoder) / tp) / machine.flops,
        communication=_communication(net, stage, load, layout, machine),
    )


def _communication(net: nn.Module, stage: Stage, load: Load, layout: Processes, machine: Machine) -> float:
    """Estimate the seconds of a step's collectives, one after the other.

    Each unit is gathered for forward and again for backward (a frozen encoder only for forward), gradients are reduced
    to shards, shards are summed over replicas, and so are activations over GPUs that compute a layer together.
    """
    config = net.llm.config.get_text_config()
    learning, tp = cost.trained_parameters(net, stage), layout.tensor_parallel
    encoder = cost.count_parameters(net.encoder)
    gathers = encoder * (1 + stage.trains("encoder")) + 2 * (cost.count_parameters(net) - encoder) / tp
    shards = layout.world // layout.replicas
    is_near = shards <= machine.gpus
    shared = shards // tp
    moved = (BF16 * gathers + FP32 * learning / tp) * (shared - 1) / shared
    seconds = moved / (machine.within if is_near else machine.between)
    if layout.replicas > 1:  # a ring: reduce-scatter, then all-gather
        summed = 2 * FP32 * learning / shards * (layout.replicas - 1) / layout.replicas
        seconds += summed / machine.between
    if tp > 1:  # two sums of the hidden states of each layer, in forward and in backward
        sums = 4 * config.num_hidden_layers * BF16 * load.tokens * config.hidden_size
        seconds += sums * 2 * (tp - 1) / tp / machine.within
    return seconds


def table(net: nn.Module, stage: Stage, load: Load, *, machine: Machine, moment: int = FP32) -> Table:
    """Return memory and time by layout, on 8 to 512 GPUs."""
    title = (
        f"{stage.name}: each rank a pack of {load.tokens:,} tokens, {load.frames / ENCODER_RATE:,.0f} s of audio a step"
    )
    caption = (
        f"GiB of a GPU, and seconds of a step. Assumed: {machine.flops / 1e12:.0f} TFLOP/s a GPU, {machine.gpus} GPUs"
        f" a node, {machine.within / 1e9:.0f} GB/s within it and {machine.between / 1e9:.0f} between nodes. By sizes:"
        " what the allocator, the kernels and NCCL need (3 to 8 GiB) comes on top"
    )
    sizes = ["weights", "gradients", "moments", "activations", "head", "gathered", "all"]
    names = ["GPUs", "strategy", *sizes, "compute", "comm.", "step", "comm./step"]
    shown = Table(*names, title=title, caption=caption, title_justify="left")
    for column in shown.columns[2:]:
        column.justify = "right"
    for name, layout in (one for gpus in GPUS for one in layouts(gpus, machine)):
        step = plan(net, stage, load, layout, machine, moment=moment)
        sizes = [getattr(step, one.name) for one in fields(step)[:6]] + [step.memory]
        seconds = (step.compute, step.communication, step.seconds)
        share = f"{100 * step.communication / step.seconds:.0f} %"
        cells = [*(f"{size / GIB:.1f}" for size in sizes), *(f"{one:.2f}" for one in seconds), share]
        shown.add_row(str(layout.world), name, *cells)
    return shown


def stage_of(made: dict) -> Stage:
    """Return the stage that a config trains."""
    dpo = made["stage"] == "dpo"
    live = dpo and made["objective"].get("reference") == "live"
    runs_llm = made["data"]["view"] != "transcript"
    return Stage(name=made["arm"], trainable=tuple(made["trainable"]), reference=live, runs_llm=runs_llm)


def main(overrides: Sequence[str]) -> None:
    """Print the tables of a training config, given by its overrides."""
    try:
        made = recipe.resolve(recipe.compose(overrides))
        machine = Machine(**{name: float(value) for name, value in made.get("machine", {}).items()})
        rows = made["model"].get("vocab_rows")
        if rows is None:
            raise ValueError("model.vocab_rows=null: expected the rows of the embedding, as scale=full has them")
        model = {key: node for key, node in made["model"].items() if key != "vocab_rows"}
        with torch.device("meta"):
            net = recipe.build(model)(vocab_size=rows)
        adapters.attach(net, made["trainable"], token_ids=[], lora=made["lora"])
        load = Load.of_budget(made["data"]["token_budget"], net.geometry.pool)
        moment = optim.moment_bytes(made["optim"])
        Console(width=160).print(table(net, stage_of(made), load, machine=machine, moment=moment))
    except (ValueError, TypeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
