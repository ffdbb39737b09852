"""Cost model of training: parameters, memory and floating-point operations, computed from sizes alone.

Nothing here is measured, except for `peak_bytes`. The dry run, the doctor, the throughput counters and the scaling
benchmark all take their numbers from this module.
"""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from auris.audio import ENCODER_RATE, encoder_frames
from auris.errors import UserError
from auris.model.llm import last_tokenwise
from auris.model.pack import IGNORE, Pack
from auris.model.weights import identify
from auris.training import optim
from auris.training.objectives.logps import CHUNK
from auris.training.objectives.objective import Objective

GIB = 2**30
# FLOP/s that the training of 8 B models reaches on an H100 in bf16: 39 % (torchtitan) and 43 % (NeMo AutoModel) of
# its peak of 989e12.
H100_TRAINING = 400e12

# Bytes per parameter: a trained one has an fp32 master weight, a gradient and Adam's two moments; a frozen one is bf16.
MASTER, GRADIENT, FROZEN = 4, 4, 2
# Additional bytes of a gradient under DDP, which sums gradients in buckets of its own.
BUCKET = 4
# Composition of a typical pack where no batch is at hand: rows of a 12.3 s clip (307 audio tokens) with 16 tokens of
# prompt and 42 of answer.
AUDIO_SHARE, ANSWER_SHARE = 0.84, 0.12

# Peak FLOP/s of one device, for dense bfloat16 products with float32 accumulation, by the words of the device's name.
# They agree with Lightning's table (lightning.fabric.utilities.throughput), except for the H200: Lightning lists it
# with sparsity, twice as fast. Its SXM version has the same cores as the H100. A device that is not listed gets no MFU.
PEAK_FLOPS = {
    "H200": 989.4e12,
    "H200 NVL": 835.5e12,
    "H100 HBM3": 989.4e12,  # SXM
    "H100 PCIe": 756e12,
    "A100": 312e12,
    "L4": 121e12,
    "L40": 181e12,
}
_HALF_PRECISION = ("bf16", "16")  # prefixes of the precisions to which `PEAK_FLOPS` applies


def peak_flops(device: str, precision: str, setting: float | None = None) -> tuple[float | None, str]:
    """Return the peak FLOP/s of one device and where the number comes from, or None and why it is unknown.

    Args:
        device: the device's name as torch gives it.
        precision: as Lightning names it.
        setting: the user's `peak_flops`, which takes precedence.

    Raises:
        UserError: the setting is not a positive number.
    """
    if setting is not None:
        if isinstance(setting, bool) or not isinstance(setting, (int, float)) or not 0 < setting < float("inf"):
            raise UserError(f"peak_flops={setting}: expected FLOP/s of one device, as 989e12, or null")
        return float(setting), "peak_flops"
    words = set(re.split(r"[\s-]+", device))
    matches = [name for name in PEAK_FLOPS if set(name.split()) <= words]
    if not matches or "MIG" in words:
        return None, f"the peak of {device} is not known"
    if not precision.startswith(_HALF_PRECISION):
        return None, f"the peak of {device} in {precision} is not known"
    return PEAK_FLOPS[max(matches, key=lambda name: len(name.split()))], device


def peak_bytes(device: torch.device) -> int:
    """Return the most memory that this process has used so far: GPU memory, or resident memory without a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else 1024 * resident


# --- what is trained, and on what ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of training.

    Attributes:
        name: title of its line in a table.
        trainable: parts that learn, as `optim.find` takes them. Adapters among them must be attached.
        reference: whether a frozen copy of the whole model is in memory too.
        runs_llm: False where only the encoder is computed (CTC).
    """

    name: str
    trainable: tuple[str, ...]
    reference: bool = False
    runs_llm: bool = True

    @classmethod
    def of(cls, objective: Objective, trainable: Iterable[str]) -> Stage:
        """Return the stage that trains these parts on an objective."""
        return cls(
            name="this run",
            trainable=tuple(trainable),
            reference=getattr(objective, "reference", None) == "live",
            runs_llm="transcript" not in objective.views,
        )

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
    """What one GPU computes at a time.

    Attributes:
        tokens: of the LLM.
        frames: of the encoder (20 ms).
        scored: positions at which logits are computed.
        token_pairs: pairs of query and key that the LLM's attention computes, 0 if unknown.
        frame_pairs: the same for the encoder.
    """

    tokens: int = 0
    frames: int = 0
    scored: int = 0
    token_pairs: int = 0
    frame_pairs: int = 0

    @classmethod
    def of_budget(cls, tokens: int, pool: int) -> Load:
        """Return the load of a full pack of typical rows."""
        return cls(tokens=tokens, frames=round(AUDIO_SHARE * tokens) * pool, scored=round(ANSWER_SHARE * tokens))

    @classmethod
    def of_rows(cls, tokens: float, seconds: float) -> Load:
        """Return the load of typical rows with this total of tokens and seconds of audio."""
        return cls(tokens=round(tokens), frames=round(ENCODER_RATE * seconds), scored=round(ANSWER_SHARE * tokens))

    @classmethod
    def of_pack(cls, pack: Pack) -> Load:
        """Return the load of a pack."""
        counts = pack_counts(pack)
        return cls(**{name: int(counts[name]) for name in LOAD})


