"""`auris doctor checkpoint=PATH`: what a path holds, what fits, what is missing, and the memory it needs.
`data=...` looks at data instead (`checkup`).
`show=tasks` prints the task table instead.

`dry_run=true` of a training run prints the same report about its recipe, with its first batch. Memory is computed from
sizes, never measured: bf16 computation over fp32 master weights and AdamW, everything sharded over the GPUs (FSDP2). A
dry run goes through the plan of an epoch as well, for as many ranks as its trainer has.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import hydra
import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoConfig

from auris import config as recipe
from auris.data.check import report as checkup
from auris.data.epoch_stats import Epoch
from auris.inference import export
from auris.inference import load as pretrained
from auris.model.generation import Generation
from auris.model.llm import last_tokenwise
from auris.model.pack import IGNORE
from auris.model.weights import identify, loading
from auris.text import task_table
from auris.text.tokenizer import Tokenizer
from auris.training import optim
from auris.training.objectives.logps import CHUNK

GPUS = (1, 8, 64)
GIB = 2**30
# FLOP/s that training of 8 B models reaches on one in bf16: 39 % (torchtitan) and 43 % (NeMo AutoModel) of 989e12.
H100 = 400e12

# Bytes per parameter: a trained one has its fp32 master, a gradient and two moments of Adam; a frozen one is bf16.
MASTER, GRADIENT, FROZEN = 4, 4, 2
BUCKETED = 4  # more, of a trained one: DDP sums gradients in buckets of its own
# Of a pack, where no batch is at hand: rows of a 12.3 s clip (307 audio tokens), 16 of prompt and 42 of answer.
AUDIO_SHARE, ANSWER_SHARE = 0.84, 0.12


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of training.

    Args:
        trainable: parts that learn, as `optim.find` takes them. Adapters among them must be attached.
        reference: a frozen copy of the whole model stands beside it.
        runs_llm: False where only the encoder is run (CTC).
    """

    name: str
    trainable: tuple[str, ...]
    reference: bool = False
    runs_llm: bool = True

    def trains(self, part: str) -> bool:
        """Whether anything in a part of the net learns."""
        return any(name.split(".")[0] == part for name in self.trainable)


_AUDIO = ("encoder", "pooling", "projector", "boundary")
_TUNED = ("pooling", "projector", "boundary", "llm")
STAGES = (
    Stage(name="pre-training (LLM frozen)", trainable=_AUDIO),
    Stage(name="fine-tuning (encoder frozen)", trainable=_TUNED),
    Stage(name="DPO, reference precomputed", trainable=_TUNED),
    Stage(name="DPO, reference in memory", trainable=_TUNED, reference=True),
    Stage(name="everything trained", trainable=identify.PARTS),
)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one GPU works on at a time: tokens, encoder frames (20 ms) of their audio, positions that are scored, and
    where they are known the pairs of query and key that attention looks at, in the LLM and in the encoder."""

    tokens: int
    frames: int
    scored: int
    token_pairs: int = 0
    frame_pairs: int = 0

    @classmethod
    def of_budget(cls, tokens: int, pool: int) -> Load:
        """A full pack of typical rows."""
        return cls(tokens=tokens, frames=round(AUDIO_SHARE * tokens) * pool, scored=round(ANSWER_SHARE * tokens))

    @classmethod
    def of_rows(cls, tokens: float, seconds: float) -> Load:
        """Rows with so many tokens and seconds of audio together."""
        return cls(tokens=round(tokens), frames=round(50 * seconds), scored=round(ANSWER_SHARE * tokens))

    @classmethod
    def of_pack(cls, pack: Mapping[str, Any]) -> Load:
        frames = int(((pack["frames"] - 1) // 2 + 1).sum()) if "frames" in pack else 0
        return cls(tokens=len(pack["ids"]), frames=frames, scored=int((pack["labels"] != IGNORE).sum()))


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of a stage: weights, gradients and moments are shared by the GPUs, the rest is on each of them."""

    weights: int
    gradients: int
    moments: int
    activations: int
    recomputed: int  # activations where every block is computed again in backward
    logits: int
    gathered: int

    @property
    def states(self) -> int:
        return self.weights + self.gradients + self.moments

    def beside(self, *, recompute: bool) -> int:
        """Bytes on each GPU beside its share of the states."""
        return (self.recomputed if recompute else self.activations) + self.logits + self.gathered


