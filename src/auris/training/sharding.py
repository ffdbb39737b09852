"""Sharding and initialisation of a net that was built on the meta device.

The path is the same for every strategy: adapters are attached and parts frozen on the meta device, `shard` divides the
net, and `materialise` gives each process memory for its part and the initial weights, which do not depend on how the
net is divided. Gradients are sums over all rows of a step; nothing here averages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from auris import compat
from auris.errors import UserError
from auris.model import adapters, dtensor, llm
from auris.model.audio_lm import AudioLM

# Methods of a net that compute with its parameters and are called from outside, in addition to `forward`.
_ENTRIES = ("encode_frames", "hidden_states", "generate")

# transformers' names for the two ways of dividing a linear layer (`base_model_tp_plan` of its configs).
_STYLES = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}

_DRAWS = {torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default}


@dataclass(frozen=True, kw_only=True)
class Meshes:
    """Which processes share what.

    Attributes:
        whole: all processes, in one dimension, or in two: replicas of the model, and the processes that share one.
        layers: those that share a layer of the LLM: `whole`, or with tensor parallelism those with the same part of it.
        tensor: those that compute a layer of the LLM together; None if each process computes whole layers.
        dtype: of computation; trained weights, their gradients and the optimizer stay in float32.
    """

    whole: DeviceMesh
    layers: DeviceMesh
    tensor: DeviceMesh | None = None
    dtype: torch.dtype = torch.float32

    @property
    def copies(self) -> int:
        """Number of processes that compute the same gradient of what tensor parallelism leaves whole."""
        return 1 if self.tensor is None else self.tensor.size()


def shard(net: AudioLM, meshes: Meshes) -> None:
    """Divide a net on the meta device over processes (FSDP2), with its adapters attached and its parts frozen.

    Each block of the encoder, each layer of the LLM and its embedding is a unit; units are gathered one at a time. The
    rest, including the head, is one unit that stays gathered from a step's forward to its backward, so that each
    process may score its labels in its own number of chunks.

    With tensor parallelism the layers of the LLM are divided by heads and channels first. What this leaves whole is
    computed by all processes of a group in the same way, on the same rows; it is divided over them nevertheless, so
    that no two copies of a weight can drift apart. `check_split` says beforehand whether the LLM can be divided.
    """
    for parameter in net.parameters():
        if not parameter.requires_grad:  # only trained parameters need a master weight
            parameter.data = parameter.data.to(meshes.dtype)
    if meshes.tensor is not None:  # by attention heads and channels of the MLP, as transformers plans it
        plan = net.llm.config.get_text_config().base_model_tp_plan
        styles = {name: _STYLES[style]() for name, style in plan.items()}
        parallelize_module(net.llm.get_decoder(), meshes.tensor, styles)
    for block in net.encoder.blocks:
        _unit(block, meshes.whole, meshes.dtype, meshes.copies)
    for layer in llm.layers(net.llm):
        _unit(layer, meshes.layers, meshes.dtype)
    embedding = net.llm.get_input_embeddings()
    if embedding.weight is not net.llm.get_output_embeddings().weight:
        _unit(embedding, meshes.whole, meshes.dtype, meshes.copies)
    _unit(net, meshes.whole, meshes.dtype, meshes.copies, reshard_after_forward=False)
    for entry in _ENTRIES:
        register_fsdp_forward_method(net, entry)


def shard_objective(objective: nn.Module, meshes: Meshes) -> None:
    """Divide the parameters of an objective, if it has some. It is small, and has its values already."""
    if next(objective.parameters(), None) is not None:
        _unit(objective, meshes.whole, meshes.dtype, meshes.copies)
        register_fsdp_forward_method(objective, "answer")


def reshard(*modules: nn.Module) -> None:
    """Free what sharded modules have gathered: after a forward without backward they may still be gathered."""
    for module in modules:
        if isinstance(module, FSDPModule):
            module.reshard()


def _unit(
    module: nn.Module, mesh: DeviceMesh, dtype: torch.dtype, copies: int = 1, reshard_after_forward: bool | None = None
) -> None:
    """Make one FSDP unit of the parameters of a module that are in no unit yet.

    `copies`: number of processes that compute the same gradient.
    """
    # Inputs are not cast: reference log-probabilities come with the pack, and the model casts features itself.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)
    # Sums, not means: a step divides once, by its count. The factor alone would make FSDP scale inside the collective,
    # which gloo cannot do.
    module.set_force_sum_reduction_for_comms(True)
    module.set_gradient_divide_factor(float(copies))


def check_split(net: AudioLM, size: int, *, adapted: bool) -> None:
    """Check that `size` processes can compute each layer of the LLM together.

    Args:
        net: the net.
        size: number of processes.
        adapted: whether the net has, or will have, adapters.

    Raises:
        UserError: they cannot.
    """
    config, asked = net.llm.config.get_text_config(), f"trainer.strategy.tensor_parallel={size}"
    if adapted:
        raise UserError(
            f"{asked} does not divide adapters, but trainable names {adapters.LORA} or {adapters.NEW_TOKENS}: expected "
            "strategy=fsdp, or trainable=[...,llm]"
        )
    plan = getattr(config, "base_model_tp_plan", None) or {}
    if not plan or set(plan.values()) - _STYLES.keys():
        raise UserError(
            f"{asked}: transformers has no plan of {' and '.join(_STYLES)} layers for the LLM {config.model_type}, as "
            "for qwen2: expected strategy=fsdp"
        )
    for field in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        number = getattr(config, field)
        if number % size:
            raise UserError(f"{asked}: expected a divisor of the LLM's {field}={number}, or strategy=fsdp")


def materialise(net: nn.Module, device: torch.device | str, *, draw: bool = True) -> None:
    """Give a net on the meta device its memory and its initial weights, drawn from torch's global generator.

    `to_empty` leaves garbage in buffers as well as in parameters, so that every module that owns either has to fill it.

    Args:
        net: whole or sharded; each process gets its part of the same weights.
        device: of the memory.
        draw: False omits the random numbers (minutes for 8.4 billion weights) if all weights are loaded next.
    """
    net.to_empty(device=device)
    with torch.no_grad(), Draws(skip=not draw):
        _reset(net)


class Draws(compat.TorchDispatchMode):
    """Fills a sharded tensor with its part of the random numbers that the whole tensor would get.

    Every process draws the whole tensor, one tensor at a time. DTensor's own random numbers are independent on a CPU
    and depend on the sharding on a GPU.

    Args:
        skip: leave tensors as they are instead of filling them with random numbers.
    """

    def __init__(self, *, skip: bool = False) -> None:
        super().__init__()
        self.skip = skip

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func not in _DRAWS or not (self.skip or isinstance(args[0], DTensor)):
            return func(*args, **kwargs)
        if not self.skip:
            whole = torch.empty(args[0].shape, dtype=torch.float32, device="cpu")
            dtensor.copy_local(args[0], func(whole, *args[1:], **kwargs))
        return args[0]


def _reset(module: nn.Module) -> None:
    if isinstance(module, llm.PreTrainedModel):
        llm.reset_parameters(module)  # its own initialisation; torch's defaults must not overwrite it
        return
    for child in module.children():
        _reset(child)
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()  # after its children, whose initial weights it may change


@torch.no_grad()
def copy(source: AudioLM, target: AudioLM) -> None:
    """Copy the tensors of a net, without adapters, to an equal net that is divided in the same way."""
    tensors = target.state_dict()
    for name, tensor in source.state_dict().items():
        plain = adapters.base_name(name)
        if plain is not None:
            dtensor.local_part(tensors[plain])[0].copy_(dtensor.local_part(tensor)[0])


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], max_norm: float, *, scale: Tensor | float) -> Tensor:
    """Multiply gradients by `scale`, then clip the norm of the whole model's gradient.

    Parameters may be on several meshes, as with tensor parallelism, where torch's own clipping raises. One number is
    summed over the processes.

    Returns:
        The norm after scaling and before clipping, the same on all processes.
    """
    world = 1
    groups: dict[int, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            if isinstance(parameter.grad, DTensor):
                world = torch.distributed.get_world_size()
            groups.setdefault(dtensor.count_parts(parameter.grad), []).append(
                dtensor.local_part(parameter.grad)[0].mul_(scale)
            )
    # Each of n parts that are spread over `world` processes is counted world / n times.
    square = sum(nn.utils.get_total_norm(group).square() * (n / world) for n, group in groups.items())
    if world > 1:
        torch.distributed.all_reduce(square)
    norm = square.sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # 1e-6: as torch's clip_grad_norm_
    for group in groups.values():
        for gradient in group:
            gradient.mul_(factor)
    return norm