LOAD = tuple(field.name for field in fields(Load))


def pack_counts(pack: Pack) -> dict[str, Tensor]:
    """Count what a pack asks of a model, on the pack's device and without synchronising with it.

    Returns:
        One scalar for each field of `Load`, and `idle`: tokens and frames that are computed although they belong to no
        row, because every rank has to compute something (`model.pack.Pack`). They are in none of the other counts.
    """
    ids, cu = pack["ids"], pack["cu_seqlens"].long()
    queries = cu.diff()
    keys = pack["cu_keys"].long().diff() if "cu_keys" in pack else queries
    zero = torch.zeros((), dtype=torch.int64, device=ids.device)
    frames = encoder_frames(pack["frames"].to(ids.device)) if "frames" in pack else zero[None]
    has_rows, has_audio = bool(pack["rows"]), pack["audio_seconds"] > 0
    counts = {
        "tokens": queries.sum() if has_rows else zero,
        "frames": frames.sum() if has_audio else zero,
        "scored": (pack["labels"] != IGNORE).sum() if has_rows else zero,
        # The last query sees all keys, the one before it one key less, and so on.
        "token_pairs": (queries * keys - queries * (queries - 1) // 2).sum() if has_rows else zero,
        "frame_pairs": frames.square().sum() if has_audio else zero,
    }
    return counts | {"idle": len(ids) + frames.sum() - counts["tokens"] - counts["frames"]}


# --- parameters ---------------------------------------------------------------------------------------------------


def count_parameters(module: nn.Module) -> int:
    """Count a module's parameters. Tied ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def parameters_by_piece(parts: Mapping[str, nn.Module]) -> dict[str, int]:
    """Count the parameters of each part, encoder and LLM divided into pieces."""
    table: dict[str, int] = {}
    if encoder := parts.get("encoder"):
        table["encoder: convolutions"] = count_parameters(encoder.conv1) + count_parameters(encoder.conv2)
        table["encoder: blocks"] = count_parameters(encoder.blocks)
        table["encoder: final norm"] = count_parameters(encoder.norm)
    table |= {part: count_parameters(parts[part]) for part in ("pooling", "projector", "boundary") if part in parts}
    if llm := parts.get("llm"):
        embedding, head = _tables(llm)
        table["llm: embedding"] = embedding
        table["llm: head" + ("" if head else " (the embedding)")] = head
        new = count_parameters(llm.new_tokens) if hasattr(llm, "new_tokens") else 0
        lora = sum(x.numel() for name, x in llm.named_parameters() if ".lora_" in name)
        table["llm: layers and norm"] = count_parameters(llm) - embedding - head - new - lora
        table |= {f"llm: {what}": n for what, n in (("rows of new tokens", new), ("LoRA", lora)) if n}
    return table


def _tables(llm: nn.Module) -> tuple[int, int]:
    """Count the parameters of an LLM's embedding and of its head, 0 for a head that is tied to the embedding."""
    embedding, head = llm.get_input_embeddings(), llm.get_output_embeddings()
    return count_parameters(embedding), 0 if head.weight is embedding.weight else count_parameters(head)


def trained_parameters(net: nn.Module, stage: Stage) -> int:
    """Count the parameters that learn in a stage."""
    parts = optim.find(net, stage.trainable)
    tensors = (x for part in parts for x in (part.parameters() if isinstance(part, nn.Module) else [part]))
    return sum({id(x): x.numel() for x in tensors}.values())


# --- memory -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that a stage needs. Weights, gradients and moments are divided over the GPUs, the rest is on each of them.

    Attributes:
        recomputed: activations if every block is recomputed in backward.
        gathered: layers that are gathered at a time where the model is sharded.
    """

    weights: int
    gradients: int
    moments: int
    activations: int
    recomputed: int
    logits: int
    gathered: int

    @property
    def states(self) -> int:
        """Bytes that are divided over the GPUs."""
        return self.weights + self.gradients + self.moments

    def per_gpu(self, *, recompute: bool) -> int:
        """Return the bytes on each GPU in addition to its share of the states."""
        return (self.recomputed if recompute else self.activations) + self.logits + self.gathered


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
    """Compute the memory that a stage needs.

    In the LLM, a layer keeps 8 H + 4 F numbers per token (gated MLP of width F), in the encoder 8 D + 2 F per frame; if
    it is recomputed, only its input. Frozen layers keep just as much if anything below them learns, and nothing
    otherwise. Logits are computed for at most `CHUNK` rows at a time, in fp32, together with their gradient. Gathered
    are two layers of the LLM (one is fetched ahead), its embedding and its head.

    Args:
        net: may be on the meta device.
        stage: what learns.
        load: the pack that a GPU computes.
        number: bytes of an activation.
        frozen: bytes of a frozen parameter.
        moment: bytes of each of the optimizer's two moments of a trained parameter.
        buckets: gradients are in memory twice, as under DDP.
    """
    config = net.llm.config.get_text_config()
    n_layers, width = config.num_hidden_layers, config.hidden_size
    everything, learning = count_parameters(net), trained_parameters(net, stage)
    still = everything - learning + (everything if stage.reference else 0)

    tokens = load.tokens if stage.runs_llm else 0
    per_token = number * (8 * width + 4 * config.intermediate_size)
    blocks = net.encoder.blocks if stage.trains("encoder") else []
    per_frame = number * (8 * net.encoder.width + 2 * net.encoder.blocks[0].up.out_features) if blocks else 0
    inputs = number * (tokens * n_layers * width + load.frames * len(blocks) * net.encoder.width)
    tables = sum(_tables(net.llm))
    return Memory(
        weights=MASTER * learning + frozen * still,
        gradients=(GRADIENT + BUCKET * buckets) * learning,
        moments=2 * moment * learning,
        activations=tokens * n_layers * per_token + load.frames * len(blocks) * per_frame,
        recomputed=inputs + max(tokens * per_token, load.frames * per_frame),
        logits=min(load.scored, CHUNK) * net.llm.get_input_embeddings().num_embeddings * 2 * 4,
        gathered=number * (tables + 2 * (count_parameters(net.llm) - tables) // n_layers) if stage.runs_llm else 0,
    )


# --- arithmetic ---------------------------------------------------------------------------------------------------


def training_flops(net: nn.Module, stage: Stage, load: Load) -> int:
    """Count the useful floating-point operations of training on a load.

    These are the matrix products with weights, the bulk of them, and the products of attention where the load knows its
    pairs. A weight costs two operations for each position at which it is used in forward, two more for the gradient of
    its input if something below it learns, and two more for its own gradient if it learns. A pair of query and key
    costs four operations per channel (queries with keys, weights with values), and eight more if a gradient passes
    through.
    """
    embedding, head = _tables(net.llm)
    layers = count_parameters(net.llm) - embedding - head
    head_weight = net.llm.get_output_embeddings().weight.numel()
    passes = {part: 3 if part in stage.trainable else 2 if stage.trains(part) else 1 for part in ("encoder", "llm")}
    scored_only = sum(count_parameters(part) for part in last_tokenwise(net.llm))  # computed at scored positions only
    llm = load.tokens * (layers - scored_only) + load.scored * (scored_only + head_weight) if stage.runs_llm else 0
    # Whatever learns, the gradient passes through the LLM: something below it, in it, or its adapters.
    products = 2 * (passes["encoder"] * load.frames * count_parameters(net.encoder) + max(2, passes["llm"]) * llm)
    products += 2 * _bridge_products(net, stage, load.frames) if stage.runs_llm else 0

    encoder_passes = 3 if passes["encoder"] > 1 else 1
    encoder_attention = encoder_passes * load.frame_pairs * len(net.encoder.blocks) * net.encoder.width
    config = net.llm.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    channels = config.num_attention_heads * head_dim
    llm_attention = 3 * load.token_pairs * config.num_hidden_layers * channels if stage.runs_llm else 0
    return products + 4 * (encoder_attention + llm_attention)


def _bridge_products(net: nn.Module, stage: Stage, frames: int) -> int:
    """Count the products of pooling and projector: a weight counts once per audio token, or as often as its pooling
    `uses` it, for forward and for each gradient."""
    products, below = 0, stage.trains("encoder")
    for name, part, uses in (
        ("pooling", net.pooling, getattr(net.pooling, "uses", 1)),
        ("projector", net.projector, 1),
    ):
        parameters = count_parameters(part)
        learns = parameters > 0 and stage.trains(name)
        products += (1 + learns + below) * uses * parameters * frames // net.geometry.pool
        below = below or learns
    return products
