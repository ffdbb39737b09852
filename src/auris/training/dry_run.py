"""Report of `auris train dry_run=true`: parameters, memory, the first batch and the statistics of an epoch.

`auris doctor checkpoint=PATH` prints the same tables of parameters and memory for a saved model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, cast

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import nn

from auris.audio import ENCODER_RATE
from auris.config import Config
from auris.data.batches import StepDataset
from auris.data.datamodule import AudioDataModule
from auris.data.epoch_stats import EpochStats, compute_epoch_stats
from auris.errors import count
from auris.model import adapters
from auris.model.pack import IGNORE, Pack
from auris.model.weights import identify
from auris.text.console import numbers_table, print_plain
from auris.text.tokenizer import Tokenizer
from auris.training import cost, optim
from auris.training.cost import GIB, Stage, Workload
from auris.training.module import AudioLMModule
from auris.training.strategy import Processes

if TYPE_CHECKING:
    from auris.model.audio_lm import AudioLM
    from auris.model.encoder import Encoder

GPU_COUNTS = (1, 8, 64)  # numbers of GPUs for which the table of memory has columns


def print_report(console: Console, module: AudioLMModule, data: AudioDataModule, config: Config) -> None:
    """Print what a run would do. Nothing is written except the cache of row lengths.

    Args:
        console: Console to print on.
        module: LightningModule of the run, on the meta device.
        data: Data module of the run, set up for training.
        config: Resolved config of the run.
    """
    processes = Processes.from_config(config["trainer"])
    print_plain(console, f"planned for {processes}")
    net, tokenizer = module.net, module.tokenizer
    # As a run does it, so that a setting which a run refuses is refused here too.
    adapters.attach(net, config["trainable"], token_ids=tokenizer.added_ids, lora=config["lora"])
    optim.freeze(net, config["trainable"])
    module.configure_optimizers()
    stage = Stage.of(module.objective, module.trainable, has_cached_frames=module.has_cached_frames)
    assert data.plan is not None  # the data is set up
    # The first step as a single process would compute it.
    packs = StepDataset(data.rows, data.plan, data.samples, world=1, rank=0)[0]
    largest_workload = max(map(Workload.of_pack, packs), key=lambda workload: workload.tokens)
    print_sizes(console, net, [stage], largest_workload, moment_bytes=optim.moment_bytes(config["optim"]))
    print_batch(console, packs, tokenizer)
    epoch = compute_epoch_stats(data.rows, data.plan, data.samples, ranks=processes.ranks)
    console.print(_make_epoch_table(epoch))
    print_plain(console, _describe_epoch_time(net, stage, epoch))


def print_sizes(
    console: Console, net: AudioLM, stages: Sequence[Stage], workload: Workload, *, moment_bytes: int = 4
) -> None:
    """Print the numbers of parameters of a model, and the memory that stages of training need.

    Args:
        console: Console to print on.
        net: The model.
        stages: Stages of training; each is a row of the table of memory.
        workload: Size of the pack that each GPU computes.
        moment_bytes: Bytes of each of the optimizer's two moments, for one trained parameter.
    """
    console.print(make_parameter_table({part: getattr(net, part) for part in identify.PARTS}))
    console.print(_make_memory_table(net, stages, workload, moment_bytes))


def make_parameter_table(parts: Mapping[str, nn.Module]) -> Table:
    """Return the table of the number of parameters of each component of a model.

    Args:
        parts: The parts of the model by name.
    """
    table = numbers_table("part", "parameters", title="parameters")
    counts = cost.count_by_component(parts)
    for name, n_parameters in counts.items():
        table.add_row(name, f"{n_parameters:,}")
    table.add_section()
    table.add_row("total", f"{sum(counts.values()):,}")
    if "encoder" in parts:
        n_positions = cast("Encoder", parts["encoder"]).positions.numel()
        table.add_row("position table of the encoder (not trained)", f"{n_positions:,}")
        table.add_row("total with position table", f"{sum(counts.values()) + n_positions:,}")
    return table


def _make_memory_table(net: AudioLM, stages: Sequence[Stage], workload: Workload, moment_bytes: int) -> Table:
    """Return the table of the memory of each stage.

    Weights, gradients and moments are sharded over the GPUs; there is a column for each of GPU_COUNTS. Two more columns
    show the additional memory of a pack, without and with recomputation of activations.
    """
    title = (
        f"GiB per GPU; a pack has {workload.tokens:,} tokens, {workload.frames / ENCODER_RATE:,.0f} s of audio and "
        f"{workload.scored:,} positions with logits"
    )
    columns = [f"{n} GPU{'s' if n > 1 else ''}" for n in GPU_COUNTS]
    table = numbers_table("stage", *columns, "+ a pack", "+ a pack, recomputed", title=title)
    for stage in stages:
        memory = cost.estimate_memory(net, stage, workload, moment_bytes=moment_bytes)
        sizes = [memory.states / n for n in GPU_COUNTS] + [
            memory.bytes_without_states(recompute=False),
            memory.bytes_without_states(recompute=True),
        ]
        table.add_row(stage.name, *(f"{size / GIB:.2f}" for size in sizes))
    table.add_section()
    inference = f"{cost.FROZEN_BYTES * cost.count_parameters(net) / GIB:.2f}"
    table.add_row("inference in bf16, not sharded", *[inference] * len(GPU_COUNTS), "", "")
    return table


def _make_epoch_table(epoch: EpochStats) -> Table:
    """Return the table of the share of each task in an epoch. The caption describes the balance between the ranks."""
    sampled = (
        "" if epoch.sampled_steps == epoch.steps else f"; the table is an estimate from {epoch.sampled_steps:,} of them"
    )
    title = (
        f"an epoch: {count(epoch.rows, 'row')} ({epoch.unusable:,} unusable) in {count(epoch.steps, 'step')}{sampled}"
    )
    balance = (
        f"ranks: {epoch.ranks}; {epoch.packs:.2f} packs per rank and step, {100 * epoch.fill:.1f} % full, no padding; "
        f"the busiest rank has {epoch.straggler:.3f} times the tokens of the average rank"
    )
    table = numbers_table("task", "rows", "hours", "tokens", "share", title=title, caption=balance)
    total = epoch.total
    for task, amount in [*epoch.tasks.items(), ("total", total)]:
        if task == "total":
            table.add_section()
        percent = f"{100 * amount.tokens / max(1, total.tokens):.1f} %"
        table.add_row(task, f"{amount.rows:,.0f}", f"{amount.seconds / 3600:,.2f}", f"{amount.tokens:,.0f}", percent)
    return table


def _describe_epoch_time(net: AudioLM, stage: Stage, epoch: EpochStats) -> str:
    """Describe the number of operations in an epoch, and the time that they take on H100 GPUs."""
    operations = cost.count_training_flops(net, stage, Workload.of_rows(epoch.total.tokens, epoch.total.seconds))
    hours = operations / cost.H100_TRAINING_FLOPS / epoch.ranks / 3600 * epoch.straggler
    return (
        f"arithmetic of an epoch: {operations:.2e} FLOP; {hours:,.2f} h on {epoch.ranks} H100 at "
        f"{cost.H100_TRAINING_FLOPS / 1e12:.0f} TFLOP/s each, which is usual for 8 B models"
    )


def print_batch(console: Console, packs: Sequence[Pack], tokenizer: Tokenizer) -> None:
    """Print the size of a step's packs, the skipped rows, and the text of the first row."""
    workloads = [Workload.of_pack(pack) for pack in packs]
    n_rows = sum(len(pack["rows"]) for pack in packs)
    n_tokens, n_logits = sum(workload.tokens for workload in workloads), sum(workload.scored for workload in workloads)
    n_audio_tokens = sum(len(pack["audio_index"]) for pack in packs)
    seconds = sum(pack["audio_seconds"] for pack in packs)
    sizes = [count(n_rows, "row"), f"{count(n_tokens, 'token')} ({n_logits:,} with logits)"]
    sizes.append(f"{count(n_audio_tokens, 'audio token')} ({seconds:.1f} s)")
    print_plain(console, f"first batch: {count(len(packs), 'pack')} with {', '.join(sizes)}")
    for row_id, reason in (row for pack in packs for row in pack["skipped"]):
        print_plain(console, f"  skipped {row_id}: {reason}")
    if n_rows:
        print_plain(console, f"first row: {format_first_row(next(pack for pack in packs if pack['rows']), tokenizer)}")


def format_first_row(pack: Pack, tokenizer: Tokenizer) -> str:
    """Return the first row of a pack as text. Audio is shown as a number of tokens, supervised text in braces."""
    end = int(pack["cu_seqlens"][1])
    ids = pack["ids"][:end].numpy()
    audio_mask = np.isin(np.arange(end), pack["audio_index"].numpy())
    supervised_mask = np.roll(pack["labels"][:end].numpy() != IGNORE, 1)  # a label is one position before its token
    text = ""
    for (is_audio, is_supervised), group in groupby(range(end), key=lambda t: (audio_mask[t], supervised_mask[t])):
        positions = list(group)
        part = f"[{len(positions)} audio tokens]"
        if not is_audio:
            # `decode` returns a list only for a batch of sequences.
            part = cast("str", tokenizer.fast.decode(ids[positions].tolist()))
        text += f"{{{part}}}" if is_supervised else part
    return text
