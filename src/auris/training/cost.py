"""Cost model of training: parameters, memory and floating-point operations, computed from sizes alone.

Only `measure_peak_bytes` measures anything. The dry run, `auris doctor`, the throughput callback and the scaling
benchmark take their numbers from this module.
"""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import takewhile
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from auris.audio import ENCODER_RATE, n_encoder_frames
from auris.model.llm import tokenwise_parts_of_last_layer
from auris.model.pack import IGNORE, Pack
from auris.model.weights import identify
from auris.training import optim
from auris.training.objectives.logps import POSITIONS_PER_CHUNK
from auris.training.objectives.objective import Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from auris.model.audio_lm import AudioLM
    from auris.model.encoder import Encoder
    from auris.model.pooling import Pooling

GIB = 2**30
# FLOP/s reached when 8 B models are trained on an H100 in bf16: torchtitan reports 39 % and NeMo AutoModel 43 % of the
# peak of 989e12.
H100_TRAINING_FLOPS = 400e12

# Bytes per parameter. A trained parameter has a master weight and a gradient in fp32, and the two moments of Adam. A
# frozen parameter is stored in bf16.
MASTER_BYTES, GRADIENT_BYTES, FROZEN_BYTES = 4, 4, 2
# Additional bytes per gradient under DDP, which copies gradients into buckets to sum them.
BUCKET_BYTES = 4
# Shares of audio tokens and of answer tokens in a typical pack, for estimates without a batch. A typical row consists
# of 307 audio tokens (12.3 s), 16 prompt tokens and 42 answer tokens.
AUDIO_SHARE, ANSWER_SHARE = 0.84, 0.12

# Peak FLOP/s of one device for dense bfloat16 products with float32 accumulation. A key applies to a device if all its
# words occur in the device's name. The values agree with Lightning's table (lightning.fabric.utilities.throughput),
# except for the H200: Lightning lists the speed with sparsity, which is twice as high. The SXM version of the H200 has
# the same cores as the H100. No MFU is reported for other devices.
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


def find_peak_flops(device: str, precision: str, setting: float | None = None) -> tuple[float | None, str]:
    """Return the peak FLOP/s of one device and the source of the number, or None and the reason why it is unknown.

    Args:
        device: Name of the device as torch reports it.
        precision: Precision as Lightning names it.
        setting: The config key `peak_flops`, which takes precedence over the table.
    """
    if setting is not None:
        return float(setting), "peak_flops"
    words = set(re.split(r"[\s-]+", device))
    matches = [name for name in PEAK_FLOPS if set(name.split()) <= words]
    if not matches or "MIG" in words:  # a MIG device is only a part of a GPU
        return None, f"the peak FLOP/s of {device} is not known"
    if not precision.startswith(_HALF_PRECISION):
        return None, f"the peak FLOP/s of {device} in {precision} is not known"
    return PEAK_FLOPS[max(matches, key=lambda name: len(name.split()))], device


