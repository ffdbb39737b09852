"""Sharding and initialisation of a net that was built on the meta device.

Every strategy follows the same steps: adapters are attached and parts frozen on the meta device, `shard` divides the
net, and `materialise` allocates memory for the shard of each process and draws the initial weights, which do not depend
on the sharding. Gradients are sums over all rows of a step; nothing in this module averages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from auris import compat
from auris.errors import UserError
from auris.model import adapters, dtensor, llm
from auris.model.audio_lm import AudioLM

# Methods of a net, other than `forward`, that are called from outside the net and use its parameters. FSDP has to
# gather the parameters for each call.
_FORWARD_METHODS = ("encode_frames", "encoder_output", "encode_with_embeddings", "hidden_states", "generate")

# Ways to divide a linear layer, by the names that transformers uses for them (`base_model_tp_plan` of a config).
_STYLES = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}

# Operations of torch that fill a tensor with random numbers.
_RANDOM_FILLS = {torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default}


@dataclass(frozen=True, kw_only=True)
class Meshes:
    """Device meshes over which a net is sharded.

    Attributes:
        all_processes: Mesh of all processes. It has one dimension, or two: replicas of the model, and the processes
            that share a replica.
        llm_layers: Mesh of the processes over which a layer of the LLM is sharded. It is `all_processes`, or with
            tensor parallelism the processes that compute the same slice of the layer.
        tensor_parallel: Mesh of the processes that compute a layer of the LLM together; None without tensor
            parallelism.
        dtype: Type of the computation. Trained weights, their gradients and the optimizer's states stay in float32.
    """

    all_processes: DeviceMesh
    llm_layers: DeviceMesh
    tensor_parallel: DeviceMesh | None = None
    dtype: torch.dtype = torch.float32

    @property
    def n_copies(self) -> int:
        """Number of processes that compute the same gradient of a parameter that tensor parallelism does not divide."""
        return 1 if self.tensor_parallel is None else self.tensor_parallel.size()


def shard(net: AudioLM, meshes: Meshes) -> None:
    """Shard a net on the meta device over processes (FSDP2).

    Each block of the encoder, each layer of the LLM, and the embedding of the LLM is an FSDP unit; units are gathered
    one at a time. Everything else, including the head, is one unit. This unit stays gathered from forward to backward:
    the head scores labels in chunks, whose number may differ between processes, but to gather a unit all processes are
    needed at the same time.

    With tensor parallelism, the layers of the LLM are first divided by heads and channels. All other parts are computed
    redundantly by the processes of a tensor-parallel group, on the same rows. Their weights are nevertheless sharded
    over these processes, so that no two copies of a weight can diverge. `check_tensor_parallel` checks beforehand
    whether the LLM can be divided.

    Args:
        net: The net, with its adapters attached and its parts frozen.
        meshes: The processes.
    """
    for parameter in net.parameters():
        if not parameter.requires_grad:  # only trained parameters need a master weight
            parameter.data = parameter.data.to(meshes.dtype)
    if meshes.tensor_parallel is not None:
        plan = net.llm.config.get_text_config().base_model_tp_plan
        assert plan is not None  # checked by `check_tensor_parallel`
        styles: dict[str, ParallelStyle] = {name: _STYLES[style]() for name, style in plan.items()}
        parallelize_module(net.llm.get_decoder(), meshes.tensor_parallel, styles)
    for block in net.encoder.blocks:
        _make_unit(block, meshes.all_processes, meshes.dtype, meshes.n_copies)
    for layer in llm.decoder_layers(net.llm):
        _make_unit(layer, meshes.llm_layers, meshes.dtype)
    embedding, head = net.llm.get_input_embeddings(), net.llm.get_output_embeddings()
    assert head is not None  # every causal language model has one
    if embedding.weight is not head.weight:  # otherwise the embedding stays in the unit of the head
        _make_unit(embedding, meshes.all_processes, meshes.dtype, meshes.n_copies)
    _make_unit(net, meshes.all_processes, meshes.dtype, meshes.n_copies, reshard_after_forward=False)
    for method in _FORWARD_METHODS:
        register_fsdp_forward_method(net, method)


def shard_objective(objective: nn.Module, meshes: Meshes) -> None:
    """Shard the parameters of an objective, if it has any. Unlike a net, an objective is already initialised."""
    if next(objective.parameters(), None) is not None:
        _make_unit(objective, meshes.all_processes, meshes.dtype, meshes.n_copies)
        for method in ("answer", "best_paths"):  # methods other than `forward` that are called from outside
            if hasattr(objective, method):
                register_fsdp_forward_method(objective, method)


def reshard(*modules: nn.Module) -> None:
    """Free the gathered parameters of sharded modules. A forward without backward may leave them gathered."""
    for module in modules:
        if isinstance(module, FSDPModule):
            module.reshard()


def _make_unit(
    module: nn.Module,
    mesh: DeviceMesh,
    dtype: torch.dtype,
    n_copies: int = 1,
    reshard_after_forward: bool | None = None,
) -> None:
    """Make one FSDP unit of those parameters of a module that do not belong to a unit yet.

    Args:
        module: The module.
        mesh: Processes over which the parameters are sharded.
        dtype: Type of the computation.
        n_copies: Number of processes that compute the same gradient, by which the sum over processes is divided.
        reshard_after_forward: Whether the gathered parameters are freed after forward; None uses FSDP's default.
    """
    # Inputs are not cast, because the reference log-probabilities in a pack must stay in float32. The model casts audio
    # features itself.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    unit = fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)
    # Gradients are summed, not averaged, because the training step divides them once, by the number of supervised
    # tokens (or pairs) on all ranks. With the divide factor alone, FSDP would divide inside the collective operation,
    # which gloo does not support.
    unit.set_force_sum_reduction_for_comms(True)
    unit.set_gradient_divide_factor(float(n_copies))


def check_tensor_parallel(net: AudioLM, size: int, *, has_adapters: bool) -> None:
    """Check that `size` processes can compute each layer of the LLM together.

    Args:
        net: The net.
        size: Number of processes.
        has_adapters: Whether the net has adapters or will get some.

    Raises:
        UserError: The layers cannot be divided.
    """
    config, override = net.llm.config.get_text_config(), f"trainer.strategy.tensor_parallel={size}"
    if has_adapters:
        raise UserError(
            f"{override} cannot divide adapters, but trainable contains {adapters.LORA} or {adapters.NEW_TOKENS}: "
            "expected strategy=fsdp, or trainable=[...,llm]"
        )
    plan = getattr(config, "base_model_tp_plan", None) or {}
    if not plan or set(plan.values()) - _STYLES.keys():
        raise UserError(
            f"{override}: transformers has no plan of {' and '.join(_STYLES)} layers for the LLM {config.model_type}, "
            "only for some models such as qwen2: expected strategy=fsdp"
        )
    for field in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        number = getattr(config, field)
        if number % size:
            raise UserError(f"{override}: expected a divisor of the LLM's {field}={number}, or strategy=fsdp")


def materialise(net: nn.Module, device: torch.device | str, *, draw: bool = True) -> None:
    """Allocate memory for a net on the meta device and draw its initial weights from torch's global generator.

    Allocation with `to_empty` leaves parameters and buffers uninitialised, so the `reset_parameters` method of every
    module has to initialise both.

    Args:
        net: The net, sharded or not. All shards are parts of the same weights.
        device: Device of the memory.
        draw: Whether random numbers are drawn, which takes minutes for 8.4 billion weights. Random weights are not
            needed if all weights are loaded afterwards.
    """
    net.to_empty(device=device)
    with torch.no_grad(), ShardIndependentDraws(skip=not draw):
        _reset(net)


class ShardIndependentDraws(compat.TorchDispatchMode):
    """Mode in which a sharded tensor is filled with the same random numbers as the whole tensor would be.

    Every process draws whole tensors, one at a time, and keeps its shard. Without this mode, the random numbers of a
    DTensor would differ between processes on a CPU, and would depend on the sharding on a GPU.

    Args:
        skip: If True, random fills are skipped for all tensors, sharded or not.
    """

    def __init__(self, *, skip: bool = False) -> None:
        super().__init__()
        self.skip = skip

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func not in _RANDOM_FILLS or not (self.skip or isinstance(args[0], DTensor)):
            return func(*args, **kwargs)
        if not self.skip:
            whole = torch.empty(args[0].shape, dtype=torch.float32, device="cpu")
            dtensor.copy_local(args[0], func(whole, *args[1:], **kwargs))
        return args[0]


def _reset(module: nn.Module) -> None:
    """Initialise the parameters and buffers of a module and of its children."""
    if isinstance(module, llm.PreTrainedModel):
        llm.reset_parameters(module)  # transformers' initialisation, which torch's defaults must not overwrite
        return
    for child in module.children():
        _reset(child)
    if callable(reset := getattr(module, "reset_parameters", None)):
        reset()  # after the children, whose initial weights it may change


@torch.no_grad()
def copy_weights(source: AudioLM, target: AudioLM) -> None:
    """Copy the tensors of a net, except its adapters, to a net of the same structure with the same sharding."""
    tensors = target.state_dict()
    for name, tensor in source.state_dict().items():
        base_name = adapters.base_name(name)
        if base_name is not None:
            dtensor.local_part(tensors[base_name])[0].copy_(dtensor.local_part(tensor)[0])


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None, *, scale: Tensor | float) -> Tensor:
    """Multiply gradients by `scale`, then clip the norm of the gradient of the whole model.

    With tensor parallelism, parameters are on several meshes; torch's clip_grad_norm_ does not support that.

    Args:
        parameters: All parameters; those without a gradient are ignored.
        max_norm: Largest norm of the gradient; None or 0 does not clip.
        scale: Factor of the gradients.

    Returns:
        The norm after scaling and before clipping, the same on all processes.
    """
    world = 1
    gradients_by_shards: dict[int, list[Tensor]] = {}  # number of shards -> this process's parts of the gradients
    for parameter in parameters:
        if parameter.grad is not None:
            if isinstance(parameter.grad, DTensor):
                world = torch.distributed.get_world_size()
            gradients_by_shards.setdefault(dtensor.count_parts(parameter.grad), []).append(
                dtensor.local_part(parameter.grad)[0].mul_(scale)
            )
    # In a sum over all processes, a gradient of n shards is counted world / n times. At least one parameter has a
    # gradient, so the sum is a tensor.
    squares = (
        nn.utils.get_total_norm(gradients).square() * (n_shards / world)
        for n_shards, gradients in gradients_by_shards.items()
    )
    square = cast("Tensor", sum(squares))
    if world > 1:
        torch.distributed.all_reduce(square)
    norm = square.sqrt()
    if not max_norm:
        return norm
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # the same 1e-6 as in torch's clip_grad_norm_
    for gradients in gradients_by_shards.values():
        for gradient in gradients:
            gradient.mul_(factor)
    return norm