def count(module: nn.Module) -> int:
    """Parameters of a module; tied ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def parameters(parts: Mapping[str, nn.Module]) -> dict[str, int]:
    """Parameters of each part by its pieces. The encoder's position table, a buffer of ours, has a line of its own."""
    table: dict[str, int] = {}
    if encoder := parts.get("encoder"):
        table["encoder: convolutions"] = count(encoder.conv1) + count(encoder.conv2)
        table["encoder: blocks"] = count(encoder.blocks)
        table["encoder: final norm"] = count(encoder.norm)
    table |= {part: count(parts[part]) for part in ("pooling", "projector", "boundary") if part in parts}
    if llm := parts.get("llm"):
        embedding, head = llm.get_input_embeddings(), llm.get_output_embeddings()
        tied = head.weight is embedding.weight
        table["llm: embedding"] = count(embedding)
        table["llm: head" + (" (the embedding)" if tied else "")] = 0 if tied else count(head)
        new = count(llm.new_tokens) if hasattr(llm, "new_tokens") else 0
        lora = sum(x.numel() for name, x in llm.named_parameters() if ".lora_" in name)
        tables = count(embedding) + (0 if tied else count(head))
        table["llm: layers and norm"] = count(llm) - tables - new - lora
        table |= {f"llm: {what}": n for what, n in (("rows of new tokens", new), ("LoRA", lora)) if n}
    return table


def trained(net: nn.Module, stage: Stage) -> int:
    """Parameters that learn in a stage."""
    parts = optim.find(net, stage.trainable)
    tensors = (x for part in parts for x in (part.parameters() if isinstance(part, nn.Module) else [part]))
    return sum({id(x): x.numel() for x in tensors}.values())


