"""Optimizer and learning-rate schedule.

Parameter groups have layer-wise learning rates. The optimizer is AdamW, which can store its moments in bfloat16, or
Muon. The schedule consists of a linear warm-up and a cosine. The default settings are the values of Qwen-Audio Table 6.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.adamw import adamw as adamw_update

from auris.config import Config
from auris.errors import UserError, shorten

if TYPE_CHECKING:
    from auris.model.audio_lm import AudioLM

# Keys of the config section `optim` that are used by parameter groups, clipping and schedule. All other keys are
# arguments of the optimizer.
SCHEDULE_KEYS = ("lr", "min_lr", "weight_decay", "clip", "warmup_steps", "lr_factors", "layer_decay")
# Types of AdamW's two moments by their name in a config. Moments of 8 bits would need another library (torchao,
# bitsandbytes).
MOMENT_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

# Names of parameters that Muon leaves to AdamW although they have two dimensions. Tables have a row for each token, and
# only some rows concern a step. A matrix of LoRA is a factor of an update, and need not be orthogonal. The boundary
# consists of two vectors.
_ADAMW_NAMES = re.compile(r"\.(embed_tokens|lm_head|new_tokens)\.|\.lora_|^net\.boundary\.|^objective\.head\.")
_LEFT_TO_ADAMW = "left_to_adamw"  # attribute of these parameters


def find_parts(net: nn.Module, trainable: Iterable[str]) -> list[nn.Module | nn.Parameter]:
    """Return the parts of a net with the given names.

    A name is the name of a submodule or a parameter, such as `encoder` or `llm.model.embed_tokens`, or `PART.lora` for
    the LoRA matrices of a part. A part may have no parameters (mean pooling).

    Raises:
        UserError: A name matches no part of the net.
    """
    modules = dict(net.named_modules())
    parameters = dict(net.named_parameters())
    parts: list[nn.Module | nn.Parameter] = []
    for name in trainable:
        prefix, _, suffix = name.rpartition(".")
        lora_matrices = [x for other, x in parameters.items() if other.startswith(f"{prefix}.") and ".lora_" in other]
        if name in modules and name:
            parts.append(modules[name])
        elif name in parameters:
            parts.append(parameters[name])
        elif suffix == "lora" and lora_matrices:
            parts += lora_matrices
        else:
            children = ", ".join(child for child, _ in net.named_children())
            raise UserError(
                f"trainable={shorten(name)} matches no part of the model: expected {children}, or the name of a module "
                "or parameter in one of them"
            )
    return parts


def freeze(net: nn.Module, trainable: Iterable[str]) -> None:
    """Freeze all parts of a net except the given ones (`find_parts`), and put frozen parts into eval mode."""
    net.requires_grad_(False)
    net.eval()
    for part in find_parts(net, trainable):
        part.requires_grad_(True)
        if isinstance(part, nn.Module):
            part.train()


def parameter_groups(
    net: AudioLM,
    objective: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float,
    lr_factors: Mapping[str, float] | None = None,
) -> list[dict]:
    """Return parameter groups, one for each learning rate and weight decay.

    The encoder has L blocks. The learning rate is lr * layer_decay^(L - 1 - l) in block l, lr * layer_decay^L in the
    encoder's convolutions, and lr everywhere else. This is the rule of Qwen-VL; Qwen-Audio only reports the value 0.95.
    `lr_factors` multiplies these rates. Vectors (biases, norms) have no weight decay. Tables of tokens and matrices of
    LoRA are marked for `Muon`.

    Args:
        net: The net. Its frozen parameters are in no group.
        objective: The objective, which may have parameters as well.
        lr: Peak learning rate.
        weight_decay: Weight decay of matrices.
        layer_decay: Factor of the learning rate from one encoder block to the block below.
        lr_factors: Factors of the learning rate by name of the part (a child of the net).

    Raises:
        UserError: No parameter is trainable, or `lr_factors` contains a name that is not a part of the net.
    """
    n_blocks = len(net.encoder.blocks)
    factors = dict(lr_factors or {})
    parts = [name for name, _ in net.named_children()]
    if unknown := sorted(set(factors) - set(parts)):
        raise UserError(f"optim.lr_factors contains {', '.join(unknown)}: expected {', '.join(parts)}")
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    named_parameters = [(f"net.{name}", parameter) for name, parameter in net.named_parameters()]
    named_parameters += [(f"objective.{name}", parameter) for name, parameter in objective.named_parameters()]
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            setattr(parameter, _LEFT_TO_ADAMW, bool(_ADAMW_NAMES.search(name)))
            part = name.split(".")[1]
            rate = lr * layer_decay ** _count_blocks_above(name, n_blocks) * factors.get(part, 1.0)
            groups.setdefault((rate, parameter.ndim >= 2), []).append(parameter)
    if not groups:
        raise UserError("no parameter is trainable: set for example trainable=[encoder,pooling,projector]")
    return [
        {"params": parameters, "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        for (rate, decays), parameters in sorted(groups.items(), key=lambda item: (-item[0][0], item[0][1]))
    ]


def _count_blocks_above(name: str, n_blocks: int) -> int:
    """Return the number of encoder blocks between a parameter and the output of the encoder.

    Args:
        name: Name of the parameter. The number is 0 for a parameter outside the encoder.
        n_blocks: Number of blocks of the encoder.
    """
    if not name.startswith("net.encoder.") or name.startswith("net.encoder.norm."):
        return 0
    if name.startswith("net.encoder.blocks."):
        return n_blocks - 1 - int(name.split(".")[3])
    return n_blocks


def adamw(groups: Iterable[dict], *, betas: Sequence[float], eps: float, states: str = "fp32") -> AdamW:
    """Return AdamW.

    Args:
        groups: Parameter groups.
        betas: Decay rates of the two moments.
        eps: Term added to the denominator.
        states: Type of the moments, a key of `MOMENT_TYPES`.

    Raises:
        UserError: `states` is not a key of `MOMENT_TYPES`, there are not two decay rates, or the second one is so close
            to 1 that a second moment could never decrease in bfloat16.
    """
    if states not in MOMENT_TYPES:
        raise UserError(f"optim.states={states}: expected {' or '.join(MOMENT_TYPES)}")
    beta1, beta2 = _pair(betas)
    if MOMENT_TYPES[states] is torch.float32:
        return AdamW(groups, betas=(beta1, beta2), eps=eps)
    if 1 - beta2 < torch.finfo(MOMENT_TYPES[states]).eps:
        raise UserError(
            f"optim.betas={list(betas)} with optim.states={states}: the decay of the second moment in one step would "
            "be lost in rounding; expected optim.betas=[...,0.99] or less, or optim.states=fp32"
        )
    return LowPrecisionAdamW(groups, betas=(beta1, beta2), eps=eps, dtype=MOMENT_TYPES[states])


def _pair(betas: Sequence[float]) -> tuple[float, float]:
    """Return the decay rates of AdamW; raise UserError if there are not two of them."""
    if len(betas) != 2:
        raise UserError(f"optim.betas={list(betas)}: expected two numbers")
    return betas[0], betas[1]


def moment_bytes(settings: Config) -> int:
    """Return the number of bytes of one moment of one parameter. Muon's matrices have one moment, all others have two.

    Args:
        settings: The section `optim` of a config. Without the key `states`, moments are assumed to be in float32.
    """
    return MOMENT_TYPES[settings.get("states", "fp32")].itemsize


class LowPrecisionAdamW(AdamW):
    """AdamW that stores its moments in a given type, rounded to nearest, and computes in the type of the parameters.

    In bfloat16 the moments need half the memory. Checkpoints, strategies and schedules work as with AdamW. Parameters
    are updated one at a time, so that only one parameter's moments are in memory in full precision.

    Args:
        groups: Parameter groups.
        dtype: Type of the moments.
        **settings: Arguments of AdamW.
    """

    def __init__(self, groups: Iterable[dict], *, dtype: torch.dtype, **settings: Any) -> None:
        super().__init__(groups, **settings)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters; return the loss that the closure returns, or None without a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            settings = {key: group[key] for key in ("lr", "weight_decay", "eps", "maximize")}
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state |= {key: torch.zeros_like(parameter, dtype=self.dtype) for key in ("exp_avg", "exp_avg_sq")}
                moments = {key: state[key].to(parameter.dtype) for key in ("exp_avg", "exp_avg_sq")}
                adamw_update(
                    [parameter],
                    [parameter.grad],
                    [moments["exp_avg"]],
                    [moments["exp_avg_sq"]],
                    [],
                    [state["step"]],
                    amsgrad=False,
                    beta1=beta1,
                    beta2=beta2,
                    **settings,
                )
                for key, moment in moments.items():
                    state[key].copy_(moment)
        return loss


class Muon(AdamW):
    """Muon (Jordan et al. 2024) for matrices, AdamW for vectors and the parameters that `parameter_groups` marks.

    The momentum of a matrix is made nearly orthogonal, so that a step changes all directions of the matrix by the same
    amount, instead of mostly those few that dominate the gradient. The change is scaled to the size that AdamW's has
    (Liu et al. 2025, arXiv 2502.16982, section 2.2), so learning rates and weight decay have the same meaning as with
    AdamW, although higher rates may be better (`scale=tiny`). A convolution is a matrix with one row for each output
    channel.

    torch.optim.Muon takes matrices only, and always computes in bfloat16, which many CPUs lack.

    Args:
        groups: Parameter groups. Each of them becomes two groups, of matrices and of all other parameters.
        betas: Decay rates of AdamW's moments.
        momentum: Decay rate of a matrix's momentum.
        **settings: Further arguments of AdamW, for all other parameters.

    Raises:
        UserError: There are not two `betas`.
    """

    def __init__(
        self, groups: Iterable[dict], *, betas: Sequence[float], momentum: float = 0.95, **settings: Any
    ) -> None:
        split_groups = []
        for group in groups:
            matrices = [parameter for parameter in group["params"] if _is_matrix(parameter)]
            others = [parameter for parameter in group["params"] if not _is_matrix(parameter)]
            split_groups += [{**group, "params": matrices, "momentum": momentum}] if matrices else []
            split_groups += [{**group, "params": others, "momentum": None}] if others else []
        super().__init__(split_groups, betas=_pair(betas), **settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters; return the loss that the closure returns, or None without a closure."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if group["momentum"] is None]  # AdamW updates these only
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            for parameter in group["params"] if group["momentum"] is not None else ():
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
                lookahead = parameter.grad + group["momentum"] * state["momentum"]  # as in Nesterov's method
                change = orthogonalise(lookahead.flatten(1))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                scale = 0.2 * math.sqrt(max(change.shape))
                parameter.add_(change.view_as(parameter), alpha=-group["lr"] * scale)
        return loss


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return the nearly orthogonal matrix with the singular vectors of `matrix`: its singular values are about 1.

    Five steps of a Newton-Schulz iteration with the coefficients of Jordan et al. bring each singular value of a
    hundredth of the norm or more to between 0.7 and 1.2. They are computed in the type of the matrix.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix) / (matrix.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if is_tall else x


def _is_matrix(parameter: nn.Parameter) -> bool:
    """Return whether Muon updates a parameter."""
    return parameter.ndim >= 2 and not getattr(parameter, _LEFT_TO_ADAMW, False)


def cosine_schedule(
    optimizer: torch.optim.Optimizer, *, warmup_steps: int, max_steps: int, floor: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a schedule with a linear warm-up, followed by a cosine.

    Args:
        optimizer: The optimizer. Its learning rates are the peak of the schedule.
        warmup_steps: Number of steps of the warm-up, less than `max_steps`.
        max_steps: Step at which the cosine ends.
        floor: Learning rate at the end as a fraction of the peak.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / (max_steps - warmup_steps))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
