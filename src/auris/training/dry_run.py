"""The report of `auris train dry_run=true`: parameters, memory, the first batch and the plan of an epoch.

`auris doctor checkpoint=PATH` prints the tables of parameters and memory for a saved model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import nn

from auris.audio import ENCODER_RATE
from auris.config import Config
from auris.data.batches import StepDataset
from auris.data.datamodule import AudioDataModule
from auris.data.epoch_stats import EpochStats, compute_epoch_stats
from auris.model import adapters
from auris.model.pack import IGNORE, Pack
from auris.model.weights import identify
from auris.text.console import numbers_table, print_plain
from auris.text.tokenizer import Tokenizer
from auris.training import cost, optim
from auris.training.cost import GIB, Load, Stage
from auris.training.module import AudioLMModule
from auris.training.strategy import Processes

GPUS = (1, 8, 64)


def report(console: Console, module: AudioLMModule, data: AudioDataModule, recipe: Config) -> None:
    """Print what a run would do. Nothing is written but the cache of lengths.

    Args:
        console: where to print.
        module: of the run, on the meta device.
        data: of the run, set up for training.
        recipe: the resolved config of the run.
    """
    processes = Processes.planned(recipe["trainer"])
    print_plain(console, f"planned for {processes}")
    net, tokenizer = module.net, module.tokenizer
    adapters.attach(net, recipe["trainable"], token_ids=tokenizer.audio_ids, lora=recipe["lora"])
    stage = Stage.of(module.objective, module.trainable)
    packs = StepDataset(data.rows, data.plan, data.samples, 1, 0)[0]  # of the first step, as one process has them
    largest = max(map(Load.of_pack, packs), key=lambda load: load.tokens)
    print_sizes(console, net, [stage], largest, moment=optim.moment_bytes(recipe["optim"]))
    print_batch(console, packs, tokenizer)
    epoch = compute_epoch_stats(data.rows, data.plan, data.samples, ranks=processes.ranks)
    console.print(_epoch_table(epoch))
    print_plain(console, _epoch_time(net, stage, epoch))


def print_sizes(console: Console, net: nn.Module, stages: Sequence[Stage], load: Load, *, moment: int = 4) -> None:
    """Print a model's parameters and the memory of its stages, with a load on each GPU.

    Args:
        moment: bytes of each of the optimizer's two moments.
    """
    console.print(parameter_table({part: getattr(net, part) for part in identify.PARTS}))
    console.print(_memory_table(net, stages, load, moment))


def parameter_table(parts: Mapping[str, nn.Module]) -> Table:
    table = numbers_table("part", "parameters", title="parameters")
    pieces = cost.parameters_by_piece(parts)
    for name, number in pieces.items():
        table.add_row(name, f"{number:,}")
    table.add_section()
    table.add_row("all", f"{sum(pieces.values()):,}")
    if "encoder" in parts:
        positions = parts["encoder"].positions.numel()
        table.add_row("the encoder's position table (fixed)", f"{positions:,}")
        table.add_row("all with it", f"{sum(pieces.values()) + positions:,}")
    return table


def _memory_table(net: nn.Module, stages: Sequence[Stage], load: Load, moment: int) -> Table:
    """States by number of GPUs; what a pack adds is the same on each GPU for any number of them."""
    title = (
        f"GiB on each GPU; a pack has {load.tokens:,} tokens, {load.frames / ENCODER_RATE:,.0f} s of audio, "
        f"{load.scored:,} scored positions"
    )
    columns = [f"{n} GPU{'s' if n > 1 else ''}" for n in GPUS]
    table = numbers_table("stage", *columns, "+ a pack", "+ a pack, recomputed", title=title)
    for stage in stages:
        need = cost.memory(net, stage, load, moment=moment)
        cells = [need.states / n for n in GPUS] + [need.per_gpu(recompute=False), need.per_gpu(recompute=True)]
        table.add_row(stage.name, *(f"{size / GIB:.2f}" for size in cells))
    table.add_section()
    inference = f"{cost.FROZEN * cost.count_parameters(net) / GIB:.2f}"
    table.add_row("inference in bf16, whole on each", *[inference] * len(GPUS), "", "")
    return table


def _epoch_table(epoch: EpochStats) -> Table:
    """Each task's share, and how evenly the ranks share the steps."""
    over = "" if epoch.sampled_steps == epoch.steps else f", found from {epoch.sampled_steps:,} of them"
    title = f"an epoch: {epoch.rows:,} rows ({epoch.unusable:,} unusable), {epoch.steps:,} steps{over}"
    each = (
        f"{epoch.ranks} ranks: {epoch.packs:.2f} packs of a rank in a step, {100 * epoch.fill:.1f} % full, no padding; "
        f"the busiest rank has {epoch.straggler:.3f} times the tokens of the average one"
    )
    table = numbers_table("task", "rows", "hours", "tokens", "share", title=title, caption=each)
    whole = epoch.total
    for task, share in [*epoch.tasks.items(), ("all", whole)]:
        if task == "all":
            table.add_section()
        part = f"{100 * share.tokens / max(1, whole.tokens):.1f} %"
        table.add_row(task, f"{share.rows:,.0f}", f"{share.seconds / 3600:,.2f}", f"{share.tokens:,.0f}", part)
    return table


def _epoch_time(net: nn.Module, stage: Stage, epoch: EpochStats) -> str:
    operations = cost.training_flops(net, stage, Load.of_rows(epoch.total.tokens, epoch.total.seconds))
    hours = operations / cost.H100_TRAINING / epoch.ranks / 3600 * epoch.straggler
    return (
        f"arithmetic of an epoch: {operations:.2e} FLOP; on {epoch.ranks} H100 at {cost.H100_TRAINING / 1e12:.0f} "
        f"TFLOP/s each, as 8 B models are trained, {hours:,.2f} h"
    )


def print_batch(console: Console, packs: Sequence[Pack], tokenizer: Tokenizer) -> None:
    """Print the size of a step's packs, the rows that were left out, and the text of the first row."""
    loads = [Load.of_pack(pack) for pack in packs]
    rows = sum(len(pack["rows"]) for pack in packs)
    tokens, scored = sum(load.tokens for load in loads), sum(load.scored for load in loads)
    audio, seconds = sum(len(pack["audio_index"]) for pack in packs), sum(pack["audio_seconds"] for pack in packs)
    counts = f"{tokens:,} tokens, {scored:,} of them scored, {audio:,} of audio ({seconds:.1f} s)"
    print_plain(console, f"first batch: {len(packs)} packs, {rows} rows, {counts}")
    for name, reason in (row for pack in packs for row in pack["skipped"]):
        print_plain(console, f"  left out {name}: {reason}")
    if rows:
        print_plain(console, f"its first row: {first_row_text(next(p for p in packs if p['rows']), tokenizer)}")


def first_row_text(pack: Pack, tokenizer: Tokenizer) -> str:
    """Return a pack's first row as text: audio as its number of tokens, supervised text in braces."""
    end = int(pack["cu_seqlens"][1])
    ids = pack["ids"][:end].numpy()
    audio = np.isin(np.arange(end), pack["audio_index"].numpy())
    supervised = np.roll(pack["labels"][:end].numpy() != IGNORE, 1)  # labels stand one before the token that they name
    text = ""
    for (is_audio, is_supervised), group in groupby(range(end), key=lambda t: (audio[t], supervised[t])):
        places = list(group)
        piece = f"[{len(places)} audio tokens]" if is_audio else tokenizer.fast.decode(ids[places].tolist())
        text += f"{{{piece}}}" if is_supervised else piece
    return text