def memory(
    net: nn.Module,
    stage: Stage,
    load: Load,
    *,
    number: int = 2,
    frozen: int = FROZEN,
    moment: int = 4,
    buckets: bool = False,
) -> Memory:
    """What a stage needs, by sizes alone: `frozen` bytes for each frozen parameter, `moment` for each of the two
    moments of a trained one; `buckets`: gradients twice, by DDP.

    A layer keeps, `number` bytes each, 8 H + 4 F numbers per token in the LLM (gated MLP of width F) and 8 D + 2 F per
    frame in the encoder; recomputed, only its input. Frozen layers keep as much while anything below them learns, and
    nothing at the bottom. Logits are scored at most `CHUNK` rows at a time, in fp32, with their gradient. Gathered are
    two layers of the LLM (one is fetched ahead), its embedding and its head.
    """
    config = net.llm.config.get_text_config()
    n_layers, width = config.num_hidden_layers, config.hidden_size
    everything, learning = count(net), trained(net, stage)
    still = everything - learning + (everything if stage.reference else 0)

    tokens = load.tokens if stage.runs_llm else 0
    per_token = number * (8 * width + 4 * config.intermediate_size)
    blocks = net.encoder.blocks if stage.trains("encoder") else []
    per_frame = number * (8 * net.encoder.width + 2 * net.encoder.blocks[0].up.out_features) if blocks else 0
    kept = tokens * n_layers * per_token + load.frames * len(blocks) * per_frame
    inputs = number * (tokens * n_layers * width + load.frames * len(blocks) * net.encoder.width)
    embedding, head = net.llm.get_input_embeddings(), net.llm.get_output_embeddings()
    tables = count(embedding) + (0 if head.weight is embedding.weight else count(head))
    return Memory(
        weights=MASTER * learning + frozen * still,
        gradients=(GRADIENT + BUCKETED * buckets) * learning,
        moments=2 * moment * learning,
        activations=kept,
        recomputed=inputs + max(tokens * per_token, load.frames * per_frame),
        logits=min(load.scored, CHUNK) * embedding.num_embeddings * 2 * 4,
        gathered=number * (tables + 2 * (count(net.llm) - tables) // n_layers) if stage.runs_llm else 0,
    )


def work(net: nn.Module, stage: Stage, load: Load) -> int:
    """Floating-point operations of training on a load: the matrix products with weights, the bulk of them, and those of
    attention, as far as the load knows its pairs.

    Two for each weight and place where it is used in forward, as many for the gradient of what comes in where something
    below learns, and as many for its own gradient where it learns. Four for each pair and channel, of queries with keys
    and of weights with values, and twice as many where a gradient passes through.
    """
    embedding, head = net.llm.get_input_embeddings(), net.llm.get_output_embeddings()
    layers = count(net.llm) - count(embedding) - (0 if head.weight is embedding.weight else count(head))
    passes = {part: 3 if part in stage.trainable else 2 if stage.trains(part) else 1 for part in ("encoder", "llm")}
    alone = sum(count(part) for part in last_tokenwise(net.llm))  # at scored tokens only
    answering = load.tokens * (layers - alone) + load.scored * (alone + head.weight.numel()) if stage.runs_llm else 0
    # Whatever learns, the gradient passes through the language model: something below it, in it, or its adapters.
    products = 2 * (passes["encoder"] * load.frames * count(net.encoder) + max(2, passes["llm"]) * answering)
    products += 2 * _between(net, stage, load.frames) if stage.runs_llm else 0
    hearing = (3 if passes["encoder"] > 1 else 1) * load.frame_pairs * len(net.encoder.blocks) * net.encoder.width
    config = net.llm.config.get_text_config()
    channels = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    reading = 3 * load.token_pairs * config.num_hidden_layers * channels if stage.runs_llm else 0
    return products + 4 * (hearing + reading)


def _between(net: nn.Module, stage: Stage, frames: int) -> int:
    """Products of pooling and projector in training: a weight counts once for an audio token, or as often as its
    pooling `uses` it."""
    products, below = 0, stage.trains("encoder")
    for part, uses in ((net.pooling, getattr(net.pooling, "uses", 1)), (net.projector, 1)):
        learns = count(part) > 0 and stage.trains("pooling" if part is net.pooling else "projector")
        products += (1 + learns + below) * uses * count(part) * frames // net.geometry.pool
        below = below or learns
    return products


# --- what is shown ------------------------------------------------------------------------------------------------


def report(
    console: Console,
    net: nn.Module,
    *,
    token_budget: int,
    stages: Sequence[Stage] = STAGES,
    packs: Sequence[Mapping[str, Any]] = (),
    tokenizer: Tokenizer | None = None,
    epoch: Epoch | None = None,
    moment: int = 4,
) -> None:
    """Print a model's parameters and the memory of its stages; with `packs`, a first batch, that batch as well; with
    `epoch`, what that comes to.

    Args:
        net: may be on the meta device.
        token_budget: tokens of a pack, where there are no packs.
        stages: `Stage(name="this run", trainable=...)` for a recipe of its own.
        packs: of one step of one rank; memory is then that of the largest.
        tokenizer: to show the first row of the packs.
        moment: bytes of each of the optimizer's two.
    """
    console.print(_parameter_table({part: getattr(net, part) for part in identify.PARTS}))
    loads = [Load.of_pack(pack) for pack in packs]
    load = max(loads, key=lambda one: one.tokens) if loads else Load.of_budget(token_budget, net.geometry.pool)
    console.print(_memory_table(net, stages, load, moment))
    if packs:
        _show_batch(console, packs, tokenizer)
    if epoch is not None:
        console.print(_epoch_table(epoch))
        [stage] = stages
        _say(console, _epoch_time(net, stage, epoch))


def _parameter_table(parts: Mapping[str, nn.Module]) -> Table:
    table = Table("part", "parameters", title="parameters", title_justify="left")
    table.columns[1].justify = "right"
    lines = parameters(parts)
    for name, number in lines.items():
        table.add_row(name, f"{number:,}")
    table.add_section()
    table.add_row("all", f"{sum(lines.values()):,}")
    if "encoder" in parts:
        positions = parts["encoder"].positions.numel()
        table.add_row("the encoder's position table (fixed)", f"{positions:,}")
        table.add_row("all with it", f"{sum(lines.values()) + positions:,}")
    return table


def _memory_table(net: nn.Module, stages: Sequence[Stage], load: Load, moment: int) -> Table:
    """States by number of GPUs; what a pack adds is the same on each of them, however many there are."""
    title = (
        f"GiB on each GPU; a pack has {load.tokens:,} tokens, {load.frames / 50:,.0f} s of audio, "
        f"{load.scored:,} scored positions"
    )
    columns = [f"{n} GPU{'s' if n > 1 else ''}" for n in GPUS]
    table = Table("stage", *columns, "+ a pack", "+ a pack, recomputed", title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for stage in stages:
        need = memory(net, stage, load, moment=moment)
        cells = [need.states / n for n in GPUS] + [need.beside(recompute=False), need.beside(recompute=True)]
        table.add_row(stage.name, *(f"{size / GIB:.2f}" for size in cells))
    table.add_section()
    table.add_row("inference in bf16, whole on each", *[f"{FROZEN * count(net) / GIB:.2f}"] * len(GPUS), "", "")
    return table


def _epoch_table(epoch: Epoch) -> Table:
    """Each task's share, and how the ranks share the steps."""
    over = "" if epoch.looked_at == epoch.steps else f", found from {epoch.looked_at:,} of them"
    title = f"an epoch: {epoch.rows:,} rows ({epoch.unusable:,} unusable), {epoch.steps:,} steps{over}"
    each = (
        f"{epoch.ranks} ranks: {epoch.packs:.2f} packs of a rank in a step, {100 * epoch.fill:.1f} % full, no padding; "
        f"the busiest rank has {epoch.straggler:.3f} times the tokens of the average one"
    )
    table = Table("task", "rows", "hours", "tokens", "share", title=title, caption=each, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    whole = epoch.whole
    for task, share in [*epoch.tasks.items(), ("all", whole)]:
        if task == "all":
            table.add_section()
        part = f"{100 * share.tokens / max(1, whole.tokens):.1f} %"
        table.add_row(task, f"{share.rows:,.0f}", f"{share.seconds / 3600:,.2f}", f"{share.tokens:,.0f}", part)
    return table


def _epoch_time(net: nn.Module, stage: Stage, epoch: Epoch) -> str:
    whole = epoch.whole
    operations = work(net, stage, Load.of_rows(whole.tokens, whole.seconds))
    hours = operations / H100 / epoch.ranks / 3600 * epoch.straggler
    return (
        f"arithmetic of an epoch: {operations:.2e} FLOP; on {epoch.ranks} H100 at {H100 / 1e12:.0f} TFLOP/s each, as "
        f"8 B models are trained, {hours:,.2f} h"
    )


def _show_batch(console: Console, packs: Sequence[Mapping[str, Any]], tokenizer: Tokenizer | None) -> None:
    loads = [Load.of_pack(pack) for pack in packs]
    rows = sum(len(pack["rows"]) for pack in packs)
    tokens, scored = sum(load.tokens for load in loads), sum(load.scored for load in loads)
    heard, seconds = sum(len(pack["audio_index"]) for pack in packs), sum(pack["audio_seconds"] for pack in packs)
    counts = f"{tokens:,} tokens, {scored:,} of them scored, {heard:,} of audio ({seconds:.1f} s)"
    _say(console, f"first batch: {len(packs)} packs, {rows} rows, {counts}")
    for name, reason in (row for pack in packs for row in pack["skipped"]):
        _say(console, f"  left out {name}: {reason}")
    if tokenizer is not None and rows:
        _say(console, f"its first row: {spell(next(pack for pack in packs if pack['rows']), tokenizer)}")


def spell(pack: Mapping[str, Any], tokenizer: Tokenizer) -> str:
    """A pack's first row as text: audio as its number of tokens, what is learned in braces."""
    end = int(pack["cu_seqlens"][1])
    ids = pack["ids"][:end].numpy()
    audio = np.isin(np.arange(end), pack["audio_index"].numpy())
    learned = np.roll(pack["labels"][:end].numpy() != IGNORE, 1)  # labels stand one before the token that they name
    text = ""
    for (is_audio, is_learned), places in groupby(range(end), key=lambda t: (audio[t], learned[t])):
        these = list(places)
        piece = f"[{len(these)} audio tokens]" if is_audio else tokenizer.fast.decode(ids[these].tolist())
        text += f"{{{piece}}}" if is_learned else piece
    return text


def examine(path: str, which: str = "last", *, token_budget: int = 8192, console: Console | None = None) -> list[str]:
    """Print what a path holds and what can be done with it; returns what is wrong with it, one sentence each."""
    console = console or Console()
    found = identify.identify(path, which)
    source = found.source()
    _say(console, f"{path}: {identify.KINDS[found.kind]}")
    _say(console, _summary(source))
    wrong: list[str] = []
    if found.model is None:
        _show_part(console, found)
        return wrong
    tokenizer = _try(pretrained.tokenizer_of, found, wrong=wrong)
    rows = found.model.get("vocab_rows") or (tokenizer.size if tokenizer is not None else None)
    if rows is not None:
        with torch.device("meta"):
            net = recipe.build({key: node for key, node in found.model.items() if key != "vocab_rows"})(vocab_size=rows)
        wrong += loading.misfits(net, source, found.layout)
        if tokenizer is not None:
            _show_use(console, found, net, tokenizer, wrong)
        report(console, net, token_budget=token_budget)
    for fault in wrong:
        _say(console, f"wrong: {fault}", style="red")
    return wrong


def _say(console: Console, text: str, **options: Any) -> None:
    """A line as it is: paths are no markup, and do not end where the terminal does."""
    console.print(text, markup=False, highlight=False, soft_wrap=True, **options)


def _try(function: Callable[..., Any], *arguments: Any, wrong: list[str]) -> Any:
    """What a function returns, or None and its complaint among what is wrong."""
    try:
        return function(*arguments)
    except (ValueError, FileNotFoundError) as error:
        wrong.append(str(error))
        return None


def _summary(source: loading.Source) -> str:
    sizes: dict[str, int] = {}
    names = source.keys()
    for name in names:
        dtype = source.dtype(name)
        label = str(dtype).removeprefix("torch.")
        sizes[label] = sizes.get(label, 0) + math.prod(source.shape(name)) * dtype.itemsize
    held = ", ".join(f"{size / GIB:.2f} GiB of {label}" for label, size in sizes.items())
    return f"weights: {len(names)} tensors, {held}"


def _show_part(console: Console, found: identify.Checkpoint) -> None:
    [(part, node)] = found.parts.items()
    _say(console, f"fits: training with weights.{part}={found.path}")
    with torch.device("meta"):
        built = recipe.build(node)
        if part == "llm":
            built = built(vocab_size=_vocabulary_rows(found))
    console.print(_parameter_table({part: built}))
    if part == "llm":
        what = f"{found.tokenizer}: it grows by the tokens of audio" if found.tokenizer else "none there"
        _say(console, f"tokenizer: {what}")


def _vocabulary_rows(found: identify.Checkpoint) -> int:
    """Of a language model."""
    if found.kind == "qwen":
        return found.config["vocab_size"]
    return AutoConfig.for_model(**found.config).get_text_config().vocab_size


def _show_use(
    console: Console, found: identify.Checkpoint, net: nn.Module, tokenizer: Tokenizer, wrong: list[str]
) -> None:
    """Its tokenizer, how it answers, and what it can be exported as."""
    rows = net.llm.get_input_embeddings().num_embeddings
    _say(console, f"fits: checkpoint={found.path}, and weights.PART of {', '.join(found.parts)}")
    _say(console, f"tokenizer: {tokenizer.size:,} tokens for {rows:,} rows of the embedding")
    if found.generation:
        settings = _try(Generation.from_config, found.generation, wrong=wrong)
        _say(console, f"generation_config.json: {settings}")
    else:
        _say(console, "generation_config.json: none there; answers are greedy, to the end of the text")
    for name in export.FORMATS:
        missing = export.obstacles(net, tokenizer, name)
        _say(console, f"export format={name}: " + ("; ".join(missing) or "fits"))


def main() -> None:
    sys.argv[1:] = checkup.name_sources(recipe.quote_arguments(sys.argv[1:]))
    run()


@hydra.main(config_path=str(recipe.CONFIGS), config_name="doctor", version_base="1.3")
def run(cfg: DictConfig) -> None:
    if "data" in cfg:
        return checkup.run(cfg)
    if cfg.show is not None:
        return _show_tasks(cfg.show)
    try:
        made = recipe.resolve(cfg)
        wrong = examine(made["checkpoint"], made["which"], token_budget=made["token_budget"])
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    sys.exit(1 if wrong else 0)


def _show_tasks(what: str) -> None:
    try:
        task_table.show(what)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