def measure_peak_bytes(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: GPU memory, or resident memory if the device is not a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes on macOS, KiB on Linux


# --- stages and workloads -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of training, described by the parts that it trains and by the models that it keeps in memory.

    Attributes:
        name: Title of the stage in a table.
        trainable: Names of the trained parts (`optim.find_parts`). If adapters are among them, they must be attached.
        has_reference: Whether a frozen copy of the whole model is in memory as well.
        runs_llm: Whether the LLM is run. CTC runs the encoder only.
        has_cached_frames: Whether the output of the encoder's frozen blocks is cached (`training.encoder_frames`).
    """

    name: str
    trainable: tuple[str, ...]
    has_reference: bool = False
    runs_llm: bool = True
    has_cached_frames: bool = False

    @classmethod
    def of(cls, objective: Objective, trainable: Iterable[str], *, has_cached_frames: bool = False) -> Stage:
        """Return the stage that trains the given parts of a net on an objective."""
        return cls(
            name="this run",
            trainable=tuple(trainable),
            has_reference=getattr(objective, "reference", None) == "live",
            runs_llm=not {"transcript", "spoken"} & set(objective.views),  # the view of CTC
            has_cached_frames=has_cached_frames,
        )

    def trains(self, part: str) -> bool:
        """Return whether any parameter in a part of the net is trained."""
        return any(name.split(".")[0] == part for name in self.trainable)


_AUDIO_PARTS = ("encoder", "pooling", "projector", "boundary")
_FINE_TUNED_PARTS = ("pooling", "projector", "boundary", "llm")
STAGES = (
    Stage(name="pre-training (LLM frozen)", trainable=_AUDIO_PARTS),
    Stage(name="fine-tuning (encoder frozen)", trainable=_FINE_TUNED_PARTS),
    Stage(name="DPO, reference precomputed", trainable=_FINE_TUNED_PARTS),
    Stage(name="DPO, reference in memory", trainable=_FINE_TUNED_PARTS, has_reference=True),
    Stage(name="everything trained", trainable=identify.PARTS),
)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Amount of computation in a pack.

    Attributes:
        tokens: Number of tokens of the LLM.
        frames: Number of encoder frames (20 ms).
        scored: Number of positions at which logits are computed.
        token_pairs: Number of pairs of query and key that the LLM's attention computes, 0 if unknown.
        frame_pairs: Number of pairs of query and key that the encoder's attention computes, 0 if unknown.
    """

    tokens: int = 0
    frames: int = 0
    scored: int = 0
    token_pairs: int = 0
    frame_pairs: int = 0

    @classmethod
    def of_budget(cls, tokens: int, *, pool: int) -> Workload:
        """Return the workload of a full pack of typical rows.

        Args:
            tokens: Token budget of a pack.
            pool: Number of encoder frames per audio token.
        """
        return cls(tokens=tokens, frames=round(AUDIO_SHARE * tokens) * pool, scored=round(ANSWER_SHARE * tokens))

    @classmethod
    def of_rows(cls, tokens: float, seconds: float) -> Workload:
        """Return the workload of typical rows, given their total number of tokens and seconds of audio."""
        return cls(tokens=round(tokens), frames=round(ENCODER_RATE * seconds), scored=round(ANSWER_SHARE * tokens))

    @classmethod
    def of_pack(cls, pack: Pack) -> Workload:
        """Return the workload of a pack."""
        counts = count_workload(pack)
        return cls(**{name: int(counts[name]) for name in WORKLOAD_FIELDS})


WORKLOAD_FIELDS = tuple(field.name for field in fields(Workload))


def count_workload(pack: Pack) -> dict[str, Tensor]:
    """Count the workload of a pack on the pack's device, without synchronising with the device.

    Returns:
        A scalar for each field of `Workload`, and `idle`: the number of tokens and frames that belong to no row. These
        are computed because every rank has to compute something (`model.pack.Pack`). The other counts do not include
        them.
    """
    ids, cu = pack["ids"], pack["cu_seqlens"].long()
    queries = cu.diff()
    keys = pack["cu_keys"].long().diff() if "cu_keys" in pack else queries
    zero = torch.zeros((), dtype=torch.int64, device=ids.device)
    frames = n_encoder_frames(pack["frames"].to(ids.device)) if "frames" in pack else zero[None]
    has_rows, has_audio = bool(pack["rows"]), pack["audio_seconds"] > 0
    counts = {
        "tokens": queries.sum() if has_rows else zero,
        "frames": frames.sum() if has_audio else zero,
        "scored": (pack["labels"] != IGNORE).sum() if has_rows else zero,
        # The last query attends to all keys, the one before it to all but one, and so on.
        "token_pairs": (queries * keys - queries * (queries - 1) // 2).sum() if has_rows else zero,
        "frame_pairs": frames.square().sum() if has_audio else zero,
    }
    return counts | {"idle": len(ids) + frames.sum() - counts["tokens"] - counts["frames"]}


# --- parameters ---------------------------------------------------------------------------------------------------


def count_parameters(module: nn.Module | Pooling) -> int:
    """Return the number of parameters of a module. Tied parameters count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_by_component(parts: Mapping[str, nn.Module]) -> dict[str, int]:
    """Return the number of parameters of each part of a net; encoder and LLM are divided into their components."""
    counts: dict[str, int] = {}
    if encoder := cast("Encoder | None", parts.get("encoder")):
        counts["encoder: convolutions"] = count_parameters(encoder.conv1) + count_parameters(encoder.conv2)
        counts["encoder: blocks"] = count_parameters(encoder.blocks)
        counts["encoder: final norm"] = count_parameters(encoder.norm)
    counts |= {part: count_parameters(parts[part]) for part in ("pooling", "projector", "boundary") if part in parts}
    if llm := cast("PreTrainedModel | None", parts.get("llm")):
        n_embedding, n_head_weights = _count_embedding_and_head(llm)
        counts["llm: embedding"] = n_embedding
        counts["llm: head" + ("" if n_head_weights else " (the embedding)")] = n_head_weights
        new_tokens = getattr(llm, "new_tokens", None)
        n_new = count_parameters(new_tokens) if isinstance(new_tokens, nn.Module) else 0
        n_lora = sum(x.numel() for name, x in llm.named_parameters() if ".lora_" in name)
        counts["llm: layers and norm"] = count_parameters(llm) - n_embedding - n_head_weights - n_new - n_lora
        adapters = {"llm: rows of new tokens": n_new, "llm: LoRA": n_lora}
        counts |= {name: count for name, count in adapters.items() if count}
    return counts


def _embedding_and_head(llm: PreTrainedModel) -> tuple[nn.Embedding, nn.Linear]:
    """Return the embedding and the head of an LLM, whose weights may be tied."""
    # transformers only declares that both are modules.
    return cast("nn.Embedding", llm.get_input_embeddings()), cast("nn.Linear", llm.get_output_embeddings())


def _count_embedding_and_head(llm: PreTrainedModel) -> tuple[int, int]:
    """Return the number of parameters of an LLM's embedding and head. A head that is tied to the embedding counts 0."""
    embedding, head = _embedding_and_head(llm)
    return count_parameters(embedding), 0 if head.weight is embedding.weight else count_parameters(head)


def count_trained_parameters(net: AudioLM, stage: Stage) -> int:
    """Return the number of parameters that a stage trains."""
    parts = optim.find_parts(net, stage.trainable)
    tensors = (x for part in parts for x in (part.parameters() if isinstance(part, nn.Module) else [part]))
    return sum({id(x): x.numel() for x in tensors}.values())


# --- memory -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of a stage in bytes.

    Weights, gradients and moments may be sharded over GPUs; everything else is needed on each GPU.

    Attributes:
        weights: Bytes of all weights, trained or frozen.
        gradients: Bytes of the gradients of trained weights.
        moments: Bytes of the optimizer's moments.
        activations: Bytes of the activations if nothing is recomputed.
        recomputed: Bytes of the activations if every block is recomputed in backward.
        logits: Bytes of the logits and of their gradient.
        gathered: Bytes of the layers that are gathered at the same time if the model is sharded.
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
        """Bytes of weights, gradients and moments, which can be sharded over GPUs."""
        return self.weights + self.gradients + self.moments

    def bytes_without_states(self, *, recompute: bool) -> int:
        """Return the bytes on each GPU in addition to its shard of the states."""
        return (self.recomputed if recompute else self.activations) + self.logits + self.gathered


def estimate_memory(
    net: AudioLM,
    stage: Stage,
    workload: Workload,
    *,
    activation_bytes: int = 2,
    frozen_bytes: int = FROZEN_BYTES,
    moment_bytes: int = 4,
    has_buckets: bool = False,
) -> Memory:
    """Estimate the memory of a stage.

    A layer of the LLM stores 8 H + 4 F numbers per token (hidden size H, gated MLP of width F), and a block of the
    encoder 8 D + 2 F numbers per frame (width D, MLP of width F). A layer that is recomputed stores its input only.
    Frozen layers store as much as trained ones if anything below them is trained, and nothing otherwise. Logits are
    computed in fp32 for at most `POSITIONS_PER_CHUNK` positions at a time, together with their gradient. If the model
    is sharded, two layers of the LLM (one of them is prefetched), its embedding and its head are gathered at the same
    time.

    Args:
        net: The net, which may be on the meta device.
        stage: The stage.
        workload: Size of the pack that a GPU computes.
        activation_bytes: Bytes of one activation.
        frozen_bytes: Bytes of one frozen parameter.
        moment_bytes: Bytes of each of the optimizer's two moments, for one trained parameter.
        has_buckets: Whether gradients are in memory twice, as with DDP.
    """
    config = net.llm.config.get_text_config()
    n_layers, width = config.num_hidden_layers, config.hidden_size
    total, trained = count_parameters(net), count_trained_parameters(net, stage)
    untrained = total - trained + (total if stage.has_reference else 0)

    tokens = workload.tokens if stage.runs_llm else 0
    bytes_per_token = activation_bytes * (8 * width + 4 * config.intermediate_size)
    blocks = net.encoder.blocks if stage.trains("encoder") else []
    bytes_per_frame = (
        activation_bytes * (8 * net.encoder.width + 2 * cast("nn.Linear", net.encoder.blocks[0].up).out_features)
        if blocks
        else 0
    )
    layer_input_bytes = activation_bytes * (
        tokens * n_layers * width + workload.frames * len(blocks) * net.encoder.width
    )
    n_embedding_and_head = sum(_count_embedding_and_head(net.llm))
    gathered = activation_bytes * (
        n_embedding_and_head + 2 * (count_parameters(net.llm) - n_embedding_and_head) // n_layers
    )
    return Memory(
        weights=MASTER_BYTES * trained + frozen_bytes * untrained,
        gradients=(GRADIENT_BYTES + BUCKET_BYTES * has_buckets) * trained,
        moments=2 * moment_bytes * trained,
        activations=tokens * n_layers * bytes_per_token + workload.frames * len(blocks) * bytes_per_frame,
        recomputed=layer_input_bytes + max(tokens * bytes_per_token, workload.frames * bytes_per_frame),
        logits=min(workload.scored, POSITIONS_PER_CHUNK) * _embedding_and_head(net.llm)[0].num_embeddings * 2 * 4,
        gathered=gathered if stage.runs_llm else 0,
    )


# --- arithmetic ---------------------------------------------------------------------------------------------------


def count_training_flops(net: AudioLM, stage: Stage, workload: Workload) -> int:
    """Return the number of useful floating-point operations of training on a workload.

    Most of them are matrix products with weights. A weight costs two operations for each position at which it is used
    in forward, two more for the gradient of its input if something below it is trained, and two more for the gradient
    of the weight if it is trained. The products of attention are counted if the workload states the numbers of pairs. A
    pair of query and key costs four operations per channel (query times key, weight times value), and eight more if a
    gradient passes through the attention.
    """
    n_layer_weights = count_parameters(net.llm) - sum(_count_embedding_and_head(net.llm))
    n_head_weights = _embedding_and_head(net.llm)[1].weight.numel()  # includes a head that is tied to the embedding
    # Number of products for each use of a weight: one each in forward, for the gradient of its input, and for the
    # gradient of the weight. The last one is left out if only adapters or single layers of encoder or LLM are trained.
    passes = {part: 3 if part in stage.trainable else 2 if stage.trains(part) else 1 for part in ("encoder", "llm")}
    # Number of weights of the last layer that are used only at positions with logits.
    n_last_weights = sum(count_parameters(part) for part in tokenwise_parts_of_last_layer(net.llm))
    llm_uses = 0  # number of times that a weight of the LLM is used in forward, summed over its weights
    if stage.runs_llm:
        llm_uses += workload.tokens * (n_layer_weights - n_last_weights)
        llm_uses += workload.scored * (n_last_weights + n_head_weights)
    # A gradient always passes through the LLM, because a part below it, the LLM or its adapters are trained.
    encoder_parts = _computed_encoder_parts(net, stage)
    n_encoder_weights = sum(map(count_parameters, encoder_parts))
    flops = 2 * (passes["encoder"] * workload.frames * n_encoder_weights + max(2, passes["llm"]) * llm_uses)
    if stage.runs_llm or stage.trains("projector"):  # an aligner has audio tokens, but does not run the LLM
        flops += 2 * _pooling_and_projector_products(net, stage, workload.frames)

    encoder_passes = 3 if passes["encoder"] > 1 else 1
    n_blocks = sum(part in encoder_parts for part in net.encoder.blocks)
    encoder_attention = encoder_passes * workload.frame_pairs * n_blocks * net.encoder.width
    config = net.llm.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    channels = config.num_attention_heads * head_dim
    llm_attention = 3 * workload.token_pairs * config.num_hidden_layers * channels if stage.runs_llm else 0
    return flops + 4 * (encoder_attention + llm_attention)


def _computed_encoder_parts(net: AudioLM, stage: Stage) -> list[nn.Module]:
    """Return the parts of the encoder that are computed in each step: all, or those above the cached frames."""
    encoder = net.encoder
    if not stage.has_cached_frames:
        return [encoder.conv1, encoder.conv2, *encoder.blocks, encoder.norm]
    parts = optim.find_parts(net, [name for name in stage.trainable if name.split(".")[0] == "encoder"])
    trained = {id(x) for part in parts for x in (part.parameters() if isinstance(part, nn.Module) else [part])}
    is_cached = takewhile(lambda block: not any(id(x) in trained for x in block.parameters()), encoder.blocks)
    return [*encoder.blocks[len(list(is_cached)) :], encoder.norm]


def _pooling_and_projector_products(net: AudioLM, stage: Stage, frames: int) -> int:
    """Return the number of multiplications in pooling and projector, in forward and backward.

    For each audio token, a weight of the projector is used once, and a weight of the pooling is used
    `pooling.weight_uses` times.
    """
    products, is_trained_below = 0, stage.trains("encoder")
    for name, part, uses in (
        ("pooling", net.pooling, getattr(net.pooling, "weight_uses", 1)),
        ("projector", net.projector, 1),
    ):
        n_parameters = count_parameters(part)
        is_trained = n_parameters > 0 and stage.trains(name)
        products += (1 + is_trained + is_trained_below) * uses * n_parameters * frames // net.geometry.pool
        is_trained_below = is_trained_below or is_trained
    return products
